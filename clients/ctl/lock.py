"""Locks: one at a time does something, and who lost the lock changes nothing any more."""

from __future__ import annotations

import os
import socket
import sys
import time
import uuid
from typing import TYPE_CHECKING, Annotated

import typer

from llmos.clients.ctl.output import as_value, when
from llmos.clients.ctl.progress import note, status
from llmos.clients.ctl.session import QUICK_S, UINT64, Session, command

if TYPE_CHECKING:
    from llmos.api.storage.v1 import locks_pb2

app = typer.Typer(
    help="Locks, first come, first served, with fencing tokens.", no_args_is_help=True
)
Name = Annotated[str, typer.Argument(help="The lock: any text, e.g. deploy/prod.")]
Ttl = Annotated[
    float, typer.Option(min=0.1, max=86400, help="It ends so many seconds after its last renewal.")
]
Wait = Annotated[
    float | None,
    typer.Option(min=0, help="Wait so many seconds for it. [default: forever]", show_default=False),
]
FOREVER_MS = 365 * 86_400_000


@command(app, examples=["llmos-ctl lock acquire deploy/prod --ttl 600"])
def acquire(session: Session, name: Name, ttl: Ttl = 60.0, wait: Wait = None) -> None:
    """Take a lock for --ttl seconds. `llmos-ctl lock run` also renews it."""
    lease = grant(session, ttl)
    token = take(session, name, lease, wait)
    said = f"Lock {name} is yours for {ttl:g} s: LLMOS_FENCE={name}:{token}"
    session.out.say(said, {"name": name, "token": token, "lease": lease, "ttl_s": ttl})


def grant(session: Session, ttl: float) -> str:
    """Make a lease; return its id."""
    from llmos.api.storage.v1 import locks_pb2, locks_pb2_grpc

    stub = session.kernel(locks_pb2_grpc.LeasesStub)
    owner = f"{socket.gethostname()} pid {os.getpid()}"
    request = locks_pb2.GrantLeaseRequest(
        id=uuid.uuid4().hex, ttl_ms=int(ttl * 1000), owner=f"{owner} (llmos-ctl)"
    )
    return stub.GrantLease(request, timeout=session.limit(QUICK_S)).lease.id


def take(session: Session, name: str, lease: str, wait: float | None) -> int:
    """Wait for a lock, also while storage restarts; return its token."""
    import grpc

    from llmos.api.storage.v1 import locks_pb2, locks_pb2_grpc
    from llmos.lib.errors import Unavailable
    from llmos.lib.rpc import from_rpc_error

    deadline = None if wait is None else time.monotonic() + wait
    with status(f"waiting for {name}"):
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            request = locks_pb2.AcquireLockRequest(
                name=name, lease=lease, wait_ms=FOREVER_MS if left is None else int(left * 1000)
            )
            stub = session.kernel(locks_pb2_grpc.LocksStub)
            try:
                return stub.AcquireLock(request, timeout=session.limit(), wait_for_ready=True).token
            except grpc.RpcError as exc:
                error = from_rpc_error(exc)
                if not isinstance(error, Unavailable) or left == 0:
                    raise error from exc
            time.sleep(0.2)


@command(app, examples=["llmos-ctl lock release deploy/prod 42"])
def release(
    session: Session,
    name: Name,
    token: Annotated[
        int, typer.Argument(min=1, max=UINT64, help="What `lock acquire` gave; see `lock ls`.")
    ],
) -> None:
    """Give a lock (or a place in its queue) up."""
    from llmos.api.storage.v1 import locks_pb2, locks_pb2_grpc

    stub = session.kernel(locks_pb2_grpc.LocksStub)
    request = locks_pb2.ReleaseLockRequest(name=name, token=token)
    reply = stub.ReleaseLock(request, timeout=session.limit(QUICK_S))
    said = f"Released {name}." if reply.released else f"Token {token} did not hold {name} any more."
    session.out.say(said, as_value(reply))


@command(app, "list", watch=True)
@command(app, examples=["llmos-ctl lock ls", "llmos-ctl lock ls deploy/"], watch=True)
def ls(
    session: Session,
    prefix: Annotated[str, typer.Argument(help="Beginning of the names.")] = "",
) -> None:
    """List the locks that are held, their tokens and who waits."""
    from llmos.api.storage.v1 import locks_pb2, locks_pb2_grpc

    stub = session.kernel(locks_pb2_grpc.LocksStub)
    request = locks_pb2.ListLocksRequest(prefix=prefix)
    locks = stub.ListLocks(request, timeout=session.limit(QUICK_S)).locks
    columns = ["LOCK", "TOKEN", "WAITING", "SINCE", "HOLDER"]
    session.out.rows(columns, [_row(lock) for lock in locks], [as_value(lock) for lock in locks])


def _row(lock: locks_pb2.Lock) -> list[str]:
    by = lock.holder
    since = when(by.asked_unix_s)
    return [lock.name, str(by.token), str(len(lock.waiting)), since, by.owner or by.lease]


@command(
    app,
    examples=[
        "llmos-ctl lock run deploy/prod -- ./deploy.sh",
        "llmos-ctl lock run nightly --wait 0 -- llmos-ctl job submit export-onnx minilm --watch",
    ],
)
def run(
    session: Session,
    name: Name,
    words: Annotated[list[str], typer.Argument(metavar="-- COMMAND...", help="What to run.")],
    ttl: Ttl = 15.0,
    wait: Wait = None,
    grace: Annotated[
        float, typer.Option(min=0, help="Seconds from SIGTERM to SIGKILL when the lock is lost.")
    ] = 5.0,
) -> None:
    """Run a command while holding a lock; stop the command when the lock is lost.

    The command has LLMOS_FENCE=LOCK:TOKEN in its environment: llmos-ctl sends it with every call,
    so that storage refuses changes once the lock is lost. Exits with the command's exit code.
    """
    from llmos.clients.ctl.holding import Renewal, hold

    asked = time.monotonic()
    lease = grant(session, ttl)
    try:
        with Renewal(session, lease, ttl, asked) as renewal:
            token = take(session, name, lease, wait)
            renewal.held(name, token)
            code = hold(f"{name}:{token}", renewal.lost, words, grace)
    finally:
        revoke(session, lease)
    sys.exit(code)


def revoke(session: Session, lease: str) -> None:
    """End a lease now; when storage does not answer, it ends by itself."""
    import grpc

    from llmos.api.storage.v1 import locks_pb2, locks_pb2_grpc
    from llmos.lib.errors import Unavailable

    try:
        stub = session.kernel(locks_pb2_grpc.LeasesStub)
        stub.RevokeLease(locks_pb2.RevokeLeaseRequest(id=lease), timeout=5.0)
    except (grpc.RpcError, Unavailable):
        note("  storage does not answer; the lock ends with its time")
