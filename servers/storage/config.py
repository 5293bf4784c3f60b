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
    encryption_key: str = option("", "key file: new files are encrypted; empty = they are not")
    cache_dir: str = option(
        "", "copies for reading by path; empty = in state_dir, in memory when encrypted"
    )
    cache_bytes: int = option(0, "most bytes of such copies; 0 = as the disk allows")
    upload_ttl_s: float = option(86400.0, "unfinished uploads are given up after this long")
    scrub_bytes_per_s: int = option(4 << 20, "speed of the check in the background; 0 = never")
    scrub_period_s: float = option(30 * 86400.0, "every blob is checked once in this time")
    require_signature: str = option(
        "", "public key (PEM): only versions signed by it are loaded; empty = all are"
    )
    direct: str = option(
        "", "address for fast reads of files; empty = a Unix socket when `listen` is one; none = no"
    )
    admins: str = option(
        "local", "tenants, by commas, that see all of the audit log and quotas, and do upkeep"
    )
    imports: int = option(2, "imports that run at a time; others wait")
    blob_grace_s: float = option(86400.0, "uploads that no version has taken up go after this long")
    stall_s: float = option(
        30.0, "hung after this long with calls in progress and no progress; 0 = never"
    )
    history_revisions: int = option(10_000, "changes of documents that watches can go back to")
    history_bytes: int = option(256 << 20, "most bytes of documents kept for their history")
