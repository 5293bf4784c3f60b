"""Jobs that run: pause and resume them, read their logs and what they left."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from llmos.clients.ctl.job import JobId, app
from llmos.clients.ctl.output import as_value, size
from llmos.clients.ctl.session import QUICK_S, Session, command


@command(app)
def pause(session: Session, id: JobId) -> None:
    """Stop a job's process and free its place; `job resume` goes on where it was."""
    from llmos.api.optimizer.v1 import jobs_pb2, jobs_pb2_grpc

    stub = session.kernel(jobs_pb2_grpc.JobsStub)
    job = stub.PauseJob(jobs_pb2.PauseJobRequest(id=id), timeout=session.limit(QUICK_S)).job
    session.out.say(f"Job {id} is paused; go on by `llmos-ctl job resume {id}`.", as_value(job))


@command(app)
def resume(session: Session, id: JobId) -> None:
    """Queue a paused job again."""
    from llmos.api.optimizer.v1 import jobs_pb2, jobs_pb2_grpc

    stub = session.kernel(jobs_pb2_grpc.JobsStub)
    job = stub.ResumeJob(jobs_pb2.ResumeJobRequest(id=id), timeout=session.limit(QUICK_S)).job
    members = as_value(job)
    session.out.say(f"Job {id} is {members['state']}.", members)


@command(app)
def logs(
    session: Session,
    id: JobId,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="Only the last.")] = 0,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until it ends.")] = False,
) -> None:
    """Print what a job's processes printed."""
    from llmos.api.optimizer.v1 import jobs_pb2, jobs_pb2_grpc

    stub = session.kernel(jobs_pb2_grpc.JobsStub)
    request = jobs_pb2.ReadJobLogRequest(id=id, lines=lines, follow=follow)
    for reply in stub.ReadJobLog(request, timeout=session.limit()):
        sys.stdout.buffer.write(reply.data)
        sys.stdout.buffer.flush()


@command(app, "artifacts", watch=True)
def artifacts(
    session: Session,
    id: JobId,
    name: Annotated[str, typer.Argument(help="Fetch this one. [default: list all]")] = "",
    to: Annotated[Path | None, typer.Option(help="Where to. [default: its own name]")] = None,
) -> None:
    """List the files that a job left (measurements, reports), or fetch one."""
    from llmos.api.optimizer.v1 import jobs_pb2, jobs_pb2_grpc

    stub = session.kernel(jobs_pb2_grpc.JobsStub)
    if not name:
        request = jobs_pb2.ListArtifactsRequest(id=id)
        found = stub.ListArtifacts(request, timeout=session.limit(QUICK_S)).artifacts
        rows = [[artifact.name, size(artifact.size)] for artifact in found]
        session.out.rows(["NAME", "SIZE"], rows, [as_value(artifact) for artifact in found])
        return
    replies = stub.ReadArtifact(
        jobs_pb2.ReadArtifactRequest(id=id, name=name), timeout=session.limit()
    )
    pieces = [reply.data for reply in replies]  # all of it, or no file is made
    target = to or Path(name).name
    Path(target).write_bytes(b"".join(pieces))
    session.out.say(f"Wrote {target}.", {"file": str(target)})
