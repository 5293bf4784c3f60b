"""One import, from a source to a registered version; plain blocking code for a thread."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence

from llmos.lib.errors import Cancelled
from llmos.servers.storage import names
from llmos.servers.storage.blobs import Blobs, no_such_blob
from llmos.servers.storage.blobs.staging import unreadable
from llmos.servers.storage.formats.describe import describe
from llmos.servers.storage.formats.kinds import bad_file
from llmos.servers.storage.model import Description, Draft, File, Progress, Registered
from llmos.servers.storage.places.bring import brought, check_digest
from llmos.servers.storage.places.incoming import Incoming
from llmos.servers.storage.registry import Registry, checks
from llmos.servers.storage.sources import Source

_MAX_FILES = 1000


class Watch:
    """What the waiting side sees of an import, and how it stops it. Any thread may use it."""

    def __init__(self) -> None:
        """Start with nothing done."""
        self.progress = Progress("waiting for other imports")
        self._stop = threading.Event()

    def cancel(self) -> None:
        """Make the import end with Cancelled at its next step."""
        self._stop.set()

    def say(self, stage: str) -> None:
        """Enter a stage. Raises Cancelled."""
        self.progress = dataclasses.replace(self.progress, stage=stage)
        self.add(0)

    def expect(self, total: int) -> None:
        """Set the bytes in all."""
        self.progress = dataclasses.replace(self.progress, total_bytes=total)

    def add(self, count: int) -> None:
        """Count bytes done. Raises Cancelled."""
        if self._stop.is_set():
            raise Cancelled("CANCELLED", "The import was cancelled; nothing of it was kept.")
        done = self.progress.done_bytes + count
        self.progress = dataclasses.replace(self.progress, done_bytes=done)


def import_model(
    blobs: Blobs, registry: Registry, source: str, name: str, watch: Watch, incoming: Incoming
) -> Registered:
    """Import; see Storage.import_model. Changes no version unless it returns.

    incoming: where what comes from other hosts is kept until it is stored, or gone on with.
    """
    if name:
        names.check_name(name)
    watch.say("looking at the source")
    with brought(source, incoming, watch) as found:
        return register(blobs, registry, found, name, watch)


def register(
    blobs: Blobs, registry: Registry, found: Source, name: str, watch: Watch
) -> Registered:
    """Store the files of a source and register them under `name`, "" = as the source says."""
    for file, _ in found.files:
        names.check_file_name(file)
    try:
        total = sum(path.stat().st_size for _, path in found.files)
        watch.expect(watch.progress.done_bytes + total)
    except OSError as exc:  # it went away while it was being looked at
        raise unreadable(found.files[0][1].parent, exc.strerror or "not there") from exc
    with blobs.staging() as staging:
        files: list[File] = []
        for file, path in found.files:
            watch.say(f"reading {path.name}")
            files.append(staging.add(file, path, watch.add))
            if found.temporary:
                path.unlink()  # so that a model never takes twice its size
        watch.say("checking the files")
        check_digest(found, files)
        files, about = _described(files)
        if not about.license:
            about = dataclasses.replace(about, license=found.license)
        watch.say("registering")
        draft = Draft(name or found.name, tuple(files), about, found.lineage)
        with blobs.placing(staging.staged) as sql:
            version, existed = registry.insert(sql, draft)
    return Registered(version, existed)


def create_version(blobs: Blobs, registry: Registry, draft: Draft) -> Registered:
    """Register a version of stored blobs; see Storage.create_version."""
    checks.draft(draft)
    if draft.request_id and (earlier := registry.of_request(draft.request_id)):
        return Registered(earlier, True)
    if not 0 < len(draft.files) <= _MAX_FILES:
        raise bad_file(draft.name, f"a version has 1 to {_MAX_FILES} files, not {len(draft.files)}")
    if len({names.check_file_name(f.name) for f in draft.files}) < len(draft.files):
        raise bad_file(draft.name, "two files have the same name")
    with blobs.staging() as staging:
        files = []
        for file in draft.files:
            sha256 = names.check_digest(file.sha256)
            if not blobs.pin(sha256):
                raise no_such_blob(sha256)
            staging.pinned.append(sha256)
            (size,) = blobs.sizes([sha256])
            files.append(File(file.name, sha256, size, blobs.path(sha256)))
        files, about = _described(files)
        if not about.license:
            about = dataclasses.replace(about, license=registry.license(draft.lineage.parents))
        complete = dataclasses.replace(draft, files=tuple(files), description=about)
        with blobs.placing([]) as sql:
            version, existed = registry.insert(sql, complete)
    return Registered(version, existed)


def _described(files: Sequence[File]) -> tuple[list[File], Description]:
    """Return the files with the main one first, and what they are."""
    main, about = describe({file.name: file.path for file in files if file.path})
    return sorted(files, key=lambda file: file.name != main), about
