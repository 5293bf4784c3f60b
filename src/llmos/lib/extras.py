"""What a process says when the packages of its extra are not installed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needed(extra: str) -> Iterator[None]:
    """Around the imports of a `__main__` that need `llmos[extra]`.

    A package that is not there becomes one sentence on stderr and exit code 1.
    """
    try:
        yield
    except ModuleNotFoundError as exc:
        package = (exc.name or "").partition(".")[0]
        if package in ("", "llmos"):  # a bug of ours, not a missing extra
            raise
        print(
            f"llmos-{extra}: The Python package {package} is not installed; "
            f"run: pip install 'llmos[{extra}]'",
            file=sys.stderr,
        )
        sys.exit(1)
