"""The registry: versions of models, aliases, leases, lineage. Rows only; it knows no files."""

from llmos.servers.storage.registry.versions import Registry

__all__ = ["Registry"]
