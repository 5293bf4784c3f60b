"""The memory server's configuration."""

from __future__ import annotations

import dataclasses

from llmos.lib.config import ServerConfig, option
from llmos.lib.errors import InvalidArgument


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryConfig(ServerConfig):
    """What `[memory]` in llmos.toml may say."""

    shm_dir: str = option("", "file system for buffers (default: /dev/shm, else run/shm)")
    buffer_bytes: int = option(0, "all buffers together; 0 = half of that file system")
    max_buffer_bytes: int = option(0, "largest buffer; 0 = as large as all together")
    tenant_buffer_bytes: int = option(0, "all buffers of one tenant; 0 = as all together")
    ram_fraction: float = option(0.7, "share of RAM (or of the cgroup's limit) to grant")
    vram_fraction: float = option(0.9, "share of each GPU's memory to grant")
    grant_ttl_s: float = option(60.0, "a grant that is not reported for so long is dropped")
    prefix_ram_fraction: float = option(
        0.25, "share of the buffers' memory for blocks of prefixes; 0 = keep none"
    )
    prefix_disk_bytes: int = option(
        4 << 30, "disk for blocks of prefixes that memory has no room for; 0 = none"
    )
    prefix_disk_spare_bytes: int = option(
        1 << 30, "free space of the file system that blocks of prefixes leave to others"
    )
    session_embedder: str = option(
        "", "model that makes vectors for the recall of turns; empty = only where a session says"
    )
    detach_grace_s: float = option(2.0, "time for a detached process to attach again")
    sync_grace_s: float = option(10.0, "the same after the kernel itself was away")
    stall_s: float = option(
        10.0, "hung after this long with calls in progress and no progress; 0 = never"
    )

    def __post_init__(self) -> None:
        """Check ranges. Raises InvalidArgument BAD_CONFIG."""
        for name in ("ram_fraction", "vram_fraction"):
            if not 0 < getattr(self, name) <= 1:
                raise InvalidArgument("BAD_CONFIG", f"{name} must be over 0 and at most 1.")
        if not 0 <= self.prefix_ram_fraction <= 1:
            raise InvalidArgument("BAD_CONFIG", "prefix_ram_fraction must be from 0 to 1.")
        for name in (
            "prefix_disk_bytes",
            "prefix_disk_spare_bytes",
            "buffer_bytes",
            "max_buffer_bytes",
            "tenant_buffer_bytes",
            "detach_grace_s",
            "sync_grace_s",
            "stall_s",
        ):
            if not getattr(self, name) >= 0:
                raise InvalidArgument("BAD_CONFIG", f"{name} must not be negative.")
        if not self.grant_ttl_s > 0:
            raise InvalidArgument("BAD_CONFIG", "grant_ttl_s must be over 0.")
