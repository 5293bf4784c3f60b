"""The memory server: shared-memory buffers, and grants of device memory."""
