"""A new version takes an alias over: loaded beside, checked, then the calls move."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Annotated

import typer

from llmos.clients.ctl import model
from llmos.clients.ctl.model_alias import AliasRef
from llmos.clients.ctl.output import as_value, duration
from llmos.clients.ctl.progress import note, status
from llmos.clients.ctl.session import QUICK_S, Session, command
from llmos.lib.errors import FailedPrecondition, InvalidArgument, NotFound

if TYPE_CHECKING:
    from llmos.api.execution.v1 import execution_pb2, execution_pb2_grpc
    from llmos.api.storage.v1 import aliases_pb2, aliases_pb2_grpc

_LOOK_S = 0.05
_CHECK_TOKENS = 64


@command(
    model.app,
    examples=[
        "llmos-ctl model swap smollm2@prod 4",
        'llmos-ctl model swap smollm2@prod 4 --check "What is 2+2?" --expect 4 --within 5',
        "llmos-ctl model swap smollm2@prod 4 --keep 600   # and within ten minutes, at once:",
        "llmos-ctl model alias rollback smollm2@prod",
    ],
)
def swap(
    session: Session,
    ref: AliasRef,
    version: Annotated[int, typer.Argument(min=1, help="The version that takes it over.")],
    check: Annotated[
        str, typer.Option(help="Ask the new version this first; no answer, no swap.")
    ] = "",
    expect: Annotated[
        str, typer.Option(metavar="REGEX", help="What its answer to --check has to hold.")
    ] = "",
    within: Annotated[
        float, typer.Option(min=0, help="Seconds it may take to answer --check; 0 = any.")
    ] = 0.0,
    keep: Annotated[
        float,
        typer.Option(min=0, help="Keep the old one loaded for so many seconds: instant rollback."),
    ] = 0.0,
) -> None:
    """Let another version take an alias over without a gap.

    The new version is loaded beside the old one and checked; then the alias moves. Calls that run
    end where they began. When anything fails before the move, nothing has changed.
    """
    from llmos.api.execution.v1 import execution_pb2, execution_pb2_grpc
    from llmos.api.storage.v1 import aliases_pb2, aliases_pb2_grpc

    name, at, alias = ref.partition("@")
    if not at or not alias or alias[0].isdigit():
        raise InvalidArgument("BAD_NAME", f"{ref[:60]!r} is no alias; it is written name@alias.")
    pattern = _pattern(expect)
    aliases = session.kernel(aliases_pb2_grpc.AliasesStub)
    execution = session.kernel(execution_pb2_grpc.ExecutionStub)
    before = _alias(session, aliases, name, alias)
    new, old = f"{name}@{version}", f"{name}@{before.version}"
    loaded = any(_is(m, new) and m.pid for m in _models(session, execution))
    with status(f"loading {new} beside {old}"):
        request = execution_pb2.LoadModelRequest(model=new)
        ready = execution.LoadModel(request, timeout=session.limit()).model
    try:
        if check:
            _check(session, execution, ready, check, pattern, within)
    except FailedPrecondition:
        if not loaded:
            execution.UnloadModel(
                execution_pb2.UnloadModelRequest(model=new), timeout=session.limit()
            )
        raise
    held = None
    if keep and old != new:
        held = execution.HoldModel(execution_pb2.HoldModelRequest(model=old), timeout=None)
        next(held)
    moved = aliases.SetAlias(
        aliases_pb2.SetAliasRequest(
            model=name, alias=alias, version=version, expected_revision=before.revision
        ),
        timeout=session.limit(QUICK_S),
    )
    with status("moving the calls"):
        _wait(session, execution, ref, old if old != new else "")
    session.out.say(
        f"{ref} means version {version} now (was {before.version}); back: llmos-ctl model alias "
        f"rollback {ref}",
        as_value(moved),
    )
    if held is not None:
        note(f"{old} is kept loaded for {duration(keep)}; Ctrl-C lets it go now.")
        try:
            time.sleep(keep)
        finally:
            held.cancel()


def _pattern(expect: str) -> re.Pattern[str]:
    try:
        return re.compile(expect)
    except re.error as exc:
        raise InvalidArgument("BAD_VALUE", f"--expect is no regular expression: {exc}.") from exc


def _alias(
    session: Session, stub: aliases_pb2_grpc.AliasesStub, name: str, alias: str
) -> aliases_pb2.Alias:
    from llmos.api.storage.v1 import aliases_pb2

    request = aliases_pb2.ListAliasesRequest(model=name, page_size=1000)
    for found in stub.ListAliases(request, timeout=session.limit(QUICK_S)).aliases:
        if found.alias == alias:
            return found
    raise NotFound(
        "NO_SUCH_ALIAS",
        f"{name} has no alias {alias!r}; make it: llmos-ctl model alias set {name}@VERSION {alias}",
    )


def _models(session: Session, stub: execution_pb2_grpc.ExecutionStub) -> list[execution_pb2.Model]:
    from llmos.api.execution.v1 import execution_pb2

    reply = stub.ListModels(execution_pb2.ListModelsRequest(), timeout=session.limit(QUICK_S))
    return list(reply.models)


def _is(found: execution_pb2.Model, ref: str) -> bool:
    return f"{found.name}@{found.version}" == ref


def _check(
    session: Session,
    stub: execution_pb2_grpc.ExecutionStub,
    ready: execution_pb2.Model,
    text: str,
    pattern: re.Pattern[str],
    within: float,
) -> None:
    """Ask the new version. Raises FailedPrecondition CHECK_FAILED, InvalidArgument BAD_VALUE."""
    import grpc

    from llmos.lib.rpc import from_rpc_error

    ref = f"{ready.name}@{ready.version}"
    began = time.monotonic()
    with status(f"checking {ref}"):
        try:
            answer = _answer(session, stub, ref, ready.task, text)
        except grpc.RpcError as exc:
            raise _failed(ref, str(from_rpc_error(exc))) from exc
    took = time.monotonic() - began
    if not answer or not pattern.search(answer):
        raise _failed(ref, f"it answered {answer[:200]!r}.")
    if within and took > within:
        raise _failed(ref, f"it answered after {took:.1f} s instead of {within:g} s.")


def _answer(
    session: Session, stub: execution_pb2_grpc.ExecutionStub, ref: str, task: str, text: str
) -> str:
    from llmos.api.execution.v1 import execution_pb2

    limit = session.limit()
    if task == "generate":
        request = execution_pb2.GenerateRequest(
            model=ref,
            chat=execution_pb2.Chat(
                messages=[execution_pb2.ChatMessage(role="user", content=text)]
            ),
            max_tokens=_CHECK_TOKENS,
            sampling=execution_pb2.Sampling(temperature=0),
        )
        return "".join(reply.text for reply in stub.Generate(request, timeout=limit))
    if task == "embed":
        wanted = execution_pb2.EmbedRequest(model=ref, texts=[text])
        vector = stub.Embed(wanted, timeout=limit).embeddings[0].values
        return f"a vector of {len(vector)}" if any(vector) else ""
    raise InvalidArgument(
        "BAD_VALUE", f"--check asks models that generate or embed; {ref} does {task}."
    )


def _failed(ref: str, why: str) -> FailedPrecondition:
    return FailedPrecondition(
        "CHECK_FAILED", f"{ref} did not pass the check, so nothing was moved: {why}"
    )


def _wait(session: Session, stub: execution_pb2_grpc.ExecutionStub, ref: str, old: str) -> None:
    """Return when the old version does not answer to the alias any more."""
    while any(_is(m, old) and ref in m.keys for m in _models(session, stub)):
        time.sleep(_LOOK_S)
