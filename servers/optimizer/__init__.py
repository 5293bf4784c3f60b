"""The optimizer server: jobs that make new model versions out of old ones."""
