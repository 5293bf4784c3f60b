"""Which files of a repository to bring, told by their names; their content decides later."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from llmos.lib.errors import InvalidArgument
from llmos.servers.storage.folder import BESIDE
from llmos.servers.storage.formats.describe import INDEX
from llmos.servers.storage.formats.kinds import FORMATS, bad_file, pickle_refused
from llmos.servers.storage.names import check_file_name, short

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5")
_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}\.safetensors")


def choose(place: str, names: Iterable[str], file: str = "") -> list[str]:
    """Return the files of one model out of all `names`, which are relative paths.

    file: the weights that are wanted, where there are several models. Raises PICKLE_REFUSED,
    BAD_MODEL_FILE when there is none, or several.
    """
    known = [n for n in names if _safe(n)]
    beside = [n for n in known if BESIDE.fullmatch(n)]
    if file:
        if file not in known:
            raise bad_file(place, f"it has no file {short(file)}")
        return _with(file, known, beside)
    top = [n for n in known if "/" not in n or n.startswith("onnx/")]
    tensors = [n for n in top if n.endswith(".safetensors") and "/" not in n]
    if INDEX in known:
        return sorted({*tensors, INDEX, *beside})
    for kind, canonical in (
        (tensors, "model.safetensors"),
        ([n for n in top if n.endswith(".gguf")], "model.gguf"),
        ([n for n in top if n.endswith(".onnx")], "model.onnx"),
        ([n for n in top if n.endswith(".pt2")], "model.pt2"),
    ):
        if kind:
            return _with(_one(place, kind, canonical), known, beside)
    if pickles := [n for n in top if n.endswith(_PICKLES)]:
        raise pickle_refused(pickles[0])
    raise bad_file(place, f"no model in it ({FORMATS})")


def _safe(name: str) -> bool:
    """Return whether a place's name for a file is one below any folder of ours."""
    try:
        check_file_name(name)
    except InvalidArgument:
        return False
    return True


def _one(place: str, found: Sequence[str], canonical: str) -> str:
    for name in (canonical, f"onnx/{canonical}"):
        if name in found:
            return name
    if len(found) == 1:
        return found[0]
    raise bad_file(
        place,
        f"{len(found)} models in it ({', '.join(short(n)[1:-1] for n in found[:5])}); add #FILE to "
        "the source to say which",
    )


def _with(main: str, known: Sequence[str], beside: Sequence[str]) -> list[str]:
    """Return the weights with what belongs to them: shards, external data, config, tokenizer."""
    extra = {main}
    if shard := _SHARD.fullmatch(main):
        extra |= {n for n in known if n.startswith(f"{shard[1]}-") or n == INDEX}
    if main.endswith(".onnx"):
        folder, _, name = main.rpartition("/")
        extra |= {
            n
            for n in known
            if n.rpartition("/")[0] == folder
            and (n.rpartition("/")[2].startswith((f"{name}_", f"{name}.")) or n.endswith(".data"))
        }
    if main.endswith(".gguf"):
        beside = [n for n in beside if n.startswith(("README", "LICEN"))]
    return sorted(extra | set(beside))
