"""Jobs that make models smaller or measure them, and the report of a job."""

from __future__ import annotations

import re
import tempfile
import webbrowser
from pathlib import Path
from typing import Annotated, Any

import typer

from llmos.clients.ctl.job import JobId, app, compared, queue, submit
from llmos.clients.ctl.job_train import Watch
from llmos.clients.ctl.session import QUICK_S, Session, command
from llmos.lib.errors import InvalidArgument, NotFound

Model = Annotated[str, typer.Argument(help="A model in storage.")]
Data = Annotated[str, typer.Option(help="Data set to measure on. [default: English paragraphs]")]
Rows = Annotated[int, typer.Option(help="Most rows to measure on.", show_default="256")]
Name = Annotated[str, typer.Option(help="Model to register it under. [default: the source's]")]
Gates = Annotated[
    list[str] | None,
    typer.Option(
        "--gate", help="What must hold: f1>=0.9, latency_p50<=5, or f1-0.005 (loses at most)."
    ),
]
_GATE = re.compile(r"([a-z_0-9]+)(>=|<=|-)([0-9.eE+-]+)")
_LIMITS = {">=": "least", "<=": "most", "-": "most_loss"}
_PRUNE = ["llmos-ctl job submit prune smollm2-f32 --method structured --channels 0.25 -w"]
_QUANTISE = [
    "llmos-ctl job submit quantise minilm@2 --gate cosine_mean>=0.99 --exclude-up-to 0.3 -w",
    "llmos-ctl job submit quantise smollm2 --method gguf-q8-0 --name smollm2-q8",
]
_EXPORTED = ["llmos-ctl job submit export minilm --format onnx -w"]
_EVALUATE = ["llmos-ctl job submit evaluate spam@1 spam@3 --data mails --gate f1-0.005 -w"]
_REPORT = [
    "llmos-ctl job report 20260301T120000.000",
    "llmos-ctl job report 20260301T120000.000 --open",
    "llmos-ctl job report 20260301T120000.000 --to report.html",
]


@command(submit, "prune", examples=_PRUNE)
def prune(
    session: Session,
    model: Model,
    method: Annotated[
        str, typer.Option(help="magnitude, structured or two-of-four.")
    ] = "magnitude",
    amount: Annotated[float, typer.Option(help="Share of weights.", show_default="0.5")] = 0,
    heads: Annotated[float, typer.Option(help="Share of heads (structured).")] = 0,
    channels: Annotated[float, typer.Option(help="Share of channels (structured).")] = 0,
    recovery_steps: Annotated[int, typer.Option(help="Steps of recovery afterwards.")] = 0,
    data: Data = "",
    rows: Rows = 0,
    gate: Gates = None,
    name: Name = "",
    watch_: Watch = False,
) -> None:
    """Take weights, heads or channels out of a safetensors model."""
    spec = {"method": _choice("PRUNE_METHOD", method), "amount": amount, "heads": heads}
    spec |= {"channels": channels, "recovery_steps": recovery_steps}
    queue(session, {"prune": spec | _common(model, data, rows, gate, name)}, watch_)


@command(submit, "quantise", examples=_QUANTISE)
def quantise(
    session: Session,
    model: Model,
    method: Annotated[
        str,
        typer.Option(
            help="onnx-dynamic-int8, onnx-static-int8, onnx-int4, torchao-int8, torchao-int4, "
            "gguf-q8-0, gguf-q4-0, gguf-q4-1 or gguf-q5-0."
        ),
    ] = "onnx-dynamic-int8",
    exclude: Annotated[list[str] | None, typer.Option(help="Layer to leave as it is.")] = None,
    exclude_up_to: Annotated[
        float, typer.Option(help="Leave out the worst layers, at most this share of all.")
    ] = 0,
    layers: Annotated[bool, typer.Option("--layers", help="Measure each layer's error.")] = False,
    data: Data = "",
    rows: Rows = 0,
    gate: Gates = None,
    name: Name = "",
    watch_: Watch = False,
) -> None:
    """Compute with fewer bits."""
    spec: dict[str, Any] = {"method": _choice("QUANTISE_METHOD", method)}
    spec["exclude"] = exclude or []
    spec |= {"exclude_up_to": exclude_up_to, "report_layers": layers}
    queue(session, {"quantise": spec | _common(model, data, rows, gate, name)}, watch_)


@command(submit, "export", examples=_EXPORTED)
def export(
    session: Session,
    model: Model,
    format: Annotated[
        str, typer.Option(help="onnx, torch-export, torchscript or (from GGUF) safetensors.")
    ] = "onnx",
    data: Data = "",
    rows: Rows = 0,
    gate: Gates = None,
    name: Name = "",
    watch_: Watch = False,
) -> None:
    """Write a model in another format; refused when it does not agree with the source."""
    spec = {"format": _choice("EXPORT_FORMAT", format)}
    queue(session, {"export": spec | _common(model, data, rows, gate, name)}, watch_)


@command(submit, "evaluate", examples=_EVALUATE)
def evaluate(
    session: Session,
    models: Annotated[list[str], typer.Argument(help="Versions; the first is the original.")],
    data: Data = "",
    rows: Rows = 0,
    labels: Annotated[str, typer.Option(help="Column with the label.")] = "",
    positive: Annotated[str, typer.Option(help="The label that counts as positive.")] = "",
    targets: Annotated[str, typer.Option(help="Column with the text to be answered.")] = "",
    max_tokens: Annotated[
        int, typer.Option(min=0, help="Longest answer (targets).", show_default="64")
    ] = 0,
    beams: Annotated[
        int, typer.Option(min=0, help="Beams that answers are searched by (targets).")
    ] = 0,
    skip_speed: Annotated[bool, typer.Option("--skip-speed", help="Quality only.")] = False,
    gate: Gates = None,
    watch_: Watch = False,
) -> None:
    """Measure versions beside one another; see `llmos-ctl job report`."""
    spec = _common("", data, rows, gate, "")
    spec |= {"models": models, "labels": labels, "positive": positive, "targets": targets}
    spec |= {"max_tokens": max_tokens, "beams": beams, "skip_speed": skip_speed}
    queue(session, {"evaluate": spec}, watch_)


@command(app, "report", examples=_REPORT)
def report(
    session: Session,
    id: JobId,
    to: Annotated[Path | None, typer.Option(help="Write the HTML report there.")] = None,
    open_: Annotated[
        bool, typer.Option("--open", help="Open the HTML report in the browser.")
    ] = False,
) -> None:
    """Show what a job measured, version by version; or fetch its report, with plots."""
    from llmos.api.optimizer.v1 import jobs_pb2, jobs_pb2_grpc

    stub = session.kernel(jobs_pb2_grpc.JobsStub)
    if to is not None or open_:
        request = jobs_pb2.ReadArtifactRequest(id=id, name="report.html")
        pieces = [reply.data for reply in stub.ReadArtifact(request, timeout=session.limit())]
        target = to or Path(tempfile.mkdtemp(prefix="llmos-report-")) / f"{id}.html"
        target.write_bytes(b"".join(pieces))
        opened = open_ and webbrowser.open(target.resolve().as_uri())
        more = " No browser was found to open it." if open_ and not opened else ""
        session.out.say(f"Wrote {target}.{more}", {"file": str(target), "opened": opened})
        return
    listed = stub.ListJobs(jobs_pb2.ListJobsRequest(), timeout=session.limit(QUICK_S)).jobs
    job = next((job for job in listed if job.id == id), None)
    if job is None:
        raise NotFound("NO_SUCH_JOB", f"There is no job {id[:60]!r}; see `llmos-ctl job ls`.")
    compared(session, job)


def _common(model: str, data: str, rows: int, gates: list[str] | None, name: str) -> dict[str, Any]:
    spec: dict[str, Any] = {"gates": [_gate(text) for text in gates or []]}
    spec["data"] = {"dataset": data, "rows": rows}
    return spec | ({"model": model, "name": name} if model else {})


def _gate(text: str) -> dict[str, Any]:
    found = _GATE.fullmatch(text.replace(" ", ""))
    if found is None:
        raise InvalidArgument(
            "BAD_SPEC", f"--gate {text!r}: write e.g. f1>=0.9, latency_p50<=5 or f1-0.005."
        )
    return {"measure": found[1], _LIMITS[found[2]]: float(found[3])}


def _choice(prefix: str, word: str) -> str:
    return f"{prefix}_{word.upper().replace('-', '_')}"
