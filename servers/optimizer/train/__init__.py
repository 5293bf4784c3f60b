"""Training: the work of the kinds train, fine_tune and distil. Imported by job processes only."""
