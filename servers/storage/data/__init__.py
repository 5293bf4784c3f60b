"""Data sets: imported, cleaned, split, kept as Parquet, read in batches."""
