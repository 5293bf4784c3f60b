"""Signatures in the database: kept with their versions, gone with them."""

from __future__ import annotations

import time
from dataclasses import dataclass

from sqlalchemy import select

from llmos.lib import signing
from llmos.servers.storage import caller
from llmos.servers.storage.db import audit
from llmos.servers.storage.db.engine import Database
from llmos.servers.storage.db.tables_registry import signatures
from llmos.servers.storage.model import Version


@dataclass(frozen=True)
class Signature:
    """One signature. bundle: JSON. key_sha256: of the public key. added_unix_s: Unix time."""

    bundle: bytes
    key_sha256: str
    added_unix_s: float


class SignatureBook:
    """Blocking; for a thread."""

    def __init__(self, database: Database) -> None:
        """Keep them in `database`, which lives longer."""
        self._db = database

    def of(self, version: Version) -> list[Signature]:
        """Return the signatures of a version, oldest first."""
        s = signatures.c
        query = select(s.bundle, s.key_sha256, s.added)
        query = query.where(s.name == version.name, s.version == version.version)
        with self._db.read() as sql:
            rows = sql.execute(query.order_by(s.added, s.key_sha256))
            return [Signature(bytes(row.bundle), row.key_sha256, row.added) for row in rows]

    def add(self, version: Version, bundle: bytes, public_key: bytes) -> Signature:
        """Keep a signature that holds; a key's newer one takes the place of its older one.

        Raises BAD_KEY, BAD_SIGNATURE, SIGNATURE_MISMATCH, MISSING_EXTRA.
        """
        signing.verify(bundle, public_key, digests(version))
        made = Signature(bundle, signing.key_sha256(public_key), time.time())
        row = {"name": version.name, "version": version.version, "key_sha256": made.key_sha256}
        s = signatures.c
        with self._db.write() as sql:
            sql.execute(
                signatures.delete().where(
                    s.name == version.name,
                    s.version == version.version,
                    s.key_sha256 == made.key_sha256,
                )
            )
            sql.execute(signatures.insert().values(**row, bundle=bundle, added=made.added_unix_s))
            actor, detail = caller.current().tenant, {"key_sha256": made.key_sha256}
            audit.record(sql, actor, "model.sign", version.ref, detail)
        return made


def digests(version: Version) -> dict[str, str]:
    """Return {file name: sha256} of a version."""
    return {file.name: file.sha256 for file in version.files}
