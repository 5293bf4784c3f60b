"""What is known of one HTTP request while it is answered."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from starlette.types import Scope

from llmos.api.execution.v1 import execution_pb2 as pb

_KEY = "llmos.trace"
_ID = re.compile(rb"[\x21-\x7e]{1,128}")
_PASSED_ON = (b"traceparent", b"tracestate")  # W3C trace context
_PRINTABLE = re.compile(rb"[\x20-\x7e]{1,512}")


@dataclass
class Trace:
    """One request: its id, what to pass on, and for metrics who answered and how it ended."""

    request_id: str
    passed_on: tuple[tuple[str, str], ...] = ()
    model: str = ""
    """`name@version` that answered; empty while none did."""
    tenant: str = ""
    """Whom the request's key belongs to; empty where no keys are wanted."""
    call_class: str = "interactive"
    """Class of its calls: a person waits, unless the key says otherwise."""
    status: int = 0
    """HTTP status that was sent."""
    timing: dict[str, float] = field(default_factory=dict)
    """What was measured of a generation, seconds and tokens; `llmos-ctl trace` draws it."""
    usages: list[tuple[pb.Usage, float, float]] = field(default_factory=list)
    """Of each generation: what it took, seconds to its first token and to its end."""
    began: float = field(default_factory=time.monotonic)
    """When the request came."""
    failed: int = 0
    """HTTP status that a stream would have had, had its failure come before its start."""

    @contextmanager
    def calling(self) -> Iterator[None]:
        """Time a call of the OS that is no generation: the body. Of several, the last counts."""
        start = time.monotonic() - self.began
        try:
            yield
        finally:
            self.timing.update(call_from_s=start, call_to_s=time.monotonic() - self.began)


def begin(scope: Scope) -> Trace:
    """Attach a new trace to the scope; the client's x-request-id is kept when it is sane."""
    headers = dict(scope["headers"])
    given = headers.get(b"x-request-id", b"")
    request_id = given.decode() if _ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"
    passed_on = tuple(
        (name.decode(), headers[name].decode())
        for name in _PASSED_ON
        if _PRINTABLE.fullmatch(headers.get(name, b""))
    )
    trace = Trace(request_id, passed_on)
    scope[_KEY] = trace
    return trace


def of(scope: Scope) -> Trace:
    """Return the trace that `begin` attached."""
    trace = scope[_KEY]
    assert isinstance(trace, Trace)
    return trace
