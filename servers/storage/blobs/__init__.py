"""Content-addressed bytes: files, what is unfinished, and tensors that files share."""

from llmos.servers.storage.blobs.reader import damaged
from llmos.servers.storage.blobs.store import Blobs, no_such_blob

__all__ = ["Blobs", "damaged", "no_such_blob"]
