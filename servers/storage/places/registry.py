"""A client of the OCI distribution protocol (spec v1.1), by httpx: manifests and blobs."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
from collections.abc import Generator, Iterator
from typing import Any
from urllib.parse import urljoin, urlsplit

from llmos.lib.errors import LLMOSError
from llmos.servers.storage.places import reference
from llmos.servers.storage.places.base import denied, mismatch, missing, need, unreachable

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
_DOCKER = "application/vnd.docker.distribution.manifest.v2+json"
_MAX_MANIFEST = 4 << 20  # as registries allow
_UPLOAD = 16 << 20  # bytes of one PATCH
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_CHALLENGE = re.compile(r'(\w+)="([^"]*)"')


class Registry:
    """One repository of a registry, with its credentials. Blocking; closes with `with`."""

    def __init__(self, place: reference.Reference, source: str, scope: str = "pull") -> None:
        """Connect on first use. scope: `pull` or `pull,push`. Raises MISSING_EXTRA."""
        self._httpx = need("httpx")
        self._place, self._source, self._scope = place, source, scope
        self._login = reference.credentials(place.host)
        self._header = ""
        timeout = self._httpx.Timeout(60, connect=10)
        self._client = self._httpx.Client(follow_redirects=True, timeout=timeout, max_redirects=5)

    def __enter__(self) -> Registry:
        """Do nothing."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connections."""
        self._client.close()

    def manifest(self) -> tuple[dict[str, Any], str]:
        """Return (manifest, its sha256:digest); of an index, its first model's.

        Raises NO_SUCH_SOURCE, DIGEST_MISMATCH and what `_open` raises.
        """
        target = self._place.target
        for _ in range(2):
            accept = {"Accept": ", ".join((MANIFEST, INDEX, _DOCKER))}
            with self._open("GET", f"/manifests/{target}", headers=accept) as answer:
                body = b""
                for piece in answer.iter_bytes():
                    body += piece
                    if len(body) > _MAX_MANIFEST:
                        raise mismatch(self._source, "the manifest", "is over 4 MiB")
            digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
            if target.startswith("sha256:") and target != digest:
                raise mismatch(self._source, "the manifest", f"has the digest {digest}")
            try:
                found = json.loads(body)
                if found.get("manifests") is None:
                    return dict(found), digest
                target = str(found["manifests"][0]["digest"])
                if not _DIGEST.fullmatch(target):
                    raise ValueError(target)
            except (
                *(ValueError, KeyError, IndexError, TypeError, AttributeError),
                RecursionError,
            ) as exc:
                raise mismatch(self._source, "the manifest", "is no manifest") from exc
        raise missing(self._source, "an index of indexes; give the digest of a manifest")

    def blob(self, digest: str, offset: int) -> Generator[bytes, None, None]:
        """Yield a blob from `offset` on."""
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        with self._open("GET", f"/blobs/{digest}", headers=headers) as answer:
            skip = offset if answer.status_code != 206 else 0  # it does not do ranges
            for data in answer.iter_raw():
                if skip >= len(data):
                    skip -= len(data)
                    continue
                yield data[skip:]
                skip = 0

    def has(self, digest: str) -> bool:
        """Return whether the repository has a blob."""
        with self._open("HEAD", f"/blobs/{digest}", quiet=(404,)) as answer:
            return bool(answer.status_code == 200)

    def upload(self, digest: str, pieces: Iterator[bytes]) -> None:
        """Store a blob in pieces. Raises DIGEST_MISMATCH when the bytes are others."""
        with self._open("POST", "/blobs/uploads/", content=b"") as answer:
            where = self._location(answer)
        at, held = 0, bytearray()
        for piece in pieces:
            held += piece
            if len(held) >= _UPLOAD:
                where, at = self._patch(where, at, bytes(held)), at + len(held)
                held.clear()
        if held:
            where = self._patch(where, at, bytes(held))
        joint = "&" if urlsplit(where).query else "?"
        with self._open("PUT", f"{where}{joint}digest={digest}", content=b"", quiet=(400,)) as end:
            if end.status_code == 400:
                raise mismatch(self._source, digest, "was refused: its bytes are others")

    def _patch(self, where: str, at: int, data: bytes) -> str:
        headers = {"Content-Type": "application/octet-stream"}
        headers["Content-Range"] = f"{at}-{at + len(data) - 1}"
        with self._open("PATCH", where, content=data, headers=headers) as answer:
            return self._location(answer)

    def _location(self, answer: Any) -> str:
        return urljoin(str(answer.url), str(answer.headers.get("Location", "")))

    def tag(self, manifest: bytes) -> str:
        """Put a manifest under the reference's tag; return its digest."""
        headers = {"Content-Type": MANIFEST}
        with self._open("PUT", f"/manifests/{self._place.tag}", content=manifest, headers=headers):
            return f"sha256:{hashlib.sha256(manifest).hexdigest()}"

    @contextlib.contextmanager
    def _open(
        self,
        method: str,
        path: str,
        *,
        content: bytes | None = None,
        headers: dict[str, str] | None = None,
        quiet: tuple[int, ...] = (),
    ) -> Iterator[Any]:
        """Send a request; yield the answer before its body.

        path: below the repository, or a whole URL. Raises SOURCE_REFUSED, NO_SUCH_SOURCE,
        SOURCE_UNREACHABLE for statuses of 400 and more that are not `quiet`.
        """
        url = f"{self._place.url}{path}" if path.startswith("/") else path
        own = urlsplit(url).netloc == self._place.host  # credentials go nowhere else
        try:
            for attempt in (0, 1):
                sent = {"Accept-Encoding": "identity", **(headers or {})}
                if self._header and own:
                    sent["Authorization"] = self._header
                request = self._client.build_request(method, url, content=content, headers=sent)
                with contextlib.closing(self._client.send(request, stream=True)) as answer:
                    if answer.status_code == 401 and own and attempt == 0:
                        self._header = self._authorization(answer)
                        continue
                    self._check(answer, quiet)
                    yield answer
                    return
        except self._httpx.HTTPError as exc:
            raise unreachable(self._source, f"no connection ({type(exc).__name__})") from exc

    def _check(self, answer: Any, quiet: tuple[int, ...]) -> None:
        status = answer.status_code
        if status < 400 or status in quiet:
            return
        if status in (401, 403):
            raise denied(self._source, reference.WHERE)
        if status == 404:
            raise missing(self._source, "the registry has no such repository, tag or blob")
        raise unreachable(self._source, f"the registry answers {status}")

    def _authorization(self, answer: Any) -> str:
        """Answer a challenge: basic credentials, or a token from where the registry says."""
        challenge = answer.headers.get("WWW-Authenticate", "")
        if challenge.lower().startswith("basic"):
            if self._login is None:
                raise denied(self._source, reference.WHERE)
            return f"Basic {base64.b64encode(':'.join(self._login).encode()).decode()}"
        asked = dict(_CHALLENGE.findall(challenge))
        realm = asked.get("realm", "")
        plain = self._place.url.startswith("http:")
        if not realm.startswith("https://") and not (plain and realm.startswith("http://")):
            raise denied(self._source, reference.WHERE)
        asked["scope"] = f"repository:{self._place.repo}:{self._scope}"
        query = {key: asked[key] for key in ("service", "scope") if key in asked}
        token = self._client.get(realm, params=query, auth=self._login)
        if token.status_code != 200 or len(token.content) > 1 << 20:
            raise denied(self._source, reference.WHERE)
        try:
            said = token.json()
            return f"Bearer {said.get('token') or said['access_token']}"
        except (ValueError, KeyError, AttributeError) as exc:
            raise denied(self._source, reference.WHERE) from exc


def as_destination(error: LLMOSError) -> LLMOSError:
    """Return an error of a pull as that of a push."""
    reason = error.reason.replace("SOURCE_", "DESTINATION_").replace("NO_SUCH_SOURCE", "NOT_FOUND")
    return type(error)(reason, error.message)
