"""Pages of listings: a token says after which row the next page begins, and of which listing."""

from __future__ import annotations

import base64
import hashlib
import json

from llmos.lib.errors import InvalidArgument
from llmos.servers.storage.names import short

MAX_PAGE = 1000
DEFAULT_PAGE = 100


def page_size(size: int) -> int:
    """Return how many rows a page has, 0 = the default. Raises InvalidArgument BAD_PAGE."""
    if not 0 <= size <= MAX_PAGE:
        raise InvalidArgument(
            "BAD_PAGE", f"page_size {size} is out of range: ask for 1 to {MAX_PAGE}."
        )
    return size or DEFAULT_PAGE


def token(listing: object, *last: str | int) -> str:
    """Return the token of the page after the row with the key `last`.

    listing: its name and filters, as JSON values; two that differ are two listings.
    """
    return base64.urlsafe_b64encode(json.dumps([_short(listing), *last]).encode()).decode()


def _short(listing: object) -> str:
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()[:16]


def read_token(text: str, listing: object, *kinds: type) -> list[str | int]:
    """Return the key in a token of this listing, of `kinds`. Raises InvalidArgument BAD_PAGE."""
    try:
        of, *last = json.loads(base64.urlsafe_b64decode(text.encode()))
        if of == _short(listing) and [type(part) for part in last] == list(kinds):
            return list(last)
    except (ValueError, TypeError, RecursionError):
        pass  # the same advice
    raise InvalidArgument(
        "BAD_PAGE",
        f"{short(text)} is not a page token of this listing; start from the first page.",
    )
