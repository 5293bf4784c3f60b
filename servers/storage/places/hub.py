"""A Hugging Face style hub, by huggingface_hub: `hf:OWNER/NAME[@REVISION][#FILE]`.

Endpoint (HF_ENDPOINT), token (HF_TOKEN or its file), cache and offline mode (HF_HUB_OFFLINE) are
those of huggingface_hub in the storage server's environment.
"""

from __future__ import annotations

import os
import re
from collections.abc import Generator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from llmos.servers.storage import names
from llmos.servers.storage.names import short
from llmos.servers.storage.places import transfer
from llmos.servers.storage.places.base import (
    Fetched,
    Meter,
    Place,
    bad_source,
    denied,
    missing,
    need,
    unreachable,
)
from llmos.servers.storage.places.choose import choose

_FORM = "hf:OWNER/NAME, hf:OWNER/NAME@REVISION or hf:OWNER/NAME@REVISION#FILE"
_SOURCE = re.compile(
    r"hf:(?P<repo>(?:[\w][\w.-]{0,95}/)?[\w][\w.-]{0,95})(?:@(?P<rev>[\w][\w./-]{0,199}))?"
    r"(?:#(?P<file>[^#]{1,255}))?",
    re.ASCII,
)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_WHERE = "HF_TOKEN or `hf auth login`"


class Hub(Place):
    """Fetches one revision, resolved to its commit first."""

    def fetch(self, source: str, folder: Path, meter: Meter) -> Fetched:
        """See Place. Offline, a model in huggingface_hub's own cache is taken from there."""
        asked = _SOURCE.fullmatch(source)
        if asked is None or ".." in source or "--" in asked["repo"]:
            raise bad_source(source, _FORM)
        hub, constants = need("huggingface_hub"), need("huggingface_hub.constants")
        if constants.HF_HUB_OFFLINE:
            return self._cached(hub, source, asked)
        endpoint = os.environ.get("HF_ENDPOINT") or constants.ENDPOINT
        with _translated(source):
            meter.say(f"asking the hub for {asked['repo']}")
            api = hub.HfApi(endpoint=endpoint)
            info = api.model_info(asked["repo"], revision=asked["rev"], files_metadata=True)
            sizes = {entry.rfilename: entry.size or 0 for entry in info.siblings or []}
        wanted = choose(asked["repo"], sizes, asked["file"] or "")
        meter.expect(sum(sizes[name] for name in wanted))
        for name in wanted:
            meter.say(f"downloading {short(name)[1:-1]}")
            url = hub.hf_hub_url(asked["repo"], name, revision=info.sha, endpoint=endpoint)
            with _translated(source):
                about = hub.get_hf_file_metadata(url, endpoint=endpoint)
            etag = str(about.etag or "")
            transfer.fetch(
                folder / "files" / name,
                int(about.size or 0),
                etag,
                _ranges(hub, url, endpoint, source),
                meter,
                source=source,
                sha256=etag if _SHA256.fullmatch(etag) else "",  # of large files
            )
        return _fetched(asked, folder / "files", str(info.sha))

    def _cached(self, hub: Any, source: str, asked: re.Match[str]) -> Fetched:
        try:
            path = hub.snapshot_download(
                asked["repo"], revision=asked["rev"], local_files_only=True
            )
        except (need("huggingface_hub.errors").LocalEntryNotFoundError, ValueError) as exc:
            raise unreachable(source, "HF_HUB_OFFLINE is set, and the cache has it not") from exc
        return _fetched(asked, Path(path), Path(path).name)


def _fetched(asked: re.Match[str], path: Path, commit: str) -> Fetched:
    file = asked["file"] or ""
    repo = asked["repo"]
    return Fetched(
        path / file if file else path,
        names.from_path(Path(file or repo), folder=not file, title=repo.split("/")[-1]),
        f"hf:{repo}@{commit}{'#' + file if file else ''}",
    )


def _ranges(hub: Any, url: str, endpoint: str, source: str) -> transfer.Ranged:
    """Return what opens a file at an offset, through the library's own session and headers.

    Its own download functions begin anew after every interruption that they do not see the end of.
    """
    utils = need("huggingface_hub.utils")

    def ranged(offset: int) -> Generator[bytes, None, None]:
        with _translated(source):
            place = hub.get_hf_file_metadata(url, endpoint=endpoint).location  # signed for minutes
            headers = utils.build_hf_headers()
            if urlsplit(place).netloc != urlsplit(url).netloc:
                headers.pop("authorization", None)  # of the hub, not of where its files are
            headers |= {"accept-encoding": "identity", "range": f"bytes={offset}-"}
            with utils.get_session().stream("GET", place, headers=headers) as answer:
                utils.hf_raise_for_status(answer)
                skip = offset if answer.status_code != 206 else 0
                for data in answer.iter_raw():
                    if len(data) > skip:
                        yield data[skip:]
                    skip = max(skip - len(data), 0)

    return ranged


class _translated:
    """Turns huggingface_hub's errors into ours."""

    def __init__(self, source: str) -> None:
        self._errors, self._source = need("huggingface_hub.errors"), source

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(self, kind: object, exc: BaseException | None, trace: object) -> None:
        errors, source = self._errors, self._source
        if isinstance(exc, (errors.GatedRepoError, errors.DisabledRepoError)):
            raise denied(source, _WHERE) from exc
        if isinstance(exc, errors.RepositoryNotFoundError):
            raise denied(source, _WHERE) from exc
        if isinstance(exc, errors.LocalEntryNotFoundError):
            raise unreachable(source, "the hub does not answer") from exc
        if isinstance(exc, (errors.RevisionNotFoundError, errors.EntryNotFoundError)):
            raise missing(source, "the hub has no such revision or file") from exc
        if isinstance(exc, errors.HFValidationError):
            raise bad_source(source, _FORM) from exc
        if isinstance(exc, errors.HfHubHTTPError):
            status = exc.response.status_code if exc.response is not None else 0
            if status in (401, 403):
                raise denied(source, _WHERE) from exc
            raise unreachable(source, f"the hub answers {status}") from exc
        if isinstance(exc, (errors.HTTPError, errors.OfflineModeIsEnabled)):
            raise unreachable(source, f"no connection ({type(exc).__name__})") from exc
        if isinstance(exc, errors.FileMetadataError):
            raise unreachable(source, "the hub says nothing about a file") from exc
