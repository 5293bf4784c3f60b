"""A Hugging Face style hub, by huggingface_hub: `hf:OWNER/NAME[@REVISION][#FILE]`.

Endpoint (HF_ENDPOINT), token (HF_TOKEN or its file), cache and offline mode (HF_HUB_OFFLINE) are
those of huggingface_hub in the storage server's environment.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from llmos.servers.storage import names
from llmos.servers.storage.disk import require_room, writing
from llmos.servers.storage.names import short
from llmos.servers.storage.places.base import (
    Fetched,
    Meter,
    Place,
    bad_source,
    denied,
    mismatch,
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
_WHERE = "HF_TOKEN or `hf auth login`"


class Hub(Place):
    """Fetches one revision, resolved to its commit first."""

    def fetch(self, source: str, folder: Path, meter: Meter) -> Fetched:
        """See Place. Offline, a model in huggingface_hub's own cache is taken from there."""
        asked = _SOURCE.fullmatch(source)
        if asked is None or ".." in source or "--" in asked["repo"]:
            raise bad_source(source, _FORM)
        # Xet transfers can neither be cancelled nor resumed within a file.
        os.environ.setdefault("HF_HUB_DISABLE_XET", "1")
        hub = need("huggingface_hub")
        if hub.constants.HF_HUB_OFFLINE:
            return self._cached(hub, source, asked)
        with writing(folder), _translated(hub, source):
            meter.say(f"asking the hub for {asked['repo']}")
            info = hub.HfApi().model_info(asked["repo"], revision=asked["rev"], files_metadata=True)
            sizes = {entry.rfilename: entry.size or 0 for entry in info.siblings or []}
            wanted = choose(asked["repo"], sizes, asked["file"] or "")
            total = sum(sizes[name] for name in wanted)
            meter.expect(total)
            require_room(folder, total)
            for name in wanted:
                meter.say(f"downloading {short(name)[1:-1]}")
                hub.hf_hub_download(
                    asked["repo"],
                    name,
                    revision=info.sha,
                    local_dir=folder / "files",
                    tqdm_class=_bar(hub, meter),
                )
                got = (folder / "files" / name).stat().st_size
                if sizes[name] and got != sizes[name]:
                    raise mismatch(source, name, f"has {got:,} bytes, not {sizes[name]:,}")
        return _fetched(asked, folder / "files", str(info.sha))

    def _cached(self, hub: Any, source: str, asked: re.Match[str]) -> Fetched:
        try:
            path = hub.snapshot_download(
                asked["repo"], revision=asked["rev"], local_files_only=True
            )
        except (hub.errors.LocalEntryNotFoundError, ValueError) as exc:
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


def _bar(hub: Any, meter: Meter) -> type:
    """Return a progress bar class, as huggingface_hub takes one, that tells the meter."""

    class Bar(hub.utils.tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})
            meter.add(int(kwargs.get("initial") or 0))

        def update(self, n: float | None = 1) -> None:
            meter.add(int(n or 0))

    return Bar


class _translated:
    """Turns huggingface_hub's errors into ours."""

    def __init__(self, hub: Any, source: str) -> None:
        self._errors, self._source = hub.errors, source

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
        if isinstance(exc, errors.FileMetadataError) or (
            isinstance(exc, OSError) and "Consistency check" in str(exc)
        ):
            raise mismatch(source, "a file", "is not as long as announced") from exc
