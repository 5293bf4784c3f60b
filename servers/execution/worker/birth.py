"""From fork to serving: what a worker does first, and how it tells the manager. No grpc here."""

from __future__ import annotations

import faulthandler
import logging
import os
import random
import socket
import sys
import threading
import traceback
from pathlib import Path
from typing import NoReturn

from setproctitle import setproctitle

from llmos.api.execution.v1 import zygote_pb2 as pb
from llmos.lib import log as logs
from llmos.lib.errors import LLMOSError, ResourceExhausted, Unavailable
from llmos.servers.execution import heap
from llmos.servers.execution.engine import select
from llmos.servers.execution.engine.base import Engine, ModelSpec
from llmos.servers.execution.wire import name_of, pack, unpack

EXIT_CANNOT_LOAD = 3  # the reason was told
EXIT_ORPHAN = 4  # nobody waits for this worker any more
EXIT_THREAD_DIED = 70  # a thread of the engine ended by an exception; see the log
_LOG_LIMIT = 4 << 20

log = logging.getLogger(__name__)


class Orphan(Exception):
    """The zygote or the manager that wanted this worker is gone."""


class Parent:
    """The line to the zygote, from fork to ready."""

    def __init__(self, sock: socket.socket) -> None:
        """Take the socket."""
        self._sock = sock
        self._unread = bytearray()

    def tell(self, event: pb.ZygoteEvent) -> None:
        """Send an event. Raises Orphan."""
        try:
            self._sock.sendall(pack(event))
        except OSError as exc:
            raise Orphan from exc

    def wait_go(self) -> pb.GoWorker:
        """Block until the manager lets us load. Raises Orphan."""
        while (command := unpack(self._unread, pb.ZygoteCommand)) is None:
            data = self._sock.recv(1 << 16)
            if not data:
                raise Orphan
            self._unread += data
        return command.go

    def ready(self, info: pb.WorkerInfo) -> None:
        """Say that we serve, and hang up. Raises Orphan."""
        self.tell(pb.ZygoteEvent(ready=pb.WorkerReady(pid=os.getpid(), worker=info)))
        self._sock.close()

    def failed(self, error: LLMOSError) -> None:
        """Say why we do not serve. Raises Orphan."""
        failed = pb.WorkerFailed(
            pid=os.getpid(), code=error.code, reason=error.reason, message=error.message
        )
        self.tell(pb.ZygoteEvent(failed=failed))


def be_worker(order: pb.WorkerOrder, sock: socket.socket) -> NoReturn:
    """Turn this freshly forked process into a worker; ends the process."""
    code = 1
    try:
        os.setsid()
        name = name_of(order.ref, order.replica)
        setproctitle(f"llmos-worker {name}")
        _redirect(log_file(Path(order.state_dir), name))
        logs.setup(f"worker/{name}", order.log_level)
        faulthandler.enable()
        threading.excepthook = _thread_died
        if order.cpus:
            os.sched_setaffinity(0, order.cpus)
        random.seed()  # else every worker continues the zygote's sequence
        log.info("born", extra={"pid": os.getpid(), "device": order.device})
        code = _run(order, Parent(sock))
    except Orphan:
        log.warning("nobody waits for this worker any more")
        code = EXIT_ORPHAN
    except BaseException:  # outermost: nothing may return into the zygote's loop
        traceback.print_exc()
    finally:
        # Not sys.exit: exit handlers that the zygote registered are not ours to run.
        logging.shutdown()
        sys.stderr.flush()
        os._exit(code)


def _run(order: pb.WorkerOrder, parent: Parent) -> int:
    try:
        engine, granted = _load(order, parent)
        # The zygote has it, but for this module it is the other way round: `serve` imports grpc.
        from llmos.servers.execution.worker.serve import run

        run(order, engine, granted, parent)
    except LLMOSError as exc:
        log.error("cannot serve", extra={"reason": exc.reason, "cause": exc.message})
        parent.failed(exc)
        return EXIT_CANNOT_LOAD
    return 0


def _load(order: pb.WorkerOrder, parent: Parent) -> tuple[Engine, int]:
    spec = spec_of(order)
    try:
        module = select.module_for(spec)
        module.check(spec)
        needed = int(module.estimate_bytes(spec))
        parent.tell(pb.ZygoteEvent(planned=pb.WorkerPlanned(pid=os.getpid(), bytes=needed)))
        granted = parent.wait_go().granted_bytes
        loaded = module.load(spec)
        heap.give_back()  # of what was read and is not kept
        return loaded, granted
    except (LLMOSError, Orphan):
        raise
    except ModuleNotFoundError as exc:
        if (exc.name or "").startswith("llmos"):
            raise
        engine = select.engine_for(spec.format, spec.task)
        raise select.missing_extra(spec.ref, engine, exc.name or "?") from exc
    except MemoryError as exc:
        log.exception("out of memory while loading")
        raise ResourceExhausted(
            "OVER_BUDGET", f"Not enough memory on {spec.device} to load {spec.ref}; unload others."
        ) from exc
    except Exception as exc:  # engines stand on libraries that raise what they like on bad files
        log.exception("cannot load")
        raise Unavailable(
            "LOAD_FAILED",
            f"Loading {spec.ref} failed ({type(exc).__name__}: {str(exc)[:300]}); "
            f"see {log_file(Path(order.state_dir), name_of(order.ref, order.replica))}.",
        ) from exc


def spec_of(order: pb.WorkerOrder) -> ModelSpec:
    """Return the engine's view of an order."""
    changes = dict(order.options.serving)
    if order.options.precision:
        changes["generate.precision"] = f'"{order.options.precision}"'
    return ModelSpec(
        ref=order.ref,
        format=order.format,
        task=order.task,
        files={f.name: Path(f.path) for f in order.files},
        context_length=order.context_length,
        device=order.device,
        threads=order.threads,
        precision=order.precision,
        state_dir=order.state_dir,
        asked_threads=order.options.threads,
        changes=changes,
        digests={f.name: f.sha256 for f in order.files if f.sha256},
        draft=_draft_of(order) if order.HasField("draft") else None,
    )


def _draft_of(order: pb.WorkerOrder) -> ModelSpec:
    draft = order.draft
    return ModelSpec(
        ref=draft.ref,
        format=draft.format,
        task="generate",
        files={f.name: Path(f.path) for f in draft.files},
        context_length=draft.context_length,
        device=order.device,
        threads=order.threads,
        state_dir=order.state_dir,
        digests={f.name: f.sha256 for f in draft.files if f.sha256},
    )


def log_file(state_dir: Path, name: str) -> Path:
    """Return where a worker logs."""
    return state_dir / "logs" / f"worker+{name}.log"


def _redirect(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if path.exists() and path.stat().st_size > _LOG_LIMIT:
        path.replace(path.with_suffix(".log.1"))
    out = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.close(null)
    os.close(out)


def _thread_died(args: threading.ExceptHookArgs) -> None:
    """End the process: a worker without its engine's thread would look alive and answer nothing."""
    try:
        name = args.thread.name if args.thread is not None else "?"
        value = args.exc_value or args.exc_type()
        log.critical("a thread died", extra={"ended": name}, exc_info=value)
        logging.shutdown()
    finally:
        os._exit(EXIT_THREAD_DIED)
