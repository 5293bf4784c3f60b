"""The memory server's configuration."""

from __future__ import annotations

import dataclasses

from llmos.lib.config import ServerConfig, option


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryConfig(ServerConfig):
    """What `[memory]` in llmos.toml may say."""

    shm_dir: str = option("", "file system for buffers (default: /dev/shm, else run/shm)")
    buffer_bytes: int = option(0, "all buffers together; 0 = half of that file system")
    max_buffer_bytes: int = option(0, "largest buffer; 0 = as large as all together")
    ram_fraction: float = option(0.7, "share of RAM (or of the cgroup's limit) to grant")
    vram_fraction: float = option(0.9, "share of each GPU's memory to grant")
    grant_ttl_s: float = option(60.0, "a grant that is not reported for so long is dropped")
    detach_grace_s: float = option(2.0, "time for a detached process to attach again")
    sync_grace_s: float = option(10.0, "the same after the kernel itself was away")
