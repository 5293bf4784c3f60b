"""Keeping the store sound: space, checks, repair, collection, backup, keys."""
