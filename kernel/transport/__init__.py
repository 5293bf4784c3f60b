"""The kernel's I/O: gRPC streams in, envelopes to the core, envelopes out."""
