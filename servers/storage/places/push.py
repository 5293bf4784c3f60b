"""Pushing a version to an OCI registry as an artifact of the CNCF ModelPack specification."""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Iterator
from typing import Any

from llmos.lib.errors import AlreadyExists, DataLoss, InvalidArgument, LLMOSError
from llmos.servers.storage.blobs import Blobs, damaged
from llmos.servers.storage.disk import CHUNK
from llmos.servers.storage.model import File, Version
from llmos.servers.storage.names import short
from llmos.servers.storage.places import reference
from llmos.servers.storage.places.base import Meter
from llmos.servers.storage.places.oci import DIGEST, FILEPATH, TITLE
from llmos.servers.storage.places.registry import MANIFEST, Registry

_KIND = "application/vnd.cncf.model"
_WEIGHTS = (".safetensors", ".gguf", ".onnx", ".pt", ".pt2", ".onnx_data", ".data", ".bin")
_DOCS = ("README", "LICEN", "NOTICE")
REF = "io.llmos.version.ref"


def push(version: Version, blobs: Blobs, destination: str, meter: Meter) -> str:
    """Upload what the repository has not, then tag; return `oci:HOST/REPOSITORY@sha256:...`.

    Raises BAD_DESTINATION, DESTINATION_REFUSED, DESTINATION_UNREACHABLE, BLOB_DAMAGED.
    """
    try:
        place = reference.parse(destination)
    except InvalidArgument as exc:
        raise bad_destination(destination) from exc
    if place.digest:
        raise bad_destination(destination)
    try:
        with Registry(place, destination, "pull,push") as registry:
            meter.expect(version.size_bytes)
            for file in version.files:
                meter.say(f"pushing {file.name}")
                if registry.has(f"sha256:{file.sha256}"):
                    meter.add(file.size)
                else:
                    _upload(registry, blobs, file, meter)
            config = _json(_config(version))
            digest = f"sha256:{hashlib.sha256(config).hexdigest()}"
            if not registry.has(digest):
                registry.upload(digest, iter([config]))
            meter.say("tagging")
            return place.at(registry.tag(_json(_manifest(version, digest, len(config)))))
    except DataLoss:
        raise
    except LLMOSError as exc:
        if not exc.reason.startswith(("SOURCE_", "NO_SUCH_SOURCE")):
            raise
        reason = exc.reason.replace("NO_SUCH_SOURCE", "SOURCE_REFUSED")
        said = exc.message.replace("; try again: what has arrived is kept for a day", "; try again")
        raise type(exc)(reason.replace("SOURCE", "DESTINATION"), said) from exc


def _upload(registry: Registry, blobs: Blobs, file: File, meter: Meter) -> None:
    try:
        with blobs.open(file.sha256) as content:

            def pieces() -> Iterator[bytes]:
                for offset in range(0, content.size, CHUNK):
                    data = content.read(offset, min(CHUNK, content.size - offset))
                    meter.add(len(data))
                    yield data

            registry.upload(f"sha256:{file.sha256}", pieces())
    except DataLoss as exc:
        if exc.reason == "DIGEST_MISMATCH":  # the registry counted other bytes than we promised
            raise damaged(file.sha256, "its bytes are others") from exc
        raise


def _layer_kind(name: str) -> str:
    if name.endswith(_WEIGHTS):
        return f"{_KIND}.weight.v1.raw"
    if name.startswith(_DOCS):
        return f"{_KIND}.doc.v1.raw"
    return f"{_KIND}.weight.config.v1.raw"


def _manifest(version: Version, config: str, size: int) -> dict[str, Any]:
    """Return the same manifest for the same version at any time."""
    about = version.description
    notes = {DIGEST: version.digest, REF: version.ref, TITLE: version.name}
    notes["org.opencontainers.image.created"] = _time(version)
    notes["org.opencontainers.image.version"] = str(version.version)
    if about.license:
        notes["org.opencontainers.image.licenses"] = about.license
    return {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": f"{_KIND}.manifest.v1+json",
        "config": {"mediaType": f"{_KIND}.config.v1+json", "digest": config, "size": size},
        "layers": [
            {
                "mediaType": _layer_kind(file.name),
                "digest": f"sha256:{file.sha256}",
                "size": file.size,
                "annotations": {TITLE: file.name, FILEPATH: file.name},
            }
            for file in version.files
        ],
        "annotations": notes,
    }


def _config(version: Version) -> dict[str, Any]:
    """Return the model's config as ModelPack defines it."""
    about = version.description
    descriptor = {"name": version.name, "version": str(version.version)}
    descriptor |= {"createdAt": _time(version), "family": about.architecture}
    return {
        "descriptor": {k: v for k, v in descriptor.items() if v}
        | ({"licenses": [about.license]} if about.license else {}),
        "config": {
            "format": about.format.name.lower(),
            "architecture": about.architecture,
            "precision": about.dtype,
            "paramSize": str(about.parameters),
        },
        "modelfs": {"type": "layers", "diffIds": [f"sha256:{f.sha256}" for f in version.files]},
    }


def _time(version: Version) -> str:
    at = datetime.datetime.fromtimestamp(int(version.created_unix_s), datetime.UTC)
    return at.isoformat().replace("+00:00", "Z")


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def bad_destination(destination: str) -> InvalidArgument:
    """Return BAD_DESTINATION."""
    return InvalidArgument(
        "BAD_DESTINATION",
        f"{short(destination)} is not a destination: give the absolute path of a new folder, or "
        "oci:HOST/REPOSITORY:TAG.",
    )


def exists(destination: str) -> AlreadyExists:
    """Return DESTINATION_EXISTS."""
    return AlreadyExists(
        "DESTINATION_EXISTS",
        f"{short(destination, 200)[1:-1]} is there and is not this version; name a new folder.",
    )
