"""What serving.toml says about workers, and what is asked for otherwise; sums of statistics."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmos.api.inference import open_inference_pb2 as pb
from llmos.lib.errors import InvalidArgument, Unavailable
from llmos.servers.execution.engine.serving.declared import (
    Instances,
    changed,
    declared,
    instances,
)
from llmos.servers.execution.oip.sums import total


def files(tmp_path: Path, text: str) -> dict[str, Path]:
    (tmp_path / "serving.toml").write_text(text)
    return {"serving.toml": tmp_path / "serving.toml"}


def test_a_version_says_how_many_workers_it_has(tmp_path: Path) -> None:
    assert instances({}, {}) == Instances()
    given = files(tmp_path, '[instances]\ncount = 3\nthreads = 1\ndevices = ["cpu", "cuda:0"]\n')
    assert instances(given, {}) == Instances(3, 1, ("cpu", "cuda:0"))
    assert instances(given, {"instances.count": "2"}).count == 2
    assert declared(given, {"batching.max": "8"}, dict) == {"batching": {"max": 8}}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("instances = 2", "must be a table"),
        ("[instances]\ncount = 0", "1 to 64"),
        ("[instances]\ncount = true", "1 to 64"),
        ("[instances]\nthreads = -1", "threads must be"),
        ("[instances]\ncores = 2", "instances.cores is not known"),
        ('[instances]\ndevices = "cpu"', "list of names"),
        ("[instances]\ncount = 2\n[sequence]\n", "calls of a sequence"),
        ("[instances", "not a TOML file"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(Unavailable, match=words) as caught:
        instances(files(tmp_path, text), {})
    assert caught.value.reason == "LOAD_FAILED"


@pytest.mark.parametrize(
    ("name", "value"), [("batching.max", "eight"), ("a", "1\nb = 2"), ("cache.mb.x", "1")]
)
def test_changes_that_cannot_be_are_named(name: str, value: str) -> None:
    with pytest.raises(InvalidArgument, match=name) as caught:
        changed({"cache": {"mb": 8}}, {name: value})
    assert caught.value.reason == "BAD_OPTION"


def test_changes_leave_the_table_as_it_was() -> None:
    table = {"cache": {"mb": 8}, "version": 1}
    made = changed(table, {"cache.ttl_s": "2.5", "runtime.spin": "false"})
    assert made == {"cache": {"mb": 8, "ttl_s": 2.5}, "version": 1, "runtime": {"spin": False}}
    assert table == {"cache": {"mb": 8}, "version": 1}


def test_statistics_of_workers_are_added_up() -> None:
    one = pb.ModelStatistics(name="m", version="1", inference_count=3, last_inference=5)
    one.inference_stats.success.count, one.inference_stats.success.ns = 3, 30
    one.batch_stats.add(batch_size=2).compute_infer.count = 1
    two = pb.ModelStatistics(name="m", version="1", inference_count=4, last_inference=9)
    two.inference_stats.success.count, two.inference_stats.success.ns = 4, 50
    two.batch_stats.add(batch_size=1).compute_infer.count = 4
    two.batch_stats.add(batch_size=2).compute_infer.count = 2
    both = total([one, two])
    assert (both.inference_count, both.last_inference) == (7, 9)
    assert (both.inference_stats.success.count, both.inference_stats.success.ns) == (7, 80)
    sizes = {b.batch_size: b.compute_infer.count for b in both.batch_stats}
    assert sizes == {1: 4, 2: 3} and list(sizes) == [1, 2]
    assert one.inference_count == 3, "what was said stays as it is"
