"""Starting init detached and following the boot; stopping by process records without an init."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import psutil

from llmos.api.init.v1 import init_pb2, init_pb2_grpc
from llmos.clients.ctl.session import Session
from llmos.lib.config import run_dir
from llmos.lib.errors import FailedPrecondition, InvalidArgument, ResourceExhausted, Unavailable
from llmos.lib.family import members
from llmos.lib.host import ProcessRecord, records

_POLL_S = 0.1
_GRACE_S = 12.0
_INIT_END_S = 20.0
_LOG_CAP = 16 << 20
_NO_ROOM = 1 << 16  # bytes
_INIT = "llmos-init: "

Processes = list[init_pb2.Process]


@dataclass
class Boot:
    """A boot in progress."""

    init: subprocess.Popen[bytes]
    log: Path
    log_start: int

    def last_words(self) -> str:
        """Return what init said last, without its name in front.

        Raises ResourceExhausted DISK_FULL when there is no room to say anything.
        """
        with self.log.open("rb") as file:
            file.seek(self.log_start)
            lines = file.read().decode(errors="replace").strip().splitlines()
        said = [line.removeprefix(_INIT) for line in lines if line.startswith(_INIT)]
        if shutil.disk_usage(self.log.parent).free < _NO_ROOM:
            seen = f" ({said[-1].rstrip('.')})" if said else ""
            raise ResourceExhausted(
                "DISK_FULL",
                f"No room on the disk of {self.log.parent}; free some and try again{seen}.",
            )
        return (said or lines or ["init ended without a word."])[-1]


def start(session: Session, config: Path | None) -> Boot:
    """Start init in a session of its own. Raises FailedPrecondition READ_ONLY."""
    run_dir(session.state_dir)  # says in one sentence when the directory cannot be written
    log = session.state_dir / "logs" / "init.log"
    argv = [sys.executable, "-m", "llmos.servers.init", "--state-dir", str(session.state_dir)]
    if config is not None:
        argv += ["--config", str(config)]
    try:
        log.parent.mkdir(exist_ok=True)
        if log.exists() and log.stat().st_size > _LOG_CAP:
            log.replace(log.with_name("init.log.1"))
        with log.open("ab") as output:
            position = output.tell()
            init = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
    except OSError as exc:
        raise FailedPrecondition(
            "READ_ONLY", f"Cannot write {log} ({exc.strerror}); check the state directory."
        ) from exc
    return Boot(init, log, position)


def follow(session: Session, boot: Boot, report: Callable[[Processes], None]) -> bool:
    """Call `report` as the boot goes on; return True when all is ready, False = it was up before.

    Raises FailedPrecondition START_FAILED, or InvalidArgument BAD_CONFIG, with init's sentence.
    """
    while True:
        code = boot.init.poll()
        if code is not None:
            said = boot.last_words()
            if code == 0:
                return False
            if code == 2:
                raise InvalidArgument("BAD_CONFIG", said)
            raise FailedPrecondition("START_FAILED", f"LLM OS did not start: {said}")
        if session.init_answers():
            try:
                processes = listed(session)
            except (grpc.RpcError, Unavailable):
                continue  # init is just ending; its exit code says why
            report(processes)
            if all(p.state == init_pb2.PROCESS_STATE_RUNNING for p in processes):
                return True
        time.sleep(_POLL_S)


def listed(session: Session) -> Processes:
    """Return init's list of processes."""
    stub = session.init(init_pb2_grpc.InitStub)
    request = init_pb2.ListProcessesRequest()
    return list(stub.ListProcesses(request, timeout=session.limit(10)).processes)


def shut_down(session: Session) -> Iterator[tuple[str, bool]]:
    """Stop everything; yield (name, it is gone). Returns when init itself is gone."""
    inits = [r for r in records(run_dir(session.state_dir)) if r.name == "init"]
    stub = session.init(init_pb2_grpc.InitStub)
    for step in stub.Shutdown(init_pb2.ShutdownRequest(), timeout=session.limit()):
        yield step.name, step.done
    deadline = time.monotonic() + _INIT_END_S
    while any(record.alive() for record in inits):
        if time.monotonic() > deadline:
            raise Unavailable("INIT_STAYS", f"init (pid {inits[0].pid}) does not end; kill it.")
        time.sleep(_POLL_S)
    yield "init", True


def orphans(session: Session) -> list[ProcessRecord]:
    """Return the processes that run though their init is gone."""
    return list(members(run_dir(session.state_dir))) if session.state_dir.exists() else []


def stop_orphans(found: list[ProcessRecord]) -> None:
    """Stop processes without init's help: SIGTERM, SIGKILL after a grace."""
    running = []
    for record in found:
        try:
            process = psutil.Process(record.pid)
            if record.alive():
                process.terminate()
                running.append(process)
        except psutil.NoSuchProcess:
            continue
    for process in psutil.wait_procs(running, timeout=_GRACE_S)[1]:
        process.kill()
