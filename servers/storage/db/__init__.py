"""The database of the storage server: engine, tables, migrations."""
