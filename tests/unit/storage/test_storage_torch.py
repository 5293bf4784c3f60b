"""TorchScript and torch.export: told by content, and refused when they would run anything."""

from __future__ import annotations

import io
import json
import pickle
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch_files import rewritten, tiny_checkpoint, tiny_export, tiny_script

from llmos.lib.errors import InvalidArgument
from llmos.servers.storage.formats.describe import describe
from llmos.servers.storage.formats.kinds import Kind, kind_of
from llmos.servers.storage.model import Description, Format, Task


def refused(path: Path) -> InvalidArgument:
    with pytest.raises(InvalidArgument) as caught:
        describe({path.name: path})
    assert len(caught.value.message) < 500
    return caught.value


@pytest.fixture
def script(tmp_path: Path) -> Path:
    return tiny_script(tmp_path / "net.bin")


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    return tiny_export(tmp_path / "net.dat")


def test_both_are_told_by_content(script: Path, exported: Path) -> None:
    about = Description(Format.TORCHSCRIPT, Task.PREDICT, "Net", 15, "F32")
    assert describe({"x": script}) == ("x", about)
    about = Description(Format.TORCH_EXPORT, Task.PREDICT, "", 15, "F32")
    assert describe({"x": exported}) == ("x", about)


def test_a_checkpoint_is_still_a_pickle(tmp_path: Path) -> None:
    path = tiny_checkpoint(tmp_path / "net.pt")
    assert kind_of(path) is Kind.PICKLE
    error = refused(path)
    assert error.reason == "PICKLE_REFUSED" and "llmos-ctl model convert" in error.message


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, ("touch /tmp/evil",)


EVIL = pickle.dumps(Evil(), protocol=2)
EVIL_4 = pickle.dumps(Evil(), protocol=4)


@pytest.mark.parametrize("entry", ["data.pkl", "constants.pkl", "code/x.debug_pkl", "more.pkl"])
@pytest.mark.parametrize("data", [EVIL, EVIL_4], ids=["GLOBAL", "STACK_GLOBAL"])
def test_a_script_that_names_foreign_globals(script: Path, entry: str, data: bytes) -> None:
    error = refused(rewritten(script, {entry: data}))
    assert error.reason == "PICKLE_REFUSED" and entry in error.message
    words = "'posix.system'" if data is EVIL else "STACK_GLOBAL"
    assert words in error.message


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("data", [saved(Evil()), EVIL], ids=["torch.save", "bare"])
def test_an_export_whose_sample_inputs_run_code(exported: Path, data: bytes) -> None:
    # torch.export.load reads these with weights_only=False when weights_only=True fails.
    error = refused(rewritten(exported, {"data/sample_inputs/model.pt": data}))
    assert error.reason == "PICKLE_REFUSED" and "posix.system" in error.message


def graph(path: Path) -> dict[str, object]:
    with zipfile.ZipFile(path) as archive:
        name = next(n for n in archive.namelist() if n.endswith("models/model.json"))
        return dict(json.loads(archive.read(name)))


@pytest.mark.parametrize(
    "target",
    [
        "torch.os.system",
        "torch.ops.aten.relu.default.__globals__",
        "torch.ops.__class__",
        "_operator.methodcaller",
        "torch.load",
        "builtins.eval",
        "#torch.hub.load",
        "",
    ],
)
def test_an_export_whose_graph_calls_foreign_functions(exported: Path, target: str) -> None:
    model = json.dumps(graph(exported)).replace("torch.ops.aten.relu.default", target)
    error = refused(rewritten(exported, {"models/model.json": model.encode()}))
    assert error.reason == "PICKLE_REFUSED" and "no operator of torch" in error.message


def config(exported: Path) -> bytes:
    with zipfile.ZipFile(exported) as archive:
        name = next(n for n in archive.namelist() if n.endswith("weights_config.json"))
        return archive.read(name)


def test_an_export_with_pickled_weights(exported: Path) -> None:
    changed = config(exported).replace(b'"use_pickle": false', b'"use_pickle": true')
    name = "data/weights/model_weights_config.json"
    error = refused(rewritten(exported, {name: changed, "data/weights/weight_0": EVIL}))
    assert error.reason == "PICKLE_REFUSED"


def test_headers_that_lie_about_lengths(script: Path, exported: Path) -> None:
    name = "data/weights/model_weights_config.json"
    longer = config(exported).replace(
        b'"as_int": 3}, {"as_int": 4}', b'"as_int": 3000}, {"as_int": 4}'
    )
    assert "its header says 48,000" in refused(rewritten(exported, {name: longer})).message
    error = refused(rewritten(script, {"data/0": b"\0" * 40}))
    assert error.reason == "BAD_MODEL_FILE" and "40 bytes and its header says 48" in error.message
    assert "0 bytes and its header" in refused(rewritten(script, {"data/0": None})).message


def test_compiled_code_is_refused(exported: Path) -> None:
    error = refused(rewritten(exported, {"data/aotinductor/model/x.so": b"\x7fELF"}))
    assert error.reason == "BAD_MODEL_FILE" and "compiled code" in error.message


@pytest.mark.parametrize("name", ["../../evil", "/etc/passwd", "code/../../x", "a\\..\\b", "a//b"])
def test_entries_outside_of_the_archive(script: Path, name: str) -> None:
    error = refused(rewritten(script, {name: b"x"}))
    assert error.reason == "BAD_MODEL_FILE" and "outside of the archive" in error.message


def test_a_zip_bomb(script: Path) -> None:
    bomb = rewritten(script, {"code/bomb.py": bytes(257 << 20)}, deflate=True)
    assert bomb.stat().st_size < 1 << 20
    assert "zip bomb" in refused(bomb).message


def test_entries_that_overlap_or_repeat(script: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile's, of names that are there twice
        with zipfile.ZipFile(script, "a") as archive:
            archive.writestr(archive.namelist()[0], b"again")
    assert "there twice" in refused(script).message


def test_an_entry_that_starts_inside_another(script: Path) -> None:
    data = bytearray(script.read_bytes())
    at, places = 0, []
    while (at := data.find(b"PK\x01\x02", at)) >= 0:
        places.append(at)
        at += 4
    first, second = (struct.unpack_from("<I", data, p + 42)[0] for p in places[:2])
    struct.pack_into("<I", data, places[1] + 42, first + 1)
    assert second > first
    script.write_bytes(data)
    assert "overlaps" in refused(script).message


def test_what_torch_wrote_still_loads(script: Path, exported: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one = torch.jit.load(str(script))(torch.ones(1, 4))  # type: ignore[no-untyped-call]
        two = torch.export.load(io.BytesIO(exported.read_bytes())).module()(torch.ones(1, 4))
    assert torch.equal(one, two)
