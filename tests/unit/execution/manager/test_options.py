"""Options of loads: kept, checked, and turned into cores."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from llmos.lib.errors import FailedPrecondition, InvalidArgument
from llmos.servers.execution.manager.options import (
    NONE,
    Options,
    Wishes,
    cores_of,
    own_cores,
    place,
)


def test_options_hold_until_they_are_forgotten() -> None:
    wishes, wish = Wishes(), Options("int8", 1, "cpu")
    assert wishes.of("m@1") == NONE
    wishes.give("m@1", wish, loaded=False, cores=2)
    wishes.give("m@1", wish, loaded=True, cores=2)
    assert wishes.of("m@1") == wish
    assert wishes.of("m@2") == NONE
    with pytest.raises(FailedPrecondition, match="unload it first"):
        wishes.give("m@1", Options("fp32"), loaded=True, cores=2)
    wishes.forget("m@1")
    assert wishes.of("m@1") == NONE


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (Options("int3"), "int3"),
        (Options(threads=3), "3 threads"),
        (Options("auto"), "auto"),
        (Options(instances=65), "65 instances"),
        (Options(serving=(("batching.max", "eight"),)), "batching.max"),
        (Options(serving=(("a.b", "1\nc = 2"),)), "a.b"),
    ],
)
def test_bad_options_are_named(options: Options, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        Wishes().give("m@1", options, loaded=False, cores=2)


def test_a_number_of_instances_may_change_while_it_is_loaded() -> None:
    wishes = Wishes()
    wishes.give("m@1", Options("int8", 1), loaded=False, cores=2)
    wishes.give("m@1", Options(instances=3), loaded=True, cores=2)
    assert wishes.of("m@1") == Options("int8", 1, instances=3)
    wishes.give("m@1", Options("int8", 1, instances=2), loaded=True, cores=2)
    assert wishes.of("m@1").instances == 2
    with pytest.raises(FailedPrecondition, match="unload it first"):
        wishes.give("m@1", Options("fp32", 1, instances=2), loaded=True, cores=2)


def test_workers_take_devices_in_turn() -> None:
    two = ["cpu", "cuda:0", "cuda:1"]
    assert place("", (), "", ["cpu"], 3) == "cpu"
    assert [place("", (), "", two, n) for n in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert [place("", (), "cuda:1", two, n) for n in range(2)] == ["cuda:1", "cuda:1"]
    assert [place("", ["cuda:1", "cpu"], "", two, n) for n in range(2)] == ["cuda:1", "cpu"]
    assert [place("cpu, cuda:0", ["cuda:1"], "", two, n) for n in range(2)] == ["cpu", "cuda:0"]
    with pytest.raises(InvalidArgument, match="cuda:7"):
        place("cpu,cuda:7", (), "", two, 0)


def test_workers_get_cores_that_others_were_not_given() -> None:
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip("needs two cores")
    assert own_cores(1, []) == cores[:1]
    assert own_cores(1, [()]) == cores[:1], "it may use all: it was given none"
    assert own_cores(1, [cores[:1]]) == [cores[1]]
    assert len(own_cores(2, [cores[:1]])) == 2
    assert cores_of(os.getpid()) == []
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        os.sched_setaffinity(other.pid, cores[:1])
        assert cores_of(other.pid) == cores[:1]
    finally:
        other.communicate()
    assert cores_of(other.pid) == []
