"""The work of the kind evaluate: quality, speed, and the report. Imported by job processes only."""
