"""The TCP side: the listening socket, its address on disk, and uvicorn inside our own loop."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import socket
import ssl
from collections.abc import Generator
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from llmos.lib.errors import FailedPrecondition
from llmos.servers.gateway.protocol import BoundedProtocol

ADDRESS_FILE = "gateway.address"
# Longer than pooling clients and proxies keep idle connections, so that they close first.
_KEEP_ALIVE_S = 75


def listen(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """Return a bound socket that listens; shared: further processes of this user may do so, too.

    Raises FailedPrecondition ADDRESS_IN_USE or BAD_ADDRESS.
    """
    try:
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as exc:
        raise FailedPrecondition(
            "BAD_ADDRESS", f"{host!r} is not an address of this machine ({exc}); change --host."
        ) from exc
    family, kind, protocol, _, address = infos[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(address)
        # Listen at once: with SO_REUSEADDR two sockets may be bound, and only one can listen.
        sock.listen(2048)
    except OSError as exc:
        sock.close()
        if exc.errno == errno.EADDRINUSE:
            raise FailedPrecondition(
                "ADDRESS_IN_USE",
                f"TCP port {port} on {host} is in use; stop what listens there or choose another "
                "by --port or LLMOS_GATEWAY_PORT (0 = any free one).",
            ) from exc
        raise FailedPrecondition(
            "BAD_ADDRESS",
            f"Cannot listen on {host} port {port} ({exc.strerror}); choose others by --host and "
            "--port.",
        ) from exc
    return sock


def listen_first(host: str, port: int, run_dir: Path) -> socket.socket:
    """As `listen` with `shared`, for the first of several processes.

    Another program's sockets of the same user could be joined by mistake, so nobody may listen
    there but what a first process before this one, which died, has left.
    """
    try:
        listen(host, port).close()
    except FailedPrecondition as exc:
        announcement = run_dir / ADDRESS_FILE
        left = announcement.read_text().strip() if announcement.exists() else ""
        if exc.reason != "ADDRESS_IN_USE" or left.rpartition(":")[2] != str(port):
            raise
    return listen(host, port, shared=True)


def address_of(sock: socket.socket) -> str:
    """Return `host:port` of a bound socket, ready for a URL."""
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@contextlib.contextmanager
def announced(address: str, run_dir: Path) -> Generator[None, None, None]:
    """Keep `address` in <run_dir>/gateway.address while the body runs."""
    path = run_dir / ADDRESS_FILE
    temporary = run_dir / f"{ADDRESS_FILE}.{os.getpid()}.tmp"
    temporary.write_text(address + "\n")
    temporary.replace(path)
    try:
        yield
    finally:
        # A successor may have written its own by now.
        with contextlib.suppress(FileNotFoundError):
            if path.read_text() == address + "\n":
                path.unlink()


class HttpServer(uvicorn.Server):
    """uvicorn without its signal handling, which belongs to the process."""

    def __init__(self, app: ASGIApp, drain_s: float, tls_cert: str = "", tls_key: str = "") -> None:
        """Serve `app`; after `stop`, running answers have `drain_s` to finish.

        tls_cert, tls_key: PEM files; with them it speaks TLS alone.
        """
        super().__init__(
            uvicorn.Config(
                app,
                lifespan="off",
                http=BoundedProtocol,
                ssl_certfile=tls_cert or None,
                ssl_keyfile=tls_key or None,
                ws="none",
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=math.ceil(drain_s),
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave signals alone."""
        yield

    def load(self) -> None:
        """Read the TLS files. Raises FailedPrecondition BAD_TLS."""
        try:
            self.config.load()
        except (OSError, ssl.SSLError) as exc:
            raise FailedPrecondition(
                "BAD_TLS", f"tls_cert and tls_key cannot be used ({exc}); give PEM files of a pair."
            ) from exc

    def stop(self) -> None:
        """Make `serve` drain and return."""
        self.should_exit = True
