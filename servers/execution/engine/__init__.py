"""Engines: what computes in a worker."""
