"""Configuration of llmos-execution."""

from __future__ import annotations

from dataclasses import dataclass

from llmos.lib.config import ServerConfig, option


@dataclass(frozen=True, kw_only=True)
class ExecutionConfig(ServerConfig):
    """What the execution manager can be told."""

    threads: int = option(0, "compute threads of a worker; 0 = all cores it may use")
    device: str = option("", "device for models: cpu or cuda:0 (default: a GPU if there is one)")
    credits: int = option(64, "calls that a worker takes at a time; more wait in the kernel")
    load_timeout_s: float = option(300.0, "give up loading a model after this many seconds")
    drain_s: float = option(60.0, "an unloaded model's calls may go on for this many seconds")
    patience_s: float = option(20.0, "wait this long for storage or memory to come back")
