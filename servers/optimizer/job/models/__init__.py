"""Versions as a job computes with them: files to torch modules or functions, and back."""
