"""Every bound of the kernel, in one place. Admin may change them at run time."""

from __future__ import annotations

from dataclasses import dataclass

from google.protobuf.message import Message


@dataclass
class Limits:
    """Bounds; times in seconds, sizes in bytes."""

    max_frame_bytes: int = 1 << 20
    initial_window: int = 4 << 20
    absence_grace_s: float = 15.0  # how long calls wait for a server that is away
    startup_grace_s: float = 5.0  # how long after its start the kernel waits for unknown services
    max_attempts: int = 4  # servers that one call is given to without getting further
    max_queued: int = 100_000  # calls waiting in the kernel
    max_queued_per_key: int = 20_000  # calls waiting for one key
    max_kept_bytes: int = 16 << 20  # request bytes kept per call for its re-dispatch
    max_cookie_bytes: int = 64 << 10  # resume log per call
    ageing_s: float = 10.0  # a call that waited so long gets every fourth turn
    max_fault_tries: int = 3  # faults that succeed without making the key hot
    max_exports: int = 1_000  # services per port
    max_services: int = 10_000  # in all; a service once seen is known until the kernel restarts
    max_depth: int = 50  # calls nested in one another
    max_keys: int = 100_000  # keys per export


def apply(change: Message, limits: object) -> None:
    """Set the bounds that a KernelLimits or TenantLimits names."""
    for field, value in change.ListFields():
        if field.name != "tenant":
            setattr(limits, field.name, value)
