"""Encryption at rest: sealed files and the keys that open them. No paths, no database."""
