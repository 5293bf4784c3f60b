"""The one error vocabulary of LLM OS, one class per gRPC status code.

    LLMOSError
    ├── Cancelled            1     ├── FailedPrecondition   9
    ├── Unknown              2     ├── Aborted             10
    ├── InvalidArgument      3     ├── OutOfRange          11
    ├── DeadlineExceeded     4     ├── Unimplemented       12
    ├── NotFound             5     ├── Internal            13
    ├── AlreadyExists        6     ├── Unavailable         14
    ├── PermissionDenied     7     ├── DataLoss            15
    ├── ResourceExhausted    8     └── Unauthenticated     16

Every error has a machine-readable `reason` (UPPER_SNAKE, as in the proto comments) and a message
of one sentence that names the cause and, where there is one, the cure. `llmos.lib.rpc` alone
converts to and from gRPC status (google.rpc.ErrorInfo carries the reason, as in AIP-193).
"""

from __future__ import annotations

from typing import ClassVar

DOMAIN = "llmos"


class LLMOSError(Exception):
    """Root of all errors that LLM OS raises on purpose."""

    code: ClassVar[int] = 2

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        retry_after_s: float | None = None,
        details: dict[str, str] | None = None,
    ) -> None:
        """Remember the `reason` (UPPER_SNAKE), the sentence for people and optional details."""
        if message.endswith("..") and not message.endswith("..."):
            message = message[:-1]  # a cause that is quoted at its end brought its own full stop
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.retry_after_s = retry_after_s
        self.details = details or {}

    def __str__(self) -> str:
        """Return the sentence for people."""
        return self.message

    def __repr__(self) -> str:
        """Return class, reason and message."""
        return f"{type(self).__name__}({self.reason!r}, {self.message!r})"

    def __reduce__(self) -> tuple[type[LLMOSError], tuple[str, str]]:
        """Let copies keep reason and message."""
        return type(self), (self.reason, self.message)


class Cancelled(LLMOSError):
    """The caller gave up."""

    code = 1


class Unknown(LLMOSError):
    """An error of a foreign server that says nothing better."""

    code = 2


class InvalidArgument(LLMOSError):
    """The request is wrong whatever the state of the system."""

    code = 3


class DeadlineExceeded(LLMOSError):
    """The deadline passed, or cannot be met any more."""

    code = 4


class NotFound(LLMOSError):
    """What the request names is not there."""

    code = 5


class AlreadyExists(LLMOSError):
    """What the request creates is there already."""

    code = 6


class PermissionDenied(LLMOSError):
    """The caller is known and may not."""

    code = 7


class ResourceExhausted(LLMOSError):
    """A limit, a quota or a disk is full; often with `retry_after_s`."""

    code = 8


class FailedPrecondition(LLMOSError):
    """The system is not in the state that the request needs; retrying alone does not help."""

    code = 9


class Aborted(LLMOSError):
    """A concurrent change won; read again and retry."""

    code = 10


class OutOfRange(LLMOSError):
    """Past the valid range, e.g. beyond the context or the end of a file."""

    code = 11


class Unimplemented(LLMOSError):
    """No such service or method, or one that is not supported here."""

    code = 12


class Internal(LLMOSError):
    """A bug of ours."""

    code = 13


class Unavailable(LLMOSError):
    """Not reachable now; the reason says whether the call may have run."""

    code = 14


class DataLoss(LLMOSError):
    """Stored or transmitted bytes are not what they were."""

    code = 15


class Unauthenticated(LLMOSError):
    """No valid credential."""

    code = 16


BY_CODE: dict[int, type[LLMOSError]] = {c.code: c for c in LLMOSError.__subclasses__()}
NAMES: dict[int, str] = {
    0: "OK",
    1: "CANCELLED",
    2: "UNKNOWN",
    3: "INVALID_ARGUMENT",
    4: "DEADLINE_EXCEEDED",
    5: "NOT_FOUND",
    6: "ALREADY_EXISTS",
    7: "PERMISSION_DENIED",
    8: "RESOURCE_EXHAUSTED",
    9: "FAILED_PRECONDITION",
    10: "ABORTED",
    11: "OUT_OF_RANGE",
    12: "UNIMPLEMENTED",
    13: "INTERNAL",
    14: "UNAVAILABLE",
    15: "DATA_LOSS",
    16: "UNAUTHENTICATED",
}
