from __future__ import annotations

from typing import Any

import pytest

from llmos.lib.errors import InvalidArgument, ResourceExhausted
from llmos.servers.memory.devices import Device
from llmos.servers.memory.residency import Ledger, Report, Wish

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


def test_least_worthy_goes_first_and_no_more_than_needed(ledger: Ledger) -> None:
    for id, size, idle in (("a", 10, 30), ("b", 60, 20), ("c", 20, 10)):
        report(ledger, id, size, idle_s=idle, reload_s=size)  # each byte costs the same to reload
    assert ledger.order("cpu") == {"a": 1, "b": 2, "c": 3}
    assert ledger.acquire("d", "cpu", 11) == ["a"]
    assert ledger.acquire("d", "cpu", 10) == []
    ledger.release("d")
    assert ledger.acquire("d", "cpu", 60) == ["b"]  # a alone is too small, and b makes it needless
    assert ledger.acquire("d", "cpu", 75) == ["a", "b"]
    assert ledger.acquire("d", "cpu", 100) == ["a", "b", "c"]
    assert ledger.granted("cpu") == 90  # naming is not taking


def test_worth_is_uses_cost_class_and_size(ledger: Ledger) -> None:
    """Beside b, which is used once, costs 1 s, is NORMAL and has 10 bytes."""
    report(ledger, "b", 10, reload_s=1.0)
    report(ledger, "more-used", 10, reload_s=1.0)
    report(ledger, "more-used", 10, reload_s=1.0, served=5)
    report(ledger, "dearer", 10, reload_s=2.0)
    report(ledger, "larger", 20, reload_s=1.0)
    report(ledger, "batch", 10, reload_s=1.0, rank=4)
    places = ledger.order("cpu")
    assert {id for id in places if places[id] < places["b"]} == {"larger", "batch"}
    ledger.release("more-used")
    report(ledger, "more-used", 10, reload_s=1.0)  # it comes back and is no stranger
    assert ledger.order("cpu")["more-used"] == 5


def test_a_line_forms_by_class_and_time(ledger: Ledger, clock: Any) -> None:
    report(ledger, "busy", 60, busy=True)
    report(ledger, "also", 40, busy=True)

    def ask(id: str, size: int, rank: int) -> list[str] | str:
        try:
            return ledger.acquire(id, "cpu", size, Wish(rank=rank))
        except ResourceExhausted as exc:
            assert exc.reason == "OVER_BUDGET" and exc.retry_after_s == 0.1
            return "before them" if "before them" in exc.message else "wait"

    assert ask("first", 50, 3) == "wait"
    clock.now += 0.1
    assert ask("second", 40, 3) == "before them"
    assert ask("urgent", 40, 2) == "wait"
    assert ledger.waiting("cpu") == 130
    ledger.release("also")  # 40 are free
    assert ask("second", 40, 3) == "before them"
    assert ask("first", 50, 3) == "before them"
    assert ask("urgent", 40, 2) == []
    report(ledger, "busy", 60)
    assert ask("second", 40, 3) == "before them"  # what is idle is for the first
    assert ask("first", 50, 3) == ["busy"]
    ledger.release("busy")
    assert ask("first", 50, 3) == [] and ledger.waiting("cpu") == 40
    clock.now += 2.1  # the second went away without a word
    assert ask("third", 10, 4) == []


def test_who_waits_long_makes_the_busy_end(ledger: Ledger, clock: Any) -> None:
    """Else a model that is never idle would keep others out for ever."""

    def ask(rank: int) -> list[str] | None:
        try:
            return ledger.acquire("new", "cpu", 60, Wish(rank=rank))
        except ResourceExhausted:
            return None

    report(ledger, "popular", 50, busy=True, reload_s=50)
    report(ledger, "popular", 50, busy=True, reload_s=50, served=100)
    report(ledger, "seldom", 50, busy=True, reload_s=50)
    waited = 0.0
    while (evict := ask(3)) is None:
        clock.now += 0.5
        waited += 0.5
    assert (waited, evict) == (1.0, ["seldom", "popular"])
    ledger.release("seldom")
    ledger.acquire("new", "cpu", 50)
    ledger.release("new")
    report(ledger, "held", 50, busy=True, leases=1)
    with pytest.raises(ResourceExhausted, match="held: 1 leases and busy") as caught:
        ledger.acquire("new", "cpu", 60)
    assert caught.value.retry_after_s is None  # nothing that ends by itself makes the room
    report(ledger, "popular", 50, busy=True, moving=True)
    with pytest.raises(ResourceExhausted):
        ledger.acquire("new", "cpu", 40)  # what moves is not asked to move, however long one waits


def test_a_lower_class_presses_a_higher_one_later(ledger: Ledger, clock: Any) -> None:
    report(ledger, "chat", 90, busy=True, rank=2)
    asked = 0
    while True:
        try:
            assert ledger.acquire("batch", "cpu", 60, Wish(rank=4)) == ["chat"]
            break
        except ResourceExhausted:
            clock.now += 1
            asked += 1
    assert asked == 16


def test_a_dry_run_changes_nothing(ledger: Ledger) -> None:
    report(ledger, "idle", 60)
    assert ledger.acquire("new", "cpu", 40, Wish(dry_run=True)) == []
    assert ledger.acquire("new", "cpu", 41, Wish(dry_run=True)) == ["idle"]
    report(ledger, "idle", 60, busy=True)
    assert ledger.acquire("new", "cpu", 41, Wish(dry_run=True)) == ["idle"]  # when it is idle
    report(ledger, "idle", 60, pinned=True)
    with pytest.raises(ResourceExhausted, match="idle: pinned"):
        ledger.acquire("new", "cpu", 41, Wish(dry_run=True))
    assert ledger.waiting("cpu") == 0 and [g.id for g in ledger.grants()] == ["idle"]


def test_who_uses_more_than_granted_has_that_much(ledger: Ledger) -> None:
    report(ledger, "fat", 30, used_bytes=70)
    assert ledger.acquire("new", "cpu", 31) == ["fat"]
    assert ledger.acquire("new", "cpu", 30) == []
    assert (ledger.granted("cpu"), ledger.used("cpu")) == (60, 70)


def test_busy_and_pinned_stay(ledger: Ledger) -> None:
    report(ledger, "busy", 30, busy=True)
    ledger.acquire("pinned", "cpu", 30, Wish(pinned=True))
    report(ledger, "idle", 30)
    assert ledger.acquire("new", "cpu", 40) == ["idle"]
    with pytest.raises(ResourceExhausted) as caught:
        ledger.acquire("new", "cpu", 41)
    assert caught.value.reason == "OVER_BUDGET"
    assert (
        "budget is 100, 60 are held by busy or pinned grants (busy: busy, pinned: pinned)"
        in str(caught.value)
    )
    assert caught.value.retry_after_s == 0.1
    report(ledger, "pinned", 30, pinned=False)
    assert sorted(ledger.acquire("new", "cpu", 70)) == ["idle", "pinned"]


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


def test_what_came_and_went_is_told_afterwards(ledger: Ledger, clock: Any) -> None:
    ledger.acquire("a", "cpu", 60, Wish(tenant="ann"))
    ledger.acquire("a", "cpu", 70)  # grows: that is no coming
    report(ledger, "a", 70)
    report(ledger, "b", 30)  # of a holder from before
    assert ledger.acquire("c", "cpu", 90, Wish(dry_run=True)) == ["a", "b"]
    ledger.release("b")  # was named by nobody who meant it
    assert ledger.acquire("c", "cpu", 90) == ["a"]
    ledger.release("a")
    ledger.release("a")
    assert ledger.acquire("c", "cpu", 90) == []
    clock.now += 61
    ledger.expire()
    told = [(c.kind.name, c.id, c.bytes, c.wanted_by, c.tenant) for c in ledger.changes.newest()]
    assert told == [
        ("EXPIRED", "c", 90, "", ""),
        ("GRANTED", "c", 90, "", ""),
        ("EVICTED", "a", 70, "c", "ann"),
        ("RELEASED", "b", 30, "", ""),
        ("FOUND", "b", 30, "", ""),
        ("GRANTED", "a", 60, "", "ann"),
    ]
    assert [c.id for c in ledger.changes.newest(2)] == ["c", "c"]


def test_who_was_asked_to_go_long_ago_went_by_himself(ledger: Ledger, clock: Any) -> None:
    report(ledger, "a", 70)
    assert ledger.acquire("b", "cpu", 90) == ["a"]
    for _ in range(2):
        clock.now += 40
        report(ledger, "a", 70)
    ledger.release("a")
    assert ledger.changes.newest()[0].kind.name == "RELEASED"


def test_only_the_last_changes_are_kept(ledger: Ledger) -> None:
    for _ in range(150):
        ledger.acquire("a", "cpu", 10)
        ledger.release("a")
    assert len(ledger.changes.newest()) == 200
