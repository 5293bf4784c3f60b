"""Keys of the HTTP gateway: who may use it, as which tenant, within which limits."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmos.clients.ctl.output import when
from llmos.clients.ctl.session import QUICK_S, Session, command
from llmos.lib.errors import NotFound

if TYPE_CHECKING:
    from llmos.api.storage.v1 import state_pb2_grpc
    from llmos.lib.apikeys import ApiKey

app = typer.Typer(
    help="API keys of the gateway, which wants them when its setting `auth` is `keys`.",
    no_args_is_help=True,
)


@command(app, examples=["llmos-ctl key create team-a --name laptop --cost-per-s 500"])
def create(
    session: Session,
    tenant: Annotated[str, typer.Argument(help="Who pays for its calls; any name.")],
    name: Annotated[str, typer.Option(help="For people: what it is for.")] = "",
    call_class: Annotated[
        str, typer.Option("--class", help="Class of its calls: interactive, normal or batch.")
    ] = "interactive",
    weight: Annotated[float, typer.Option(help="The tenant's share of a full machine.")] = 0,
    max_calls: Annotated[int, typer.Option(help="Calls of the tenant at a time; 0 = any.")] = 0,
    calls_per_s: Annotated[float, typer.Option(help="Calls of the tenant per second.")] = 0,
    cost_per_s: Annotated[
        float, typer.Option(help="Cost per second; of language models this is tokens.")
    ] = 0,
    admin: Annotated[
        bool, typer.Option("--admin", help="It may steer the OS, too: the console, /llmos/v1.")
    ] = False,
    days: Annotated[float, typer.Option(help="It expires after so many days; 0 = never.")] = 0,
) -> None:
    """Make a key and print it. It is shown this once: only its hash is kept."""
    from llmos.lib import apikeys

    secret, id = apikeys.new_secret()
    now = time.time()
    key = apikeys.ApiKey(
        id=id,
        sha256=apikeys.digest(secret),
        tenant=tenant,
        name=name,
        admin=admin,
        call_class=call_class,
        weight=weight,
        max_calls=max_calls,
        calls_per_s=calls_per_s,
        cost_per_s=cost_per_s,
        created_unix_s=now,
        expires_unix_s=now + days * 86400 if days else 0.0,
    )
    from llmos.api.storage.v1 import state_pb2

    request = state_pb2.PutDocumentRequest(
        key=key.document,
        value=key.to_json(),
        content_type="application/json",
        if_mod_revision=0,
        request_id=f"key-{id}",
    )
    _stub(session).PutDocument(request, timeout=session.limit(QUICK_S))
    session.out.say(secret, {"key": secret, **_shown(key)})


@command(app, "list", examples=["llmos-ctl key list"], watch=True)
def list_(session: Session) -> None:
    """List the keys; the keys themselves are not kept."""
    keys = sorted(_keys(session), key=lambda key: (key.tenant, key.created_unix_s))
    rows = [
        [
            key.id,
            key.tenant,
            key.name,
            f"{key.call_class}, admin" if key.admin else key.call_class,
            when(key.created_unix_s),
            when(key.expires_unix_s) if key.expires_unix_s else "never",
        ]
        for key in keys
    ]
    heads = ["ID", "TENANT", "NAME", "CLASS", "CREATED", "EXPIRES"]
    session.out.rows(heads, rows, {"keys": [_shown(key) for key in keys]})


@command(app, examples=["llmos-ctl key revoke 3f9c0a1b2c4d"])
def revoke(
    session: Session, id: Annotated[str, typer.Argument(help="The key's id, see `key list`.")]
) -> None:
    """End a key; gateways stop taking it within seconds."""
    from llmos.api.storage.v1 import state_pb2
    from llmos.lib.apikeys import PREFIX

    request = state_pb2.DeleteDocumentsRequest(key=PREFIX + id)
    reply = _stub(session).DeleteDocuments(request, timeout=session.limit(QUICK_S))
    if not reply.deleted:
        raise NotFound("NO_SUCH_KEY", f"There is no key {id!r}; `llmos-ctl key list` shows all.")
    session.out.say(f"Key {id} is revoked.", {"id": id})


def _stub(session: Session) -> state_pb2_grpc.DocumentsStub:
    from llmos.api.storage.v1 import state_pb2_grpc

    return session.kernel(state_pb2_grpc.DocumentsStub)


def _keys(session: Session) -> list[ApiKey]:
    from llmos.api.storage.v1 import state_pb2
    from llmos.lib.apikeys import PREFIX, from_json

    stub, keys = _stub(session), []
    request = state_pb2.ListDocumentsRequest(prefix=PREFIX, page_size=1000)
    while True:
        page = stub.ListDocuments(request, timeout=session.limit(QUICK_S))
        keys += [from_json(document.value) for document in page.documents]
        if not page.next_page_token:
            return keys
        request.page_token = page.next_page_token


def _shown(key: ApiKey) -> dict[str, Any]:
    from dataclasses import asdict

    return {name: value for name, value in asdict(key).items() if name != "sha256"}
