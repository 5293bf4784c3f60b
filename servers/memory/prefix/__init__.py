"""Keys and values of prefixes: in memory, then on disk. See README.md."""
