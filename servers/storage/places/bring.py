"""From what a caller names as a source to files on this host, whatever place they come from."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from llmos.servers.storage import names, sources
from llmos.servers.storage.formats.kinds import MODELS, Kind, kind_of
from llmos.servers.storage.model import File, version_digest
from llmos.servers.storage.places.base import Fetched, Meter, Place, mismatch
from llmos.servers.storage.places.hub import Hub
from llmos.servers.storage.places.incoming import Incoming
from llmos.servers.storage.places.oci import Oci
from llmos.servers.storage.places.s3 import S3
from llmos.servers.storage.places.unpack import is_archive, unpack
from llmos.servers.storage.sources import Source

_PLACES: dict[str, Place] = {"hf:": Hub(), "oci:": Oci(), "s3://": S3()}
_MAX_SOURCE = 2000


@contextlib.contextmanager
def brought(source: str, incoming: Incoming, meter: Meter) -> Iterator[Source]:
    """Yield the files of a source, which stay until the end. Raises as Storage.import_model."""
    place = next((p for scheme, p in _PLACES.items() if source.startswith(scheme)), None)
    if place is not None and len(source) > _MAX_SOURCE:
        source = source[:_MAX_SOURCE] + "\0"  # no place takes such a one; its error shows the rest
    if place is not None:
        with incoming.taken(source, meter) as folder:
            yield _source(place.fetch(source, folder, meter), source)
    elif archive := _archive(source):
        with incoming.taken(source, meter) as folder:
            (folder / "files").mkdir(exist_ok=True)
            meter.say(f"unpacking {archive.name}")
            found = sources.find(str(unpack(archive, folder / "files", meter)))
            stem = re.sub(r"\.(zip|tgz|tar(\.\w+)?)$", "", archive.name, flags=re.IGNORECASE)
            name = names.from_path(archive.with_name(stem or archive.name), folder=True)
            yield replace(found, name=name, origin=source, temporary=True)
    else:
        yield sources.find(source)


def _source(got: Fetched, source: str) -> Source:
    """Return the files of what a place brought. Raises DIGEST_MISMATCH, BAD_MODEL_FILE."""
    if got.files:
        files = tuple((name, got.path / name) for name in got.files)
        found = Source(files, got.name, got.origin, temporary=True)
    else:
        found = replace(sources.find(str(got.path)), origin=got.origin, temporary=True)
        found = replace(found, name=got.name)
    return replace(found, license=got.license or found.license, digest=got.digest)


def check_digest(source: Source, files: list[File]) -> None:
    """Raise DIGEST_MISMATCH when the files are not the version that the place said they are."""
    if source.digest and version_digest(files) != source.digest:
        raise mismatch(source.origin, "the files", "are not those of the version it names")


def _archive(source: str) -> Path | None:
    """Return the path when it is an archive and no model itself."""
    try:
        path = Path(source)
        if not path.is_absolute() or "\0" in source or not path.is_file() or not is_archive(path):
            return None
        return path if kind_of(path) not in MODELS | {Kind.PICKLE} else None
    except OSError:  # sources.find says what is wrong
        return None
