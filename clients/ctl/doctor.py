"""`llmos-ctl doctor`: looks at the machine and the installation, and says what to do."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import typer

from llmos.clients.ctl.checks import BAD, GOOD, WARN, Finding, disk, limits, machine, memory
from llmos.clients.ctl.output import duration
from llmos.clients.ctl.session import Session, command, connects
from llmos.lib.errors import FailedPrecondition, LLMOSError

_MARKS = {GOOD: "ok", WARN: "look", BAD: "BAD"}
_LIMIT_S = 5.0
# A module of each extra tells whether the extra is installed.
_EXTRAS = {
    "storage": "sqlalchemy",
    "execution": "torch",
    "optimizer": "onnxscript",
    "gateway": "starlette",
}


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    examples = [
        "llmos-ctl doctor",
        "llmos-ctl doctor -o json | jq '.[] | select(.state != \"ok\")'",
    ]
    command(app, examples=examples)(doctor)


def doctor(
    session: Session,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail also for what is only worth a look.")
    ] = False,
) -> None:
    """Check machine, GPU, versions, limits, ports, disk and what runs; say what to do.

    Exits with 7 when something is bad. Nothing is changed.
    """
    found = [finding for check in _checks(session) for finding in check()]
    rows = [[_MARKS[f.state], f.about, f.what, f.cure] for f in found]
    value = [
        {"state": _MARKS[f.state].lower(), "about": f.about, "what": f.what, "cure": f.cure}
        for f in found
    ]
    session.out.rows(["", "ABOUT", "FOUND", "DO"], rows, value)
    bad = [f for f in found if f.state == BAD or (strict and f.state == WARN)]
    if bad:
        names = ", ".join(sorted({f.about for f in bad}))
        raise FailedPrecondition("NOT_HEALTHY", f"{len(bad)} findings need attention: {names}.")


def _checks(session: Session) -> list[Callable[[], Iterator[Finding]]]:
    return [
        machine,
        memory,
        gpus,
        packages,
        limits,
        lambda: disk(session.state_dir),
        lambda: ports(session),
        lambda: running(session),
    ]


def gpus() -> Iterator[Finding]:
    """Look for NVIDIA GPUs, and whether the installed torch can use them."""
    try:
        import pynvml
    except ImportError:
        yield Finding(WARN, "gpu", "cannot look: pynvml is missing", "pip install 'llmos[memory]'")
        return
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as exc:
        yield Finding(GOOD, "gpu", f"none ({exc}); models run on the CPU")
        return
    try:
        driver = pynvml.nvmlSystemGetDriverVersion()
        for number in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(number)
            room = pynvml.nvmlDeviceGetMemoryInfo(handle)
            name = pynvml.nvmlDeviceGetName(handle)
            text = f"{name}, {room.free / 2**30:.1f} of {room.total / 2**30:.1f} GiB free"
            yield Finding(GOOD, f"gpu {number}", f"{text}, driver {driver}")
    finally:
        pynvml.nvmlShutdown()
    if not _torch_has_cuda():
        yield Finding(
            WARN, "gpu", "torch is a build without CUDA", "install torch's build for your driver"
        )


def _torch_has_cuda() -> bool:
    """Return whether torch was built for CUDA, by its version: importing it takes seconds."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return "+cpu" not in version("torch")
    except PackageNotFoundError:
        return True  # `packages` says that it is missing


def packages() -> Iterator[Finding]:
    """Look for the parts of the distribution and at the versions that matter."""
    from importlib.metadata import version
    from importlib.util import find_spec

    kept = ("llmos", "grpcio", "protobuf")
    yield Finding(GOOD, "versions", ", ".join(f"{name} {version(name)}" for name in kept))
    lacking = [extra for extra, module in _EXTRAS.items() if find_spec(module) is None]
    if lacking:
        cure = f"pip install 'llmos[{','.join(lacking)}]', if they are to run here"
        yield Finding(WARN, "extras", f"not installed: {', '.join(lacking)}", cure)
    if shutil.which("c++") is None and shutil.which("g++") is None:
        cure = "install a C++ compiler (Debian: apt-get install g++)"
        yield Finding(WARN, "compiler", "none: quantised models run by slower code", cure)


def ports(session: Session) -> Iterator[Finding]:
    """Look whether the TCP ports of the shipped settings are free, while nothing runs here."""
    import socket

    if session.init_answers():
        return
    for name, number in (("kernel", 50051), ("gateway", 8080)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", number))
            except OSError as exc:
                cure = f"stop what listens there, or set another port for {name} in llmos.toml"
                yield Finding(BAD, f"port {number}", f"{name} cannot have it: {exc.strerror}", cure)
                continue
        yield Finding(GOOD, f"port {number}", f"free for {name}")


def running(session: Session) -> Iterator[Finding]:
    """Look at the LLM OS of the state directory: processes, ports that hang, crashes, news."""
    if not session.init_answers():
        if session.given_address:
            yield from _kernel(session)
            return
        cure = "llmos-ctl up"
        yield Finding(GOOD, "LLM OS", f"does not run in {session.state_dir}", cure)
        return
    yield from _processes(session)
    if session.given_address or connects(session.socket("kernel")):
        yield from _kernel(session)
    else:
        yield Finding(BAD, "kernel", "does not answer", "llmos-ctl logs kernel.crash")


def _processes(session: Session) -> Iterator[Finding]:
    from llmos.api.init.v1 import init_pb2, init_pb2_grpc

    stub = session.init(init_pb2_grpc.InitStub)
    reply = stub.ListProcesses(init_pb2.ListProcessesRequest(), timeout=session.limit(_LIMIT_S))
    alive = [p for p in reply.processes if p.state == init_pb2.PROCESS_STATE_RUNNING]
    yield Finding(GOOD, "processes", f"{len(alive)} run")
    for process in reply.processes:
        if process.managed and process.state != init_pb2.PROCESS_STATE_RUNNING:
            what = f"does not run: {process.last_exit or 'it is being started'}"
            yield Finding(BAD, process.name, what, f"llmos-ctl logs {process.name}.crash")
        elif process.restarts:
            what = f"was restarted {process.restarts} times, the last one: {process.last_exit}"
            yield Finding(WARN, process.name, what, f"llmos-ctl logs {process.name}.crash")


def _kernel(session: Session) -> Iterator[Finding]:
    import grpc

    from llmos.api.kernel.v1 import admin_pb2, admin_pb2_grpc
    from llmos.lib.rpc import from_exception

    try:
        stub = session.kernel(admin_pb2_grpc.AdminStub)
        limit: Any = session.limit(_LIMIT_S)
        attached = stub.ListPorts(admin_pb2.ListPortsRequest(), timeout=limit).ports
        services = stub.ListServices(admin_pb2.ListServicesRequest(), timeout=limit).services
    except (grpc.RpcError, LLMOSError) as exc:
        error = from_exception(exc)
        yield Finding(BAD, "kernel", f"does not answer: {error.message}", "llmos-ctl logs kernel")
        return
    yield Finding(GOOD, "kernel", f"answers; {len(attached)} ports are attached")
    for port in attached:
        if port.stalled:
            cure = f"llmos-ctl logs {port.name}; init restarts what it manages"
            what = f"hangs: {port.running} calls in progress and none finished"
            yield Finding(BAD, port.name, what, cure)
    for service in services:
        for queue in service.queues:
            if queue.oldest_s > 30:
                short = service.service.rsplit(".", 1)[-1]
                what = (
                    f"{queue.queued} calls of {short} wait, the oldest {duration(queue.oldest_s)}"
                )
                yield Finding(WARN, queue.key or short, what, "llmos-ctl kernel calls")
