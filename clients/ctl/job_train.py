"""Jobs that train: from scratch, further, or after a larger model; and any job from a file."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer

from llmos.clients.ctl.job import queue, submit
from llmos.clients.ctl.session import Session, command
from llmos.lib.errors import InvalidArgument

Watch = Annotated[bool, typer.Option("--watch", "-w", help="Wait for its end.")]
Dataset = Annotated[str, typer.Argument(help="A data set, `name` or `name@version`.")]
Target = Annotated[str, typer.Option(help="Column to learn. [default: the label column]")]
Epochs = Annotated[float, typer.Option(help="Passes over the data.", show_default="1")]
Steps = Annotated[int, typer.Option(help="Most steps.", show_default=False)]
Rate = Annotated[
    float, typer.Option(help="Learning rate. [default: the kind's]", show_default=False)
]
Batch = Annotated[int, typer.Option(help="Rows of a step.", show_default="32")]
Processes = Annotated[int, typer.Option(help="Processes that share each step.", show_default="1")]
Epsilon = Annotated[
    float, typer.Option(help="Train privately, spending this much epsilon.", show_default=False)
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any other field of the spec, e.g. training.l2=0.01. Repeatable."),
]

_TRAIN = [
    "llmos-ctl job submit train line points --network linear --target y --epochs 500 -w",
    "llmos-ctl job submit train digits mnist --network cnn --set training.seed=7",
    "llmos-ctl job submit train scribe bible --network decoder --set decoder.layers=4",
]
_TUNE = [
    "llmos-ctl job submit fine-tune smollm2 verses --lora --steps 200 -w",
    "llmos-ctl job submit fine-tune minilm mails --target label --epochs 3 --epsilon 8",
]
_DISTIL = ["llmos-ctl job submit distil smollm2 verses --layers 10 --epochs 1 -w"]
_FILE = ["llmos-ctl job submit file train.toml -w"]


@command(submit, "train", examples=_TRAIN)
def train(
    session: Session,
    name: Annotated[str, typer.Argument(help="Model to register it under.")],
    dataset: Dataset,
    network: Annotated[
        str,
        typer.Option(
            help="linear, logistic, mlp, cnn, encoder, decoder or encoder_decoder.",
        ),
    ] = "mlp",
    target: Target = "",
    epochs: Epochs = 0,
    steps: Steps = 0,
    learning_rate: Rate = 0,
    batch: Batch = 0,
    processes: Processes = 0,
    epsilon: Epsilon = 0,
    fields: Set = None,
    watch_: Watch = False,
) -> None:
    """Train a network from scratch and register it."""
    spec: dict[str, Any] = {"name": name, network: {}}
    _common(spec, dataset, target, epochs, steps, learning_rate, batch, processes, epsilon)
    queue(session, {"train": _with(spec, fields)}, watch_)


@command(submit, "fine-tune", examples=_TUNE)
def fine_tune(
    session: Session,
    model: Annotated[str, typer.Argument(help="The model to train further.")],
    dataset: Dataset,
    lora: Annotated[bool, typer.Option("--lora", help="Train a low-rank adapter only.")] = False,
    name: Annotated[str, typer.Option(help="Register under. [default: the source's]")] = "",
    target: Target = "",
    epochs: Epochs = 0,
    steps: Steps = 0,
    learning_rate: Rate = 0,
    batch: Batch = 0,
    processes: Processes = 0,
    epsilon: Epsilon = 0,
    fields: Set = None,
    watch_: Watch = False,
) -> None:
    """Train a registered model further, all of it or an adapter."""
    spec: dict[str, Any] = {"model": model, "name": name, **({"lora": {}} if lora else {})}
    _common(spec, dataset, target, epochs, steps, learning_rate, batch, processes, epsilon)
    queue(session, {"fine_tune": _with(spec, fields)}, watch_)


@command(submit, "distil", examples=_DISTIL)
def distil(
    session: Session,
    teacher: Annotated[str, typer.Argument(help="The larger model.")],
    dataset: Dataset,
    layers: Annotated[
        int,
        typer.Option(help="Cut the student from the teacher: so many layers.", show_default=False),
    ] = 0,
    student: Annotated[str, typer.Option(help="Or begin with this registered model.")] = "",
    name: Annotated[str, typer.Option(help="Register under. [default: TEACHER-small]")] = "",
    target: Target = "",
    epochs: Epochs = 0,
    steps: Steps = 0,
    learning_rate: Rate = 0,
    batch: Batch = 0,
    processes: Processes = 0,
    fields: Set = None,
    watch_: Watch = False,
) -> None:
    """Train a smaller model to answer as a larger one does."""
    spec: dict[str, Any] = {"teacher": teacher, "student": student, "layers": layers, "name": name}
    _common(spec, dataset, target, epochs, steps, learning_rate, batch, processes, 0)
    queue(session, {"distil": _with(spec, fields)}, watch_)


@command(submit, "file", examples=_FILE)
def from_file(
    session: Session,
    path: Annotated[Path, typer.Argument(help="A JobSpec as TOML or JSON.")],
    watch_: Watch = False,
) -> None:
    """Queue a job from a file: a table named like the kind, with its fields as in the proto."""
    try:
        text = path.read_text()
        spec = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as exc:
        raise InvalidArgument("BAD_SPEC", f"Cannot read {path}: {exc.strerror}.") from exc
    except (ValueError, UnicodeDecodeError) as exc:
        raise InvalidArgument("BAD_SPEC", f"{path} is not as its name says: {exc}.") from exc
    queue(session, spec, watch_)


def _common(
    spec: dict[str, Any],
    dataset: str,
    target: str,
    epochs: float,
    steps: int,
    rate: float,
    batch: int,
    processes: int,
    epsilon: float,
) -> None:
    spec["data"] = {"dataset": dataset, "target": target}
    spec["training"] = {"epochs": epochs, "steps": steps, "learning_rate": rate, "batch": batch}
    spec["distribution"] = {"processes": processes}
    if epsilon:
        spec["privacy"] = {"epsilon": epsilon}


def _with(spec: dict[str, Any], fields: list[str] | None) -> dict[str, Any]:
    """Set `a.b=value` fields; a value is JSON where it can be, else text."""
    for field in fields or []:
        path, equals, text = field.partition("=")
        if not equals or not all(path.split(".")):
            raise InvalidArgument("BAD_SPEC", f"--set {field!r} is not FIELD=VALUE.")
        *parents, last = path.split(".")
        at = spec
        for name in parents:
            at = at.setdefault(name, {})
        try:
            at[last] = json.loads(text)
        except ValueError:
            at[last] = text
    return spec
