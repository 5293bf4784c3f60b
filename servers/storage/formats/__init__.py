"""Model file formats, recognised and checked by content."""
