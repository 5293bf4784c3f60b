"""The attachment of this process to the kernel. (Client library; see port.proto for the wire.)"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from llmos.lib.host import new_instance


@dataclass(frozen=True)
class ExportSpec:
    """Declaration of a service that this port serves; see Export in port.proto."""

    service: str
    keys: Sequence[str] = ("",)
    credits: int = 0
    fault_handler: bool = False
    stall_ms: int = 0


class Port:
    """One attachment. Reconnects by itself; `channel` is a grpc.aio.Channel for generated stubs."""

    channel: grpc.aio.Channel

    def __init__(self, address: str, name: str) -> None:
        """Prepare; nothing is opened before `start`."""
        self.address = address
        self.name = name
        self.instance = new_instance()

    def serve(self, spec: ExportSpec, handlers: dict[str, Any]) -> None:
        """Serve a service; before `start`."""

    async def export(self, spec: ExportSpec) -> None:
        """Change keys or credits of a served service; returns when the kernel acknowledged."""

    async def start(self) -> None:
        """Attach; returns when the kernel has acknowledged the exports."""

    async def stop(self, grace_s: float) -> None:
        """Drain and detach."""
