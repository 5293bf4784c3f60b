"""The interface of signatures, and its implementation beside a LocalStorage."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from llmos.lib import signing
from llmos.lib.errors import FailedPrecondition, InvalidArgument
from llmos.servers.storage.blobs import damaged
from llmos.servers.storage.disk import CHUNK
from llmos.servers.storage.importer import Watch
from llmos.servers.storage.local import LocalStorage
from llmos.servers.storage.model import Progress, Version
from llmos.servers.storage.signing.book import Signature, SignatureBook, digests
from llmos.servers.storage.watched import watched


@dataclass(frozen=True)
class Verified:
    """The end of a verification: the version (`name@version`) and the signature that holds."""

    ref: str
    signature: Signature


class Signatures(ABC):
    """Signatures of versions. See exchange.proto for every error."""

    @abstractmethod
    async def add_signature(self, ref: str, bundle: bytes, public_key: bytes) -> Verified:
        """Keep a signature with a version."""

    @abstractmethod
    def verify_version(
        self, ref: str, public_key: bytes
    ) -> AsyncGenerator[Progress | Verified, None]:
        """Read all bytes and compare them with what was signed."""

    @abstractmethod
    async def list_signatures(self, ref: str) -> list[Signature]:
        """Return the signatures of a version, oldest first."""


class LocalSignatures(Signatures):
    """Implements Signatures; nothing of it blocks the event loop."""

    def __init__(self, storage: LocalStorage) -> None:
        """Use `storage`, which lives longer."""
        self._storage = storage
        self._book = SignatureBook(storage.database)
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="verify")

    def close(self) -> None:
        """Wait for running work; calls must have ended or been cancelled."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    async def add_signature(self, ref: str, bundle: bytes, public_key: bytes) -> Verified:
        """See Signatures."""
        version = await self._storage.get_version(ref)
        made = await asyncio.to_thread(self._book.add, version, bundle, public_key)
        return Verified(version.ref, made)

    async def verify_version(
        self, ref: str, public_key: bytes
    ) -> AsyncGenerator[Progress | Verified, None]:
        """See Signatures."""
        version = await self._storage.get_version(ref)
        async with aclosing(
            watched(self._pool, partial(self._verify, version, public_key))
        ) as steps:
            async for step in steps:
                yield step

    def _verify(self, version: Version, public_key: bytes, watch: Watch) -> Verified:
        held = signed_by(self._book, version, public_key)
        watch.expect(version.size_bytes)
        for file in version.files:
            watch.say(f"reading {file.name}")
            with self._storage.blobs.open(file.sha256) as content:
                digest = _digest(content, watch)
            if digest != file.sha256:
                raise damaged(file.sha256, f"{file.name} of {version.ref} has other bytes")
        return Verified(version.ref, held)

    async def list_signatures(self, ref: str) -> list[Signature]:
        """See Signatures."""
        version = await self._storage.get_version(ref)
        return await asyncio.to_thread(self._book.of, version)


def _digest(content: object, watch: Watch) -> str:
    import hashlib

    digest = hashlib.sha256()
    size = content.size  # type: ignore[attr-defined]
    for offset in range(0, size, CHUNK):
        data = content.read(offset, min(CHUNK, size - offset))  # type: ignore[attr-defined]
        digest.update(data)
        watch.add(len(data))
    return digest.hexdigest()


def signed_by(book: SignatureBook, version: Version, public_key: bytes) -> Signature:
    """Return the version's signature by a key. Raises NOT_SIGNED, BAD_KEY, MISSING_EXTRA.

    The signature itself is checked again: a row in the database proves nothing.
    """
    key = signing.key_sha256(public_key)
    for held in book.of(version):
        if held.key_sha256 == key:
            try:
                signing.verify(held.bundle, public_key, digests(version))
                return held
            except InvalidArgument:
                break
    raise FailedPrecondition(
        "NOT_SIGNED",
        f"{version.ref} has no signature by the key {key[:16]}...; sign it by `llmos-ctl model "
        f"sign {version.ref} --key KEY`.",
    )


def read_key(path: str) -> bytes:
    """Return the public key in a file; of "", b"". Raises BAD_KEY."""
    if not path:
        return b""
    try:
        key = Path(path).read_bytes()
    except OSError as exc:
        raise InvalidArgument("BAD_KEY", f"Cannot read {path} ({exc.strerror}).") from exc
    signing.key_sha256(key)
    return key
