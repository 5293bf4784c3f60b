"""Settings of the optimizer server."""

from __future__ import annotations

from dataclasses import dataclass

from llmos.lib.config import ServerConfig, option


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(ServerConfig):
    """ServerConfig and what is the optimizer's own."""

    parallel: int = option(1, "jobs that run at the same time")
    threads: int = option(0, "threads of one job; 0 = all cores the server may use")
    max_crashes: int = option(3, "a job whose process died this often has failed")
    keep_jobs: int = option(1000, "ended jobs that are remembered; the oldest are forgotten first")
    stall_s: float = option(
        30.0, "hung after this long with calls in progress and no progress; 0 = never"
    )
