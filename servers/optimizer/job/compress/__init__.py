"""The work of the kinds prune, quantise and export. Imported by job processes only."""
