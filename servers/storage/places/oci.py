"""Pulling a model from an OCI registry: `oci:HOST/REPOSITORY:TAG`.

Takes artifacts of the CNCF ModelPack specification (media types application/vnd.cncf.model.*), of
`oras push`, and of Ollama (application/vnd.ollama.image.*).
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmos.servers.storage import names
from llmos.servers.storage.disk import require_room, writing
from llmos.servers.storage.formats.card import spdx
from llmos.servers.storage.names import short
from llmos.servers.storage.places import reference, transfer
from llmos.servers.storage.places.base import Fetched, Meter, Place, mismatch, missing
from llmos.servers.storage.places.registry import Registry
from llmos.servers.storage.places.unpack import unpack

TITLE = "org.opencontainers.image.title"
FILEPATH = "org.cncf.model.filepath"
DIGEST = "io.llmos.version.digest"
_OLLAMA = {
    "application/vnd.ollama.image.model": "model.gguf",
    "application/vnd.ollama.image.license": "LICENSE",
}
_TAR = re.compile(r"[.+]tar([.+](gzip|gz))?$")
_MAX_LAYERS = 1000


@dataclass(frozen=True)
class _Layer:
    name: str  # "" = a tar file
    digest: str
    size: int


class Oci(Place):
    """Fetches the layers of one manifest."""

    def fetch(self, source: str, folder: Path, meter: Meter) -> Fetched:
        """See Place. Raises BAD_NAME for layers whose title is no file name, and BAD_ARCHIVE."""
        place = reference.parse(source)
        with Registry(place, source) as registry:
            meter.say(f"asking {place.host}")
            manifest, digest = registry.manifest()
            layers = _layers(manifest, source)
            total = sum(layer.size for layer in layers)
            meter.expect(total)
            require_room(folder, total)
            for number, layer in enumerate(layers):
                meter.say(f"downloading {short(layer.name or f'layer {number}')[1:-1]}")
                path = folder / "files" / layer.name if layer.name else folder / f"{number}.tar"
                transfer.fetch(
                    path,
                    layer.size,
                    layer.digest,
                    _blob(registry, layer.digest),
                    meter,
                    source=source,
                    sha256=layer.digest.removeprefix("sha256:"),
                )
        tars = [folder / f"{n}.tar" for n, layer in enumerate(layers) if not layer.name]
        path = _unpacked(folder, tars, meter) if tars else folder / "files"
        notes = manifest.get("annotations")
        notes = notes if isinstance(notes, dict) else {}
        said = str(notes.get(DIGEST, ""))
        return Fetched(
            path,
            names.from_path(Path(place.repo), folder=True),
            place.at(digest),
            license=spdx(str(notes.get("org.opencontainers.image.licenses", ""))),
            files=tuple(layer.name for layer in layers) if said else (),
            digest=said,
        )


def _unpacked(folder: Path, tars: list[Path], meter: Meter) -> Path:
    """Unpack the layers that are tar files, and put the other files beside them."""
    target = folder / "unpacked"
    shutil.rmtree(target, ignore_errors=True)  # of a try that was interrupted
    with writing(folder):
        shutil.copytree(folder / "files", target, copy_function=os.link) if (
            folder / "files"
        ).is_dir() else target.mkdir()
    for tar in tars:
        meter.say(f"unpacking {tar.name}")
        unpack(tar, target, meter)
        tar.unlink()
    inside = list(target.iterdir())
    return inside[0] if len(inside) == 1 and inside[0].is_dir() else target


def _blob(registry: Registry, digest: str) -> transfer.Ranged:
    def ranged(offset: int) -> Generator[bytes, None, None]:
        return registry.blob(digest, offset)

    return ranged


def _layers(manifest: dict[str, Any], source: str) -> list[_Layer]:
    found: list[_Layer] = []
    try:
        for layer in manifest["layers"]:
            kind, notes = str(layer["mediaType"]), layer.get("annotations") or {}
            name = str(notes.get(FILEPATH) or notes.get(TITLE) or _OLLAMA.get(kind, ""))
            if _TAR.search(kind):
                name = ""
            elif not name:
                continue  # e.g. Ollama's parameters
            else:
                names.check_file_name(name)
            digest, size = str(layer["digest"]), layer["size"]
            if not re.fullmatch(r"sha256:[0-9a-f]{64}", digest) or not isinstance(size, int):
                raise TypeError(digest)
            found.append(_Layer(name, digest, max(size, 0)))
    except (KeyError, TypeError, AttributeError) as exc:
        raise mismatch(source, "the manifest", "is damaged, or of another kind") from exc
    given = [layer.name for layer in found if layer.name]
    if not found or len(found) > _MAX_LAYERS or len(set(given)) < len(given):
        raise missing(source, "no model there: its layers have no file names, or the same")
    return found
