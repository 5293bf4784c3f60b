"""Jobs of the optimizer: submit, list, watch, cancel. More of them: job_train, job_control."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmos.clients.ctl import complete
from llmos.clients.ctl.output import as_value, duration, size, when
from llmos.clients.ctl.progress import note, status
from llmos.clients.ctl.session import QUICK_S, Session, command
from llmos.lib.errors import Aborted, Cancelled, InvalidArgument

if TYPE_CHECKING:
    from llmos.api.optimizer.v1 import jobs_pb2, measure_pb2

app = typer.Typer(help="Make new model versions out of old ones.", no_args_is_help=True)
submit = typer.Typer(help="Queue a job.", no_args_is_help=True)
app.add_typer(submit, name="submit")
JobId = Annotated[
    str,
    typer.Argument(help="A job's id; see `llmos-ctl job ls`.", autocompletion=complete.jobs),
]

_EXPORT = ["llmos-ctl job submit export-onnx minilm --watch"]


@command(submit, "export-onnx", examples=_EXPORT)
def export_onnx(
    session: Session,
    model: Annotated[str, typer.Argument(help="A safetensors text encoder in storage.")],
    skip_int8: Annotated[bool, typer.Option("--skip-int8", help="Make no quantised copy.")] = False,
    min_cosine: Annotated[
        float, typer.Option(help="Smallest cosine the ONNX copy may have.", show_default="0.9999")
    ] = 0.0,
    min_cosine_int8: Annotated[
        float,
        typer.Option(help="Smallest mean cosine the int8 copy may have.", show_default="0.95"),
    ] = 0.0,
    watch_: Annotated[bool, typer.Option("--watch", "-w", help="Wait for its end.")] = False,
) -> None:
    """Export a text encoder to ONNX, quantise a copy, compare both with the original."""
    spec = {
        "model": model,
        "skip_int8": skip_int8,
        "min_cosine": min_cosine,
        "min_cosine_int8": min_cosine_int8,
    }
    queue(session, {"export_onnx": spec}, watch_)


def _in_a_line(exc: Exception) -> str:
    """Return what protobuf found wrong as one sentence, with the fields that there are."""
    what, _, known = str(exc).partition("\n Available Fields(except extensions): ")
    fields = known.strip('[]"').replace("'", "")
    return what.rstrip(".") + (f"; there are {fields}" if fields else "")


def queue(session: Session, spec: dict[str, Any], then_watch: bool) -> None:
    """Submit a job of plain values: the kind's name, and its fields as in the proto."""
    from google.protobuf import json_format

    from llmos.api.optimizer.v1 import jobs_pb2, jobs_pb2_grpc

    try:
        message = json_format.ParseDict(spec, jobs_pb2.JobSpec())
    except (json_format.ParseError, AttributeError, TypeError) as exc:
        raise InvalidArgument("BAD_SPEC", f"The spec is wrong: {_in_a_line(exc)}.") from exc
    stub = session.kernel(jobs_pb2_grpc.JobsStub)
    request = jobs_pb2.SubmitJobRequest(spec=message, request_id=uuid.uuid4().hex)
    job = stub.SubmitJob(request, timeout=session.limit(QUICK_S)).job
    if not then_watch:
        said = f"Queued job {job.id}; follow it by `llmos-ctl job watch {job.id}`."
        session.out.say(said, as_value(job))
        return
    note(f"Queued job {job.id}.")
    watch(session, job.id)


@command(app, watch=True)
def ls(session: Session) -> None:
    """List jobs, newest first."""
    from llmos.api.optimizer.v1 import jobs_pb2, jobs_pb2_grpc

    stub = session.kernel(jobs_pb2_grpc.JobsStub)
    reply = stub.ListJobs(jobs_pb2.ListJobsRequest(), timeout=session.limit(QUICK_S))
    rows, value = [], []
    for job in reply.jobs:
        members = as_value(job)
        kind = job.spec.WhichOneof("kind") or ""
        model = ", ".join(job.sources) or getattr(getattr(job.spec, kind, None), "name", "")
        result = job.error or ", ".join(job.results) or job.stage
        progress = f"{job.progress:.0%}"
        stamp = when(job.submitted_unix_s)
        verb = kind.replace("_", "-")
        rows.append([job.id, verb, model, members["state"], progress, stamp, result])
        value.append(members)
    columns = ["ID", "KIND", "MODEL", "STATE", "DONE", "SUBMITTED", "RESULT"]
    session.out.rows(columns, rows, value)


@command(app)
def watch(session: Session, id: JobId) -> None:
    """Follow a job to its end; exits with an error if it failed. JSON: one line per state."""
    from llmos.api.optimizer.v1 import jobs_pb2

    last = jobs_pb2.Job()
    with status(f"job {id}") as doing:
        for job in _states(session, id):
            members = as_value(job)
            if session.json:
                print(json.dumps(members, ensure_ascii=False), flush=True)
            elif (job.state, job.stage) != (last.state, last.stage):
                note(f"  {job.progress:4.0%} {members['state']}: {job.stage}")
            doing(f"{job.progress:.0%} {job.stage} {training(job)}")
            last = job
    if last.state == jobs_pb2.JOB_STATE_FAILED:
        raise Aborted("JOB_FAILED", f"Job {id} failed: {last.error} (log: {last.log})")
    if last.state == jobs_pb2.JOB_STATE_CANCELLED:
        raise Cancelled("JOB_CANCELLED", f"Job {id} was cancelled.")
    if not session.json:
        if last.HasField("training"):
            note(f"  {training(last)}")
        took = duration(last.ended_unix_s - last.submitted_unix_s)
        print(f"Job {id} made {', '.join(last.results) or 'nothing'} in {took}.")
        if last.comparisons:
            compared(session, last)


def training(job: jobs_pb2.Job) -> str:
    """Return in a line how training goes; empty for other kinds."""
    if not job.HasField("training"):
        return ""
    now = job.training
    parts = [f"step {now.step}/{now.steps}", f"loss {now.loss:.4g}"]
    if now.validation_loss == now.validation_loss and now.validation_loss:
        parts.append(f"validation {now.validation_loss:.4g}")
    if now.rate:
        parts.append(f"{now.rate:,.0f} {now.rate_unit}/s")
    if now.memory_bytes:
        parts.append(size(now.memory_bytes))
    if now.epsilon:
        parts.append(f"epsilon {now.epsilon:.3g}")
    if now.eta_s:
        parts.append(f"{duration(now.eta_s)} left")
    return ", ".join(parts)


def _states(session: Session, id: str) -> Iterator[jobs_pb2.Job]:
    from llmos.api.optimizer.v1 import jobs_pb2, jobs_pb2_grpc

    stub = session.kernel(jobs_pb2_grpc.JobsStub)
    for reply in stub.WatchJob(jobs_pb2.WatchJobRequest(id=id), timeout=session.limit()):
        yield reply.job


def compared(session: Session, job: jobs_pb2.Job) -> None:
    """Print what a job measured, a line for each version; JSON: also when there is nothing."""
    names = list(dict.fromkeys(m.name for c in job.comparisons for m in c.measures))
    rows = []
    for comparison in job.comparisons:
        values = {m.name: _figure(m) for m in comparison.measures}
        rows.append([comparison.label, comparison.ref, *(values.get(n, "-") for n in names)])
    columns = ["VERSION", "MODEL", *(name.upper().replace("_", " ") for name in names)]
    session.out.rows(columns, rows, [as_value(c) for c in job.comparisons])


def _figure(measure: measure_pb2.Measure) -> str:
    if measure.unit == "bytes":
        return size(int(measure.value))
    return f"{measure.value:,.5g} {measure.unit}".strip()


@command(app)
def cancel(session: Session, id: JobId) -> None:
    """Stop a job; versions that it has registered stay."""
    from llmos.api.optimizer.v1 import jobs_pb2, jobs_pb2_grpc

    stub = session.kernel(jobs_pb2_grpc.JobsStub)
    request = jobs_pb2.CancelJobRequest(id=id)
    job = stub.CancelJob(request, timeout=session.limit(QUICK_S)).job
    members = as_value(job)
    session.out.say(f"Job {id} is {members['state']}.", members)
