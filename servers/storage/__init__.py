"""The storage server: immutable model versions made of content-addressed files."""
