from __future__ import annotations

import pytest

from llmos.lib.errors import InvalidArgument
from llmos.servers.execution.manager.listing import rows
from llmos.servers.execution.manager.model import Ref, State, Version, Worker


@pytest.mark.parametrize(
    ("text", "name", "version"),
    [("a", "a", 0), ("smollm2@1", "smollm2", 1), ("A.b_c-d@120", "A.b_c-d", 120)],
)
def test_a_reference_is_read_and_written(text: str, name: str, version: int) -> None:
    assert Ref.parse(text) == Ref(name, version)
    assert str(Ref.parse(text)) == text


BAD = ["", "@1", "a@", "a@0", "a@01", "a@-1", "a@1@2", "a b", "../a", "a/b", "a\n", "-a", "ä"]
LONG = ["a" * 129, "x" * 1_000_000, "a@" + "9" * 400]


@pytest.mark.parametrize("text", [*BAD, *(pytest.param(t, id=f"{len(t)}") for t in LONG)])
def test_a_bad_reference_is_refused_in_a_short_sentence(text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        Ref.parse(text)
    assert caught.value.reason == "BAD_NAME"
    assert len(caught.value.message) < 300


def test_a_listing_joins_versions_and_workers() -> None:
    versions = [
        Version("b", 2, "gguf", "generate"),
        Version("b", 1, "gguf", "generate"),
        Version("a", 1, "safetensors", "embed"),
    ]
    loaded = Worker("b", 1, state=State.READY, engine="torch", keys=["b@1", "b"])
    gone = Worker("c", 7, state=State.UNLOADING, keys=["c@7"])
    why = {"a@1": "no engine"}
    table = rows(versions, [loaded, gone], lambda ref: why.get(ref, ""))
    assert [(r.version.ref, r.state, r.engine, r.is_default) for r in table] == [
        ("a@1", State.FAILED, "", True),
        ("b@1", State.READY, "torch", True),  # it holds the plain name, though 2 is newer
        ("b@2", State.STORED, "torch", False),
        ("c@7", State.UNLOADING, "", True),  # deleted from storage, still running
    ]
    assert table[0].reason == "no engine"
