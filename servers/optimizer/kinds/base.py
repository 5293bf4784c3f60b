"""What a kind of job is: one side for the server (no heavy import), one for the job's process.

A kind is a `Kind` in `table.py`, a message in JobSpec.kind and a class that follows `Work`, which
only the job's process imports.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol

from llmos.lib.errors import FailedPrecondition, InvalidArgument
from llmos.servers.optimizer.seams import Source

if TYPE_CHECKING:
    from llmos.servers.optimizer.job.context import JobContext

_REF = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}(@[A-Za-z0-9][A-Za-z0-9._-]{0,63})?")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True)
class Needs:
    """References that a spec names; they are fixed to versions when the job is submitted."""

    models: Sequence[str] = ()
    datasets: Sequence[str] = ()


@dataclass(frozen=True)
class Kind:
    """A kind of job as the server knows it."""

    check: Callable[[Any], Needs]  # takes the kind's message; raises InvalidArgument BAD_SPEC
    runner: str  # `module:Class`, a Work
    packages: Sequence[str] = ()  # that the work imports
    # takes the message and a source, in the order of Needs.models; raises WRONG_FORMAT
    check_source: Callable[[Any, Source], None] = field(default=lambda message, source: None)
    # takes the message: the modules that the work imports later than its own
    imports: Callable[[Any], Sequence[str]] = field(default=lambda message: ())
    orchestrates: bool = False  # it waits for jobs of its own, so it takes no place in the queue

    def check_packages(self) -> None:
        """Raise FailedPrecondition MISSING_EXTRA when packages are not installed."""
        missing = [name for name in self.packages if find_spec(name) is None]
        if missing:
            raise FailedPrecondition(
                "MISSING_EXTRA",
                f"This job needs {', '.join(missing)}, not installed: "
                "pip install 'llmos[optimizer]'.",
            )

    def modules(self, message: Any) -> list[str]:
        """Return what a process that is to do such jobs may import ahead."""
        return [self.runner.partition(":")[0], *self.imports(message)]

    def load(self) -> Callable[[JobContext], Work]:
        """Import the work's class."""
        module, _, name = self.runner.partition(":")
        found: Callable[[JobContext], Work] = getattr(import_module(module), name)
        return found


class Work(Protocol):
    """One run of a job, made with its context in its own process."""

    async def run(self) -> None:
        """Do it all, going on from what an earlier process left in the working folder.

        Blocking steps belong in a thread, so that the port lives. Raises LLMOSError, which ends
        the job with its message.
        """


def bad(message: str) -> InvalidArgument:
    """Return the error of a bad spec; the message names the field."""
    return InvalidArgument("BAD_SPEC", message)


def check_ref(field: str, value: str) -> None:
    """Raise BAD_SPEC unless it can mean a version."""
    if not _REF.fullmatch(value):
        raise bad(f"{field} is {value[:60]!r}; it must be `name`, `name@version` or `name@alias`.")


def check_name(field: str, value: str) -> None:
    """Raise BAD_SPEC unless it can name what is registered; empty = the source's name."""
    if value and not _NAME.fullmatch(value):
        raise bad(
            f"{field} is {value[:60]!r}, of {len(value)} characters; use at most 128 letters, "
            "digits, '.', '_' and '-', a letter or digit first."
        )


def check_range(field: str, value: float, least: float, most: float) -> None:
    """Raise BAD_SPEC unless least <= value <= most; NaN never is."""
    if not (math.isfinite(value) and least <= value <= most):
        raise bad(f"{field} is {value:g}; it must be {least:g} to {most:g}.")
