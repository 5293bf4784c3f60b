"""The storage server's configuration."""

from __future__ import annotations

import dataclasses

from llmos.lib.config import ServerConfig, option


@dataclasses.dataclass(frozen=True, kw_only=True)
class StorageConfig(ServerConfig):
    """What `[storage]` in llmos.toml may say."""

    database: str = option(
        "", "postgresql://USER:PASSWORD@HOST/NAME or sqlite:///FILE; empty = a file in state_dir"
    )
    imports: int = option(2, "imports that run at a time; others wait")
    blob_grace_s: float = option(86400.0, "uploads that no version has taken up go after this long")
    stall_s: float = option(
        30.0, "hung after this long with calls in progress and no progress; 0 = never"
    )
