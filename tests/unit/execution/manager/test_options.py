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
    check_device,
    own_cores,
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
    [(Options("int3"), "int3"), (Options(threads=3), "3 threads"), (Options("auto"), "auto")],
)
def test_bad_options_are_named(options: Options, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        Wishes().give("m@1", options, loaded=False, cores=2)


def test_a_device_must_be_there() -> None:
    check_device(Options(), ["cpu"])
    check_device(Options(device="cpu"), ["cpu"])
    with pytest.raises(InvalidArgument, match="cuda:7"):
        check_device(Options(device="cuda:7"), ["cpu", "cuda:0"])


def test_workers_get_cores_that_others_were_not_given() -> None:
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip("needs two cores")
    assert own_cores(1, []) == cores[:1]
    assert own_cores(1, [os.getpid()]) == cores[:1], "it may use all: it was given none"
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        os.sched_setaffinity(other.pid, cores[:1])
        assert own_cores(1, [other.pid]) == [cores[1]]
        assert len(own_cores(2, [other.pid])) == 2
    finally:
        other.communicate()
    assert own_cores(1, [other.pid]) == cores[:1]
