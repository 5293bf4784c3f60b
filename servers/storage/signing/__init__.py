"""Signatures of versions, and what is checked before a version's files are used."""
