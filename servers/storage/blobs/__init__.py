"""Content-addressed bytes: files, what is unfinished, and tensors that files share."""

from llmos.servers.storage.blobs.store import Blobs, damaged, no_such_blob

__all__ = ["Blobs", "damaged", "no_such_blob"]
