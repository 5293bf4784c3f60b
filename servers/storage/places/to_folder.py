"""Writing a version's files into a folder, which appears whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from llmos.lib.errors import FailedPrecondition, PermissionDenied
from llmos.servers.storage.blobs import Blobs, damaged
from llmos.servers.storage.disk import CHUNK, require_room, sync_dir, writing
from llmos.servers.storage.model import File, Version
from llmos.servers.storage.places.base import Meter
from llmos.servers.storage.places.push import bad_destination, exists

SIGNATURE = "model.sig"  # where model-signing looks for it


def export(version: Version, blobs: Blobs, bundle: bytes, destination: str, meter: Meter) -> str:
    """Write the files, and the signature when there is one; return the folder.

    A folder that holds just this version already is left as it is. Raises BAD_DESTINATION,
    DESTINATION_EXISTS, DESTINATION_REFUSED, BLOB_DAMAGED, DISK_FULL.
    """
    target = Path(destination)
    if not target.is_absolute() or "\0" in destination or len(destination) > 4000:
        raise bad_destination(destination)
    if ".." in target.parts or not target.name:
        raise bad_destination(destination)
    meter.expect(version.size_bytes)
    try:
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            if not _same(target, version, meter):
                raise exists(destination)
            return str(target)
        _write(version, blobs, bundle, target, meter)
    except (FailedPrecondition, FileExistsError) as exc:
        if isinstance(exc, FailedPrecondition) and exc.reason != "READ_ONLY":
            raise
        raise PermissionDenied(
            "DESTINATION_REFUSED", f"The storage server may not write {target}; name another."
        ) from exc
    return str(target)


def _write(version: Version, blobs: Blobs, bundle: bytes, target: Path, meter: Meter) -> None:
    with writing(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        require_room(target.parent, version.size_bytes)
        temporary = target.with_name(f".{target.name[:100]}.{version.digest[:12]}.part")
        shutil.rmtree(temporary, ignore_errors=True)  # of a server that was killed
        temporary.mkdir()
        try:
            for file in version.files:
                meter.say(f"writing {file.name}")
                _copy(file, blobs, temporary / file.name, meter)
            if bundle:
                (temporary / SIGNATURE).write_bytes(bundle)
            for folder in {path.parent for path in temporary.rglob("*")}:
                sync_dir(folder)
            temporary.rename(target)
            sync_dir(target.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _copy(file: File, blobs: Blobs, path: Path, meter: Meter) -> None:
    path.parent.mkdir(exist_ok=True)
    digest = hashlib.sha256()
    with blobs.open(file.sha256) as content, path.open("xb") as out:
        for offset in range(0, content.size, CHUNK):
            data = content.read(offset, min(CHUNK, content.size - offset))
            digest.update(data)
            out.write(data)
            meter.add(len(data))
        out.flush()
        os.fsync(out.fileno())
    if digest.hexdigest() != file.sha256:
        raise damaged(file.sha256, "its bytes are others")


def _same(target: Path, version: Version, meter: Meter) -> bool:
    """Return whether the folder holds the files of this version and no others."""
    if not target.is_dir():
        return False
    there = {str(p.relative_to(target)): p for p in target.rglob("*") if p.is_file()}
    there.pop(SIGNATURE, None)
    if {f.name: f.size for f in version.files} != {n: p.stat().st_size for n, p in there.items()}:
        return False
    for file in version.files:
        meter.say(f"comparing {file.name}")
        with there[file.name].open("rb") as content:
            if hashlib.file_digest(content, "sha256").hexdigest() != file.sha256:
                return False
        meter.add(file.size)
    return True
