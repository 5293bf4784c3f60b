"""The work of the kinds that run jobs of their own: pipelines and searches."""
