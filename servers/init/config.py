"""Configuration of init: how eagerly it restarts, and how patient it is."""

from __future__ import annotations

import dataclasses

from llmos.lib.config import ServerConfig, option
from llmos.servers.init.life import Policy


@dataclasses.dataclass(frozen=True, kw_only=True)
class InitConfig(ServerConfig):
    """What init has beside every server's options; all times in seconds."""

    backoff_s: float = option(0.1, "pause before the second restart in a row; doubles each time")
    backoff_cap_s: float = option(10.0, "longest pause before a restart")
    healthy_s: float = option(30.0, "a process ready for this long starts its back-off afresh")
    hang_s: float = option(15.0, "a process whose health is unanswered this long is killed")
    start_attempts: int = option(3, "deaths before its first readiness that make `up` fail")
    log_cap_mib: int = option(16, "a log larger than this is set aside when its process starts")

    def policy(self) -> Policy:
        """Return the restart policy of every process."""
        return Policy(
            base_s=self.backoff_s,
            cap_s=self.backoff_cap_s,
            healthy_s=self.healthy_s,
            hang_s=self.hang_s,
            attempts=self.start_attempts,
        )
