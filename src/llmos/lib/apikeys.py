"""Keys of the HTTP gateway: what is kept of them, and where. `llmos-ctl key` makes them.

A key is 256 random bits, so one hash without salt or stretching is enough: it cannot be guessed,
and what is kept does not give it away.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from dataclasses import asdict, dataclass, fields

from llmos.lib.errors import InvalidArgument

PREFIX = "llmos/api-keys/"  # of the documents in storage, one per key
CLASSES = ("interactive", "normal", "batch")
_MARK = "llmos-"


@dataclass(frozen=True, kw_only=True)
class ApiKey:
    """What is kept of a key. Limits are those of its tenant; 0 = none."""

    id: str
    sha256: str
    tenant: str
    name: str = ""  # for people
    admin: bool = False  # it may also look into the OS and steer it: /llmos/v1
    call_class: str = "interactive"  # the class of its calls
    weight: float = 0.0  # share relative to other tenants; 0 = not changed
    max_calls: int = 0  # queued and running
    calls_per_s: float = 0.0
    cost_per_s: float = 0.0  # of language models: tokens
    created_unix_s: float = 0.0
    expires_unix_s: float = 0.0  # 0 = never

    def __post_init__(self) -> None:
        """Refuse what cannot be. Raises InvalidArgument BAD_API_KEY."""
        if not self.tenant or len(self.tenant) > 64 or not self.tenant.isprintable():
            raise InvalidArgument("BAD_API_KEY", "A tenant's name has 1 to 64 characters.")
        if self.call_class not in CLASSES:
            raise InvalidArgument(
                "BAD_API_KEY", f"{self.call_class!r} is no class; it is one of {CLASSES}."
            )
        for name in ("weight", "max_calls", "calls_per_s", "cost_per_s"):
            if not getattr(self, name) >= 0:
                raise InvalidArgument("BAD_API_KEY", f"{name} is below 0.")

    @property
    def document(self) -> str:
        """The key of its document in storage."""
        return PREFIX + self.id

    def to_json(self) -> bytes:
        """Return it as the document's content."""
        return json.dumps(asdict(self), indent=1).encode()


def from_json(value: bytes) -> ApiKey:
    """Return the key that a document describes. Raises InvalidArgument BAD_API_KEY."""
    try:
        members = json.loads(value)
        known = {field.name for field in fields(ApiKey)}
        return ApiKey(**{name: member for name, member in members.items() if name in known})
    except (ValueError, TypeError, AttributeError) as exc:
        raise InvalidArgument("BAD_API_KEY", f"A kept key cannot be read: {exc}.") from exc


def digest(secret: str) -> str:
    """Return the hash under which a key is kept."""
    return hashlib.sha256(secret.encode()).hexdigest()


def new_secret() -> tuple[str, str]:
    """Return a new key, which is shown once and kept nowhere, and its id, which is part of it."""
    id = secrets.token_hex(6)
    return f"{_MARK}{id}-{secrets.token_urlsafe(32)}", id
