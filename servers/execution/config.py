"""Configuration of llmos-execution."""

from __future__ import annotations

from dataclasses import dataclass

from llmos.lib.config import ServerConfig, option
from llmos.lib.errors import InvalidArgument


@dataclass(frozen=True, kw_only=True)
class ExecutionConfig(ServerConfig):
    """What the execution manager can be told."""

    threads: int = option(0, "compute threads of a worker; 0 = all cores it may use")
    device: str = option("", "device for models: cpu or cuda:0 (default: a GPU if there is one)")
    precision: str = option(
        "auto",
        "of language models: auto, fp32, bf16, int8 or int4; a version's serving.toml wins",
    )
    python_models: bool = option(
        False, "run models that bring Python code of their own, with the rights of this user"
    )
    shm_allow: str = option(
        "", "names of POSIX shared memory that clients may register: patterns, `cam-*, frames`"
    )
    credits: int = option(64, "calls that a worker takes at a time; more wait in the kernel")
    load_timeout_s: float = option(300.0, "give up loading a model after this many seconds")
    drain_s: float = option(60.0, "an unloaded model's calls may go on for this many seconds")
    patience_s: float = option(20.0, "wait this long for storage or memory to come back")
    stall_s: float = option(
        60.0, "hung after this long with calls in progress and no progress; 0 = never"
    )
    worker_stall_s: float = option(
        20.0, "a worker that has calls and computes nothing for so long is killed; 0 = never"
    )

    def __post_init__(self) -> None:
        """Check ranges. Raises InvalidArgument BAD_CONFIG."""
        for name in ("stall_s", "worker_stall_s"):
            if not getattr(self, name) >= 0:
                raise InvalidArgument("BAD_CONFIG", f"{name} must not be negative.")
        if self.precision not in ("auto", "fp32", "bf16", "int8", "int4"):
            raise InvalidArgument(
                "BAD_CONFIG",
                f"precision is {self.precision!r}; it is auto, fp32, bf16, int8 or int4.",
            )
