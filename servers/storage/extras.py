"""The libraries of `llmos[storage]`, imported when they are first needed."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from llmos.lib.errors import FailedPrecondition

_PACKAGES = (
    "gguf",
    "safetensors",
    "onnx",
    "sqlalchemy",
    "alembic",
    "psycopg",
    "pyarrow",
    "PIL",
    "selectolax",
    "py3langid",
    "cryptography",
)


def need(module: str) -> Any:
    """Return the imported module. Raises FailedPrecondition MISSING_EXTRA."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as exc:
        raise _missing(exc.name or module) from exc


def check() -> None:
    """Raise FailedPrecondition MISSING_EXTRA when one is not installed; imports nothing."""
    for package in _PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise _missing(package)


def _missing(package: str) -> FailedPrecondition:
    return FailedPrecondition(
        "MISSING_EXTRA",
        f"The Python package {package} is not installed; run: pip install 'llmos[storage]'",
    )
