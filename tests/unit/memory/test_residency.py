from __future__ import annotations

from typing import Any

import pytest

from llmos.lib.errors import InvalidArgument, ResourceExhausted
from llmos.servers.memory.devices import Device
from llmos.servers.memory.residency import Ledger, Report

FREE = {"cpu": 1000, "cuda:0": 1000}


@pytest.fixture
def ledger(clock: Any) -> Ledger:
    devices = [Device(n, "", 200, 100, lambda n=n: FREE[n]) for n in FREE]  # type: ignore[misc]
    return Ledger(devices, clock=clock)


def report(ledger: Ledger, id: str, size: int, **kw: Any) -> None:
    values: dict[str, Any] = {
        "device": "cpu",
        "used_bytes": size,
        "busy": False,
        "pinned": False,
        "idle_s": 0.0,
    }
    ledger.report([Report(id=id, bytes=size, **{**values, **kw})])


def test_grants_up_to_the_budget_of_each_device(ledger: Ledger) -> None:
    assert ledger.acquire("a", "cpu", 60) == []
    assert ledger.acquire("b", "cpu", 40) == []
    assert ledger.acquire("c", "cuda:0", 100) == []
    assert ledger.granted("cpu") == 100
    assert [g.id for g in ledger.grants()] == ["a", "b", "c"]


def test_asking_again_resizes(ledger: Ledger) -> None:
    ledger.acquire("a", "cpu", 60)
    assert ledger.acquire("a", "cpu", 100) == []
    assert ledger.acquire("a", "cpu", 100) == []
    assert ledger.granted("cpu") == 100
    with pytest.raises(ResourceExhausted):
        ledger.acquire("a", "cpu", 101)
    assert ledger.granted("cpu") == 100  # it keeps what it has
    assert ledger.acquire("a", "cuda:0", 50) == []
    assert ledger.granted("cpu") == 0


def test_least_recently_used_goes_first_and_no_more_than_needed(ledger: Ledger) -> None:
    for id, size, idle in (("a", 10, 30), ("b", 60, 20), ("c", 20, 10)):
        report(ledger, id, size, idle_s=idle)
    assert ledger.acquire("d", "cpu", 11) == ["a"]
    assert ledger.acquire("d", "cpu", 10) == []
    ledger.release("d")
    assert ledger.acquire("d", "cpu", 60) == ["b"]  # a alone is too small, and b makes it needless
    assert ledger.acquire("d", "cpu", 75) == ["a", "b"]
    assert ledger.acquire("d", "cpu", 100) == ["a", "b", "c"]
    assert ledger.granted("cpu") == 90  # naming is not taking


def test_busy_and_pinned_stay(ledger: Ledger) -> None:
    report(ledger, "busy", 30, busy=True)
    ledger.acquire("pinned", "cpu", 30, pinned=True)
    report(ledger, "idle", 30)
    assert ledger.acquire("new", "cpu", 40) == ["idle"]
    with pytest.raises(ResourceExhausted) as caught:
        ledger.acquire("new", "cpu", 41)
    assert caught.value.reason == "OVER_BUDGET"
    assert "budget is 100, 60 are held by busy or pinned grants (busy, pinned)" in str(caught.value)
    assert caught.value.retry_after_s == 1.0
    report(ledger, "pinned", 30, pinned=False)
    assert ledger.acquire("new", "cpu", 70) == ["pinned", "idle"]


def test_what_is_really_free_counts_too(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    report(ledger, "idle", 30)
    monkeypatch.setitem(FREE, "cpu", 20)
    assert ledger.acquire("new", "cpu", 20) == []
    ledger.release("new")
    assert ledger.acquire("new", "cpu", 50) == ["idle"]
    with pytest.raises(ResourceExhausted, match="20 are free"):
        ledger.acquire("new", "cpu", 51)
    assert ledger.acquire("idle", "cpu", 50) == []  # only what is added must be free


@pytest.mark.parametrize("args", [("", "cpu", 1), ("a", "cpu", 0), ("a", "tpu", 1)])
def test_bad_grants(ledger: Ledger, args: tuple[str, str, int]) -> None:
    with pytest.raises(InvalidArgument, match="cpu, cuda:0") as caught:
        ledger.acquire(*args)
    assert caught.value.reason == "BAD_GRANT"


def test_unreported_grants_are_dropped(ledger: Ledger, clock: Any) -> None:
    ledger.acquire("a", "cpu", 60)
    ledger.acquire("b", "cpu", 40)
    clock.now += 59
    report(ledger, "b", 40)
    clock.now += 1
    assert [g.id for g in ledger.grants()] == ["b"]
    assert ledger.acquire("c", "cpu", 60) == []


def test_reports_rebuild_the_ledger(ledger: Ledger, clock: Any) -> None:
    report(ledger, "a", 90, idle_s=7.0)
    report(ledger, "b", 90, busy=True, idle_s=7.0)  # over the budget, but it is held
    report(ledger, "", 90)
    report(ledger, "c", 90, device="tpu")
    a, b = ledger.grants()
    assert (a.bytes, ledger.idle_s(a), ledger.idle_s(b)) == (90, 7.0, 0.0)
    clock.now += 3
    assert ledger.idle_s(a) == 10.0


def test_a_report_does_not_undo_a_resize(ledger: Ledger) -> None:
    ledger.acquire("a", "cpu", 60)
    report(ledger, "a", 40, used_bytes=33)  # was on its way when the holder asked for more
    assert [(g.bytes, g.used_bytes) for g in ledger.grants()] == [(60, 33)]
