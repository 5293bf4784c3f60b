"""What the zygote keeps of versions for the workers that it forks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmos.servers.execution.engine import select
from llmos.servers.execution.engine.base import ModelSpec
from llmos.servers.execution.engine.torch import known
from llmos.servers.execution.engine.torch.config import read_config
from llmos.servers.execution.engine.torch.reading import read


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    yield
    known._known.clear()


def named(spec: ModelSpec, mark: str = "") -> ModelSpec:
    """Return a version whose files' digests are known."""
    return replace(spec, digests={name: f"{mark}{name}" for name in spec.files})


def test_what_was_read_once_is_there_for_all_versions_of_the_same_files(tiny: Any) -> None:
    spec = named(tiny.spec())
    assert select.remember(spec)
    reading = read(spec)
    moved = {name: Path("/nowhere") / name for name in spec.files}
    other = replace(spec, ref="other@7", files=moved)  # nothing is opened any more
    assert read(other) is reading
    assert read_config(other) == (reading.config, reading.header)
    assert reading.text.encode("the sea") == read(tiny.spec()).text.encode("the sea")
    with pytest.raises(FileNotFoundError):
        read(replace(other, digests={}))
    with pytest.raises(FileNotFoundError):
        read(named(other, "changed "))


def test_only_files_that_storage_vouches_for_are_remembered(tiny: Any) -> None:
    select.remember(tiny.spec())
    some = named(tiny.spec())
    some = replace(some, digests={**some.digests, "config.json": ""})
    select.remember(some)
    assert known.recall(tiny.spec()) is None and known.recall(some) is None


def test_the_zygote_keeps_a_few_of_them(tiny: Any) -> None:
    specs = [named(tiny.spec(), f"{i} ") for i in range(6)]
    for spec in specs[:4]:
        select.remember(spec)
    select.remember(specs[0])  # used again
    for spec in specs[4:]:
        select.remember(spec)
    kept = [i for i, spec in enumerate(specs) if known.recall(spec)]
    assert kept == [0, 3, 4, 5]


def test_other_engines_have_nothing_to_remember(tmp_path: Path) -> None:
    assert not select.remember(ModelSpec("m@1", "onnx", "predict", {"m.onnx": tmp_path / "m"}))
