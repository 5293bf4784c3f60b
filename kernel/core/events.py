"""What goes into the core and what comes out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llmos.api.kernel.v1 import admin_pb2
from llmos.api.kernel.v1 import port_pb2 as pb
from llmos.lib.errors import LLMOSError

if TYPE_CHECKING:
    from llmos.kernel.core.state import PortState


@dataclass(slots=True)
class Attached:
    """A stream was opened. `own`: it is the kernel's own end, which may speak for others."""

    port: int
    own: bool = False


@dataclass(slots=True)
class Detached:
    """A stream has ended, for whatever reason."""

    port: int


@dataclass(slots=True)
class Received:
    """Envelopes came in one frame."""

    port: int
    envelopes: Sequence[pb.Envelope]


@dataclass(slots=True)
class Tick:
    """Time has passed."""


@dataclass(slots=True)
class CancelRequested:
    """An operator cancels a call."""

    call: int


@dataclass(slots=True)
class DrainRequested:
    """An operator drains a port."""

    port: int


@dataclass(slots=True)
class LimitsChanged:
    """An operator changes limits; the request is sane."""

    request: admin_pb2.UpdateLimitsRequest


Event = Attached | Detached | Received | Tick | CancelRequested | DrainRequested | LimitsChanged


@dataclass(slots=True)
class PortChange:
    """Something that watchers of ports are told; `what` is a WatchPortsResponse.Event."""

    what: int
    port: PortState


@dataclass(slots=True)
class Actions:
    """What the transport must do."""

    # Envelopes per port, in order.
    frames: dict[int, list[pb.Envelope]] = field(default_factory=lambda: defaultdict(list))
    close: list[tuple[int, LLMOSError]] = field(default_factory=list)  # ports whose stream ends
    changes: list[PortChange] = field(default_factory=list)  # for watchers
    wake: float | None = None  # when to send the next Tick; None = no need
