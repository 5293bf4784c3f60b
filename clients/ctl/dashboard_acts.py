"""What the keys of `llmos-ctl top` do to the chosen row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmos.clients.ctl.session import QUICK_S
from llmos.lib.errors import LLMOSError

if TYPE_CHECKING:
    from llmos.clients.ctl.session import Session

Row = dict[str, Any]
_LOAD_S = 120.0


@dataclass(frozen=True)
class Deed:
    """A verb for people, what it is done to, why it cannot be done to a row, and the doing."""

    verb: str
    name: Callable[[Row], str]
    why_not: Callable[[Row], str]
    call: Callable[[Session, Row], str]

    def run(self, session: Session, row: Row) -> str:
        """Do it; return what to say, also when it failed."""
        import grpc

        from llmos.lib.rpc import from_exception

        try:
            return self.call(session, row)
        except (grpc.RpcError, LLMOSError) as exc:
            return from_exception(exc).message


def _name(row: Row) -> str:
    return str(row["name"])


def _ref(row: Row) -> str:
    return f"{row['name']}@{row['version']}"


def _id(row: Row) -> str:
    return str(row["id"])


def _fine(row: Row) -> str:
    return ""


def _restart(session: Session, row: Row) -> str:
    from llmos.api.init.v1 import init_pb2, init_pb2_grpc

    stub = session.kernel(init_pb2_grpc.InitStub)
    request = init_pb2.RestartProcessRequest(name=row["name"])
    process = stub.RestartProcess(request, timeout=session.limit(_LOAD_S)).process
    return f"{process.name} runs again as pid {process.pid}."


def _drain(session: Session, row: Row) -> str:
    from llmos.api.kernel.v1 import admin_pb2, admin_pb2_grpc

    stub = session.kernel(admin_pb2_grpc.AdminStub)
    request = admin_pb2.DrainPortRequest(port=row["port"])
    running = stub.DrainPort(request, timeout=session.limit(QUICK_S)).running
    return f"{row['name']} drains; {running} calls still run."


def _load(session: Session, row: Row) -> str:
    from llmos.api.execution.v1 import execution_pb2, execution_pb2_grpc

    stub = session.kernel(execution_pb2_grpc.ExecutionStub)
    request = execution_pb2.LoadModelRequest(model=_ref(row))
    model = stub.LoadModel(request, timeout=session.limit(_LOAD_S)).model
    return f"{_ref(row)} is loaded, pid {model.pid}."


def _unload(session: Session, row: Row) -> str:
    from llmos.api.execution.v1 import execution_pb2, execution_pb2_grpc

    stub = session.kernel(execution_pb2_grpc.ExecutionStub)
    request = execution_pb2.UnloadModelRequest(model=_ref(row))
    stub.UnloadModel(request, timeout=session.limit(_LOAD_S))
    return f"{_ref(row)} is unloaded."


def _cancel_call(session: Session, row: Row) -> str:
    from llmos.api.kernel.v1 import admin_pb2, admin_pb2_grpc

    stub = session.kernel(admin_pb2_grpc.AdminStub)
    stub.CancelCall(admin_pb2.CancelCallRequest(id=row["id"]), timeout=session.limit(QUICK_S))
    return f"Call {row['id']} is cancelled."


def _cancel_job(session: Session, row: Row) -> str:
    from llmos.api.optimizer.v1 import jobs_pb2, jobs_pb2_grpc

    stub = session.kernel(jobs_pb2_grpc.JobsStub)
    stub.CancelJob(jobs_pb2.CancelJobRequest(id=row["id"]), timeout=session.limit(QUICK_S))
    return f"Job {row['id']} is cancelled."


def _not_managed(row: Row) -> str:
    return "" if row["managed"] else f"{row['name']} is not in init's manifest."


def _not_attached(row: Row) -> str:
    return "" if row["port"] else f"{row['name']} has no port."


DEEDS: dict[tuple[str, str], Deed] = {
    ("servers", "r"): Deed("restart", _name, _not_managed, _restart),
    ("servers", "d"): Deed("drain", _name, _not_attached, _drain),
    ("models", "l"): Deed("load", _ref, _fine, _load),
    ("models", "u"): Deed("unload", _ref, _fine, _unload),
    ("calls", "c"): Deed("cancel call", _id, _fine, _cancel_call),
    ("jobs", "c"): Deed("cancel job", _id, _fine, _cancel_job),
}
