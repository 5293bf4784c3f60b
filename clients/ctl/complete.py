"""What a shell's completion offers: names and ids, asked of the running LLM OS.

A completion must never get in the way: when nothing runs, or it answers late, nothing is offered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from llmos.clients.ctl.session import Session

_PATIENCE_S = 1.5
Offer = tuple[str, str]  # a word and what it is


def _asking(
    ask: Callable[[Session], Iterable[Offer]],
) -> Callable[[typer.Context, str], list[Offer]]:
    def complete(ctx: typer.Context, incomplete: str) -> list[Offer]:
        import grpc

        from llmos.clients.ctl.session import Options, Session
        from llmos.lib.errors import LLMOSError

        given: dict[str, Any] = {}
        at: Any = ctx
        while at is not None:  # the common options stand before or after the command
            for key in ("address", "state_dir"):
                given[key] = given.get(key) or at.params.get(key)
            at = at.parent
        try:
            with Session(Options(timeout=_PATIENCE_S, **given)) as session:
                offers = list(ask(session))
        except (LLMOSError, grpc.RpcError):
            return []
        return [offer for offer in offers if offer[0].startswith(incomplete)]

    return complete


@_asking
def models(session: Session) -> Iterable[Offer]:
    """Offer `name` and `name@version` of all models."""
    from llmos.api.execution.v1 import execution_pb2, execution_pb2_grpc
    from llmos.clients.ctl.output import as_value

    stub = session.kernel(execution_pb2_grpc.ExecutionStub)
    reply = stub.ListModels(execution_pb2.ListModelsRequest(), timeout=session.limit())
    for model in reply.models:
        about = f"{model.task}, {as_value(model)['state']}"
        if model.is_default:
            yield model.name, about
        yield f"{model.name}@{model.version}", about


@_asking
def jobs(session: Session) -> Iterable[Offer]:
    """Offer the ids of jobs, newest first."""
    from llmos.api.optimizer.v1 import jobs_pb2, jobs_pb2_grpc
    from llmos.clients.ctl.output import as_value

    stub = session.kernel(jobs_pb2_grpc.JobsStub)
    reply = stub.ListJobs(jobs_pb2.ListJobsRequest(), timeout=session.limit())
    for job in reply.jobs:
        yield job.id, f"{as_value(job)['state']}, {job.stage}"


@_asking
def processes(session: Session) -> Iterable[Offer]:
    """Offer the names of processes."""
    from llmos.api.init.v1 import init_pb2, init_pb2_grpc

    stub = session.init(init_pb2_grpc.InitStub)
    reply = stub.ListProcesses(init_pb2.ListProcessesRequest(), timeout=session.limit())
    for process in reply.processes:
        yield process.name, f"pid {process.pid}"


@_asking
def calls(session: Session) -> Iterable[Offer]:
    """Offer the ids of calls that wait or run."""
    from llmos.api.kernel.v1 import admin_pb2, admin_pb2_grpc

    stub = session.kernel(admin_pb2_grpc.AdminStub)
    reply = stub.ListCalls(admin_pb2.ListCallsRequest(), timeout=session.limit())
    for call in reply.calls:
        yield call.id, f"{call.method.rsplit('.', 1)[-1]} {call.key}".strip()


@_asking
def ports(session: Session) -> Iterable[Offer]:
    """Offer the numbers of ports."""
    from llmos.api.kernel.v1 import admin_pb2, admin_pb2_grpc

    stub = session.kernel(admin_pb2_grpc.AdminStub)
    reply = stub.ListPorts(admin_pb2.ListPortsRequest(), timeout=session.limit())
    for port in reply.ports:
        yield str(port.port), port.name
