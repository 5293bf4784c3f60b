"""Tables of the content-addressed bytes.

A foreign key to `blobs.sha256` that is not ON DELETE CASCADE, in any table, keeps a blob from
being collected: whoever stores files as blobs needs no more than that.
"""

from __future__ import annotations

from sqlalchemy import Column, ForeignKey, Index, LargeBinary, Table, Text

from llmos.servers.storage.db.tables import Int, Key, Real, metadata

blobs = Table(
    "blobs",
    metadata,
    Column("sha256", Key, primary_key=True),
    Column("size", Int, nullable=False),
    # Unix time of the last upload: spares it from collection for a while.
    Column("touched", Real, nullable=False),
    # 0 = a file of its own; 1 = pieces of other blobs, see `pieces`.
    Column("form", Int, nullable=False, server_default="0"),
    # Of a sealed file, its key, wrapped by one of the key file; NULL = a plain file.
    Column("wrapped_key", LargeBinary),
    # Unix time its bytes were last compared with their digest; 0 = when it was stored.
    Column("checked", Real, nullable=False, server_default="0"),
    # Why its file was put into quarantine; "" = it is sound.
    Column("fault", Text, nullable=False, server_default=""),
    Index("blobs_size", "size"),
)


def _of_blob() -> ForeignKey:
    return ForeignKey("blobs.sha256", ondelete="CASCADE")


pieces = Table(  # what blobs of form 1 are made of, in order, without gaps
    "pieces",
    metadata,
    Column("sha256", Key, _of_blob(), primary_key=True),
    Column("position", Int, primary_key=True, autoincrement=False),
    Column("source", Key, ForeignKey("blobs.sha256"), nullable=False),  # a blob of form 0
    Column("start", Int, nullable=False),  # bytes
    Column("length", Int, nullable=False),
    Index("pieces_source", "source"),
)
tensors = Table(  # where the bytes of a tensor are stored, for files that have the same
    "tensors",
    metadata,
    Column("digest", Key, primary_key=True),  # sha256 of the bytes
    Column("sha256", Key, _of_blob(), nullable=False),  # a blob of form 0
    Column("start", Int, nullable=False),
    Column("length", Int, nullable=False),
    Index("tensors_sha256", "sha256"),
)
uploads = Table(  # unfinished ones
    "uploads",
    metadata,
    Column("id", Key, primary_key=True),
    Column("tenant", Key, nullable=False),
    Column("sha256", Key, nullable=False),  # of the whole
    Column("size", Int, nullable=False),
    Column("received", Int, nullable=False),  # durable bytes
    Column("expires", Real, nullable=False),  # Unix time
    Column("wrapped_key", LargeBinary),  # of its sealed file; NULL = a plain file
    Index("uploads_sha256", "sha256"),
)
upkeep = Table(  # what background work has to remember
    "upkeep",
    metadata,
    Column("name", Key, primary_key=True),
    Column("value", Text, nullable=False),
)
