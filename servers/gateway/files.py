"""/v1/files: files of the OpenAI API, kept in storage's documents."""

from __future__ import annotations

import time
import uuid
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from llmos.lib.errors import InvalidArgument, NotFound
from llmos.servers.gateway import forms
from llmos.servers.gateway.config import GatewayConfig
from llmos.servers.gateway.documents import Documents, Metadata, metadata_of

Json = dict[str, Any]
_ROOT = "llmos/gateway/files/"
_BYTES = "llmos/gateway/file-bytes/"
PURPOSES = ("batch", "fine-tune", "user_data", "assistants", "evals", "vision")


class Files:
    """Files of all tenants; each sees its own."""

    def __init__(self, documents: Documents, config: GatewayConfig) -> None:
        """Keep them in `documents`."""
        self._documents, self._config = documents, config

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route("/v1/files", self.create, methods=["POST"]),
            Route("/v1/files", self.list_all, methods=["GET"]),
            Route("/v1/files/{id}", self.show, methods=["GET"]),
            Route("/v1/files/{id}", self.delete, methods=["DELETE"]),
            Route("/v1/files/{id}/content", self.content, methods=["GET"]),
        ]

    async def create(self, request: Request) -> Response:
        """Take a file as a multipart form with `file` and `purpose`."""
        form = await forms.read(request, self._config)
        purpose = form.fields.get("purpose", "")
        if form.content is None or purpose not in PURPOSES:
            raise InvalidArgument(
                "BAD_FORM",
                "Send a multipart form with a `file` and its `purpose`: one of "
                f"{', '.join(PURPOSES)}.",
            )
        who = metadata_of(request)
        return JSONResponse(await self.add(form.name, form.content, purpose, who))

    async def add(self, name: str, content: bytes, purpose: str, who: Metadata) -> Json:
        """Keep a file; return its object."""
        id = f"file-{uuid.uuid4().hex}"
        found: Json = {
            "id": id,
            "object": "file",
            "bytes": len(content),
            "created_at": int(time.time()),
            "filename": name[:255],
            "purpose": purpose,
            "status": "processed",
        }
        # The object comes last: what has one is whole.
        await self._documents.put_file(f"{_BYTES}{id}/", content, who)
        await self._documents.put(_ROOT + id, found, who)
        return found

    async def read(self, id: str, who: Metadata) -> tuple[Json, bytes]:
        """Return a file's object and bytes. Raises NotFound NO_SUCH_FILE."""
        found = await self._found(id, who)
        return found, await self._documents.get_file(f"{_BYTES}{id}/", who)

    async def _found(self, id: str, who: Metadata) -> Json:
        found = await self._documents.get(_ROOT + id, who) if len(id) <= 64 else None
        if found is None:
            raise NotFound("NO_SUCH_FILE", f"There is no file {id[:64]!r}.")
        return found

    async def list_all(self, request: Request) -> Response:
        """List the files, newest first; `?purpose=` chooses."""
        found = await self._documents.list(_ROOT, metadata_of(request))
        purpose = request.query_params.get("purpose")
        chosen = [file for file in found if purpose in (None, file["purpose"])]
        chosen.sort(key=lambda file: file["created_at"], reverse=True)
        return JSONResponse({"object": "list", "data": chosen, "has_more": False})

    async def show(self, request: Request) -> Response:
        """Show a file's object."""
        return JSONResponse(await self._found(request.path_params["id"], metadata_of(request)))

    async def content(self, request: Request) -> Response:
        """Return a file's bytes."""
        _, content = await self.read(request.path_params["id"], metadata_of(request))
        return Response(content, media_type="application/octet-stream")

    async def delete(self, request: Request) -> Response:
        """Delete a file."""
        id, who = request.path_params["id"], metadata_of(request)
        await self._found(id, who)
        await self._documents.delete_one(_ROOT + id, who)
        await self._documents.delete(f"{_BYTES}{id}/", who)
        return JSONResponse({"id": id, "object": "file", "deleted": True})
