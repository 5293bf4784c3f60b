"""The key file, and the keys of files wrapped by it.

A key file has one key a line, 32 random bytes in hex; `#` begins a comment. The first key wraps
what is new; the others still unwrap what is old, until `rewrap` has been everywhere:

    new key on top -> restart -> `llmos-ctl storage rekey` -> remove the old one
"""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from llmos.lib.errors import DataLoss, FailedPrecondition, InvalidArgument
from llmos.servers.storage.crypt.stream import KEY

_ID, _NONCE = 8, 12


class KeyRing:
    """Wraps and unwraps the keys of files; says which of its own keys did it."""

    def __init__(self, keys: list[bytes]) -> None:
        """Use `keys` of 32 bytes each; the first one wraps."""
        self._keys = {_id(key): AESGCM(key) for key in keys}
        self.current = _id(keys[0])

    @staticmethod
    def load(path: Path) -> KeyRing:
        """Read a key file. Raises BAD_KEY_FILE, KEY_FILE_OPEN."""
        try:
            mode = path.stat().st_mode
            lines = path.read_text("ascii").splitlines()
        except (OSError, UnicodeDecodeError) as exc:
            why = exc.strerror if isinstance(exc, OSError) else "it is not text"
            raise _bad(path, f"cannot be read ({why})") from exc
        if stat.S_IMODE(mode) & 0o077:
            raise FailedPrecondition(
                "KEY_FILE_OPEN", f"Others can read {path}; run: chmod 600 {path}"
            )
        keys = []
        for number, line in enumerate(lines, 1):
            text = line.partition("#")[0].strip()
            if not text:
                continue
            try:
                keys.append(bytes.fromhex(text))
            except ValueError as exc:
                raise _bad(path, f"line {number} is not hex") from exc
            if len(keys[-1]) != KEY:
                raise _bad(path, f"line {number} has {len(keys[-1])} bytes and not {KEY}")
        if not keys:
            raise _bad(path, "has no key")
        return KeyRing(keys)

    def new(self, about: str) -> tuple[bytes, bytes]:
        """Return a fresh key for the file `about` (its digest), and the same wrapped."""
        key = os.urandom(KEY)
        return key, self.wrap(key, about)

    def wrap(self, key: bytes, about: str) -> bytes:
        """Return `key` wrapped for `about`: it unwraps for nothing else."""
        nonce = os.urandom(_NONCE)
        sealed = self._keys[self.current].encrypt(nonce, key, about.encode())
        return self.current + nonce + sealed

    def unwrap(self, wrapped: bytes, about: str) -> bytes:
        """Return the key. Raises FailedPrecondition WRONG_KEY, DataLoss KEY_DAMAGED."""
        cipher = self._keys.get(wrapped[:_ID])
        if cipher is None:
            raise wrong_key(wrapped)
        nonce, sealed = wrapped[_ID : _ID + _NONCE], wrapped[_ID + _NONCE :]
        try:
            return cipher.decrypt(nonce, sealed, about.encode())
        except InvalidTag as exc:
            raise DataLoss(
                "KEY_DAMAGED", f"The wrapped key of {about} was changed; restore it from a backup."
            ) from exc

    def is_current(self, wrapped: bytes) -> bool:
        """Return whether the first key wrapped it."""
        return wrapped[:_ID] == self.current


def wrong_key(wrapped: bytes) -> FailedPrecondition:
    """Return the error for a key that is not in the key file."""
    return FailedPrecondition(
        "WRONG_KEY",
        f"The key {wrapped[:_ID].hex()} that encrypted this store is not in the key file; add its "
        "line to the file that --encryption-key names.",
    )


def key_needed() -> FailedPrecondition:
    """Return the error for an encrypted store that is opened without a key."""
    return FailedPrecondition(
        "KEY_NEEDED", "This store is encrypted; start with --encryption-key FILE."
    )


def _id(key: bytes) -> bytes:
    return hashlib.sha256(b"llmos-key-id" + key).digest()[:_ID]


def _bad(path: Path, why: str) -> InvalidArgument:
    return InvalidArgument(
        "BAD_KEY_FILE",
        f"The key file {path} {why}; it has one key of 64 hex digits a line, and "
        "`llmos-ctl storage keygen FILE` makes one.",
    )
