"""TorchScript and torch.export: zip archives of code, graphs and raw weights, without torch."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmos.lib.errors import InvalidArgument
from llmos.servers.storage.formats import pickles
from llmos.servers.storage.formats.archive import Archive, opened
from llmos.servers.storage.formats.kinds import bad_file
from llmos.servers.storage.model import Description, Format, Task
from llmos.servers.storage.names import short

_MAX_JSON = 256 << 20
_MAX_NESTED = 64 << 20  # bytes of sample inputs
# torch/_export/serde/schema.py ScalarType: number -> (dtype, bytes).
_SCALARS = {1: ("U8", 1), 2: ("int8", 1), 3: ("I16", 2), 4: ("I32", 4), 5: ("I64", 8)} | {
    6: ("F16", 2),
    7: ("F32", 4),
    8: ("F64", 8),
    12: ("BOOL", 1),
    13: ("BF16", 2),
}
_PARAMETERS = {"F16", "BF16", "F32", "F64", "int8", "U8"}
_CODE = (".so", ".o", ".a", ".cpp", ".cubin", ".ptx", ".dll", ".dylib", ".pyd", ".pyc")
# A graph calls functions by name, found by walking attributes from `torch`: "torch.os.system" would
# be found as well.
_TARGETS = re.compile(r"torch\.ops\.[A-Za-z]\w*(\.[A-Za-z_]\w*){1,2}|torch\.sym_\w+|math\.\w+")
_OPERATORS = {
    f"_operator.{name}"
    for name in (
        "getitem add sub mul truediv floordiv mod pow neg pos eq ne lt le gt ge and_ or_ not_ "
        "lshift rshift index"
    ).split()
}


def describe_script(name: str, path: Path) -> Description:
    """Check a TorchScript archive. Raises BAD_MODEL_FILE, PICKLE_REFUSED."""
    with opened(name, path) as archive:
        counts: Counter[str] = Counter()
        root = ""
        for entry in sorted(archive.sizes):
            if not entry.endswith("pkl") or entry.startswith("extra/"):  # extra: bytes for users
                continue
            data = archive.read(entry, pickles.MAX_PICKLE)
            found = pickles.scan(name, entry, data, pickles.script)
            if entry == "data.pkl":
                root = next(iter(found.classes), "")
            if entry in ("data.pkl", "constants.pkl"):
                _storages(archive, entry.removesuffix(".pkl"), found)
                counts += found.elements()
    return _description(Format.TORCHSCRIPT, root, counts)


def _storages(archive: Archive, folder: str, found: pickles.Found) -> None:
    for key, (_, _, needs) in found.storages.items():
        has = archive.sizes.get(f"{folder}/{key}", -1)
        if has != needs:
            raise bad_file(
                archive.name,
                f"{folder}/{short(key)[1:-1]} has {max(has, 0):,} bytes and its header says "
                f"{needs:,}; download or export it again",
            )


def describe_export(name: str, path: Path) -> Description:
    """Check a torch.export archive. Raises BAD_MODEL_FILE, PICKLE_REFUSED."""
    with opened(name, path) as archive:
        for entry in archive.sizes:
            if entry.endswith(_CODE) or entry.startswith("data/aotinductor/"):
                raise bad_file(
                    name,
                    f"it holds compiled code ({short(entry)[1:-1]}); save it by "
                    "torch.export.save, which keeps the graph only",
                )
        _graphs(archive)
        counts = _weights(archive)
        for entry in archive.sizes:
            if entry.endswith((".pt", ".pkl")):
                _nested(archive, entry)
    return _description(Format.TORCH_EXPORT, "", counts)


def _graphs(archive: Archive) -> None:
    """Check that graphs call operators of torch and nothing else."""
    graphs = [e for e in archive.sizes if re.fullmatch(r"models/[^/]+\.json", e)]
    graphs += [e for e in archive.sizes if e == "serialized_exported_program.json"]
    if not graphs:
        raise bad_file(archive.name, "it holds no graph; export it again")
    for entry in graphs:
        for target in _targets(_json(archive, entry)):
            if target in _OPERATORS or (_TARGETS.fullmatch(target) and "__" not in target):
                continue
            raise InvalidArgument(
                "PICKLE_REFUSED",
                f"{short(archive.name, 100)[1:-1]}: its graph calls {short(target)}, which is no "
                "operator of torch and could run any code; export the model again from sources "
                "that you trust.",
            )


def _targets(value: object) -> Iterator[str]:
    """Yield the `target` of every node, of inner graphs too."""
    todo = [value]
    while todo:
        item = todo.pop()
        if isinstance(item, list):
            todo += item
        elif isinstance(item, dict):
            target = item.get("target")
            if isinstance(target, str) and "inputs" in item:
                yield target
            todo += item.values()


def _weights(archive: Archive) -> Counter[str]:
    """Count elements by dtype, and check that raw weights are as long as their shapes say."""
    counts: Counter[str] = Counter()
    for entry in list(archive.sizes):
        found = re.fullmatch(r"data/(weights|constants)/[^/]+_config\.json", entry)
        if not found:
            continue
        config = _json(archive, entry)
        tensors = config.get("config") if isinstance(config, dict) else None
        if not isinstance(tensors, dict):
            raise bad_file(archive.name, f"{short(entry)[1:-1]} is damaged; export it again")
        for meta in tensors.values():
            try:
                _weight(archive, found[1], meta, counts)
            except (KeyError, TypeError, AttributeError) as exc:
                raise bad_file(
                    archive.name, f"{short(entry)[1:-1]} is damaged; export it again"
                ) from exc
    return counts


def _weight(archive: Archive, kind: str, meta: Any, counts: Counter[str]) -> None:
    where = f"data/{kind}/{meta['path_name']}"
    if meta["use_pickle"] or where.split("/")[-1].startswith("custom_obj"):
        if where in archive.sizes:
            _nested(archive, where)
        return
    tensor = meta["tensor_meta"]
    if tensor is None:
        return
    dtype, width = _SCALARS.get(tensor["dtype"], ("", 0))
    elements, last = 1, tensor["storage_offset"]["as_int"]
    for dim, stride in zip(tensor["sizes"], tensor["strides"], strict=True):
        size, step = dim["as_int"], stride["as_int"]
        if not (isinstance(size, int) and isinstance(step, int) and size >= 0 and step >= 0):
            raise TypeError("a size that is no number")
        elements *= size
        last += max(size - 1, 0) * step
    needs = (last + 1) * width if elements else 0
    has = archive.sizes.get(where, -1)
    if has < needs:
        raise bad_file(
            archive.name,
            f"{short(where)[1:-1]} has {max(has, 0):,} bytes and its header says {needs:,}; "
            "download or export it again",
        )
    if kind == "weights":
        counts[dtype] += elements


def _nested(archive: Archive, entry: str) -> None:
    """Scan a pickle, or the zip that torch.save wrote, inside of the archive."""
    data = archive.read(entry, _MAX_NESTED)
    if not data.startswith(b"PK"):
        pickles.scan(archive.name, entry, data, pickles.export)
        return
    import tempfile

    with tempfile.NamedTemporaryFile(prefix="llmos-nested-") as file:
        file.write(data)
        file.flush()
        with opened(archive.name, Path(file.name)) as inner:
            found = [e for e in inner.sizes if e.endswith("pkl")]
            if not found or any(e.startswith("code/") for e in inner.sizes):
                raise pickles.refused(archive.name, entry, "it is no plain torch.save")
            for name in found:
                raw = inner.read(name, pickles.MAX_PICKLE)
                pickles.scan(archive.name, f"{entry}/{name}", raw, pickles.export)


def _json(archive: Archive, entry: str) -> Any:
    try:
        return json.loads(archive.read(entry, _MAX_JSON))
    except (ValueError, RecursionError) as exc:
        raise bad_file(
            archive.name, f"{short(entry)[1:-1]} is not valid JSON; export it again"
        ) from exc


def _description(form: Format, root: str, counts: Counter[str]) -> Description:
    kept = Counter({d: n for d, n in counts.items() if d in _PARAMETERS})
    return Description(
        format=form,
        task=Task.PREDICT,
        architecture=root[:64],
        parameters=sum(kept.values()),
        dtype=kept.most_common(1)[0][0] if kept else "",
    )
