"""Configuration of the gateway process."""

from __future__ import annotations

from dataclasses import dataclass

from llmos.lib.config import ServerConfig, option
from llmos.lib.errors import InvalidArgument

ADMIN = ("local", "keys", "all", "none")  # values of GatewayConfig.admin


@dataclass(frozen=True, kw_only=True)
class GatewayConfig(ServerConfig):
    """What the gateway can be told."""

    host: str = option("127.0.0.1", "address that HTTP listens on")
    port: int = option(8080, "TCP port of HTTP; 0 = any free one, see <run_dir>/gateway.address")
    processes: int = option(1, "processes that answer HTTP on the port, 1 to 64")
    sibling: int = option(0, "which of them this is; the first one, 0, starts the others")
    request_timeout_s: float = option(600.0, "deadline of one request, seconds")
    body_timeout_s: float = option(60.0, "how long a client may take to send a body, seconds")
    max_body_bytes: int = option(16 << 20, "largest request body, bytes")
    max_prompts: int = option(128, "most prompts in one completions request")
    admin: str = option(
        "local",
        "who may use the console and /llmos/v1: local = from this machine only, keys = who has an "
        "admin's key (llmos-ctl key create --admin), all, none",
    )
    admin_hosts: str = option(
        "", "names, besides IP addresses and localhost, under which browsers reach the console"
    )
    auth: str = option(
        "none", "who may use /v1 and /v2: none = everybody who reaches them, keys = llmos-ctl key"
    )
    cors_origins: str = option(
        "", "origins whose pages may use /v1 and /v2, by commas, * = all; empty = none"
    )
    tls_cert: str = option("", "PEM file of the certificate; with it HTTP speaks TLS alone")
    tls_key: str = option("", "PEM file of its key")
    otlp_endpoint: str = option(
        "", "OpenTelemetry collector that takes OTLP over HTTP, e.g. http://host:4318; empty = none"
    )
    sessions: bool = option(False, "chats may name a `session`, which the OS remembers")
    session_tokens: int = option(2048, "tokens that a chat in a session sees of it")
    drain_s: float = option(8.0, "how long running answers may go on after SIGTERM, seconds")

    def __post_init__(self) -> None:
        """Refuse values that cannot work. Raises InvalidArgument BAD_CONFIG."""
        if not 0 <= self.port <= 65535:
            raise InvalidArgument("BAD_CONFIG", f"port = {self.port} is not in 0 to 65535.")
        if not 0 <= self.sibling < self.processes <= 64:
            raise InvalidArgument(
                "BAD_CONFIG",
                f"processes = {self.processes} must be 1 to 64, and sibling below it.",
            )
        for name in (
            "request_timeout_s",
            "body_timeout_s",
            "max_body_bytes",
            "max_prompts",
            "session_tokens",
        ):
            if not getattr(self, name) > 0:
                raise InvalidArgument("BAD_CONFIG", f"{name} must be over 0.")
        if self.admin not in ADMIN:
            raise InvalidArgument("BAD_CONFIG", f"admin = {self.admin!r} is none of {ADMIN}.")
        if self.auth not in ("none", "keys"):
            raise InvalidArgument("BAD_CONFIG", f"auth = {self.auth!r} is not none or keys.")
        if self.admin == "keys" and self.auth != "keys":
            raise InvalidArgument("BAD_CONFIG", 'admin = "keys" needs auth = "keys".')
        if bool(self.tls_cert) != bool(self.tls_key):
            raise InvalidArgument("BAD_CONFIG", "tls_cert and tls_key go together; give both.")
        if not self.drain_s >= 0:
            raise InvalidArgument("BAD_CONFIG", "drain_s must be 0 or more.")
