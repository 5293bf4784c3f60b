"""Fairness, weights, bounded starvation and priority, measured on the core in virtual time."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import pytest
from kernel_load import Steady, jain, server, world

from llmos.api.kernel.v1 import port_pb2 as pb
from llmos.kernel.core.limits import Limits
from llmos.kernel.core.queues import AGED_EVERY

BATCH, NORMAL, INTERACTIVE = pb.CALL_CLASS_BATCH, pb.CALL_CLASS_NORMAL, pb.CALL_CLASS_INTERACTIVE
SMALL, LARGE = 0.01, 1.0  # seconds: request sizes 100:1


def mixed(seed: int) -> Iterator[float]:
    """Small requests, every tenth a large one, in random order."""
    draw = random.Random(seed).random
    while True:
        yield LARGE if draw() < 0.1 else SMALL


@pytest.mark.parametrize("credits", [1, 4])
def test_tenants_share_by_cost_not_by_calls(credits: int) -> None:
    made = world()
    worker = server(made, credits)
    for tenant, size in (("small", SMALL), ("large", LARGE)):
        Steady(made, tenant, itertools.repeat(size)).start()
    made.run(seconds=200 / credits)
    assert jain(worker.done.values()) >= 0.99
    assert sum(worker.done.values()) >= 0.95 * 200  # and nothing was wasted


def test_tenants_with_sizes_that_cannot_be_foreseen_share_as_well() -> None:
    made = world()
    worker = server(made, 2)
    for number, sizes in enumerate((itertools.repeat(SMALL), mixed(1), mixed(2))):
        Steady(made, f"t{number}", sizes).start()
    made.run(seconds=150)
    assert jain(worker.done.values()) >= 0.99


def test_the_cost_that_servers_report_counts() -> None:
    made = world()
    worker = server(made, cost=lambda size: size * 1000)  # tokens
    for tenant, size in (("small", SMALL), ("large", LARGE)):
        Steady(made, tenant, itertools.repeat(size)).start()
    made.run(seconds=100)
    assert jain(worker.done.values()) >= 0.99


def test_weights_are_respected() -> None:
    made = world()
    worker = server(made, 2)
    weights = {"one": 1.0, "two": 2.0, "five": 5.0}
    for (tenant, weight), size in zip(weights.items(), (LARGE, SMALL, 0.1), strict=True):
        made.core.scheduler.tenant(tenant).limits.weight = weight
        Steady(made, tenant, itertools.repeat(size)).start()
    made.run(seconds=150)
    assert jain(worker.done[t] / w for t, w in weights.items()) >= 0.99


def test_many_tenants_share_and_one_with_many_calls_gets_no_more() -> None:
    made = world()
    worker = server(made, 4)
    for number in range(20):
        outstanding = 200 if number == 0 else 5
        Steady(made, f"t{number}", itertools.repeat(0.05), outstanding).start()
    made.run(seconds=100)
    assert jain(worker.done.values()) >= 0.99


def test_whoever_was_idle_gets_its_share_from_then_on_and_nothing_for_the_past() -> None:
    made = world()
    worker = server(made)
    Steady(made, "early", itertools.repeat(0.1)).start()
    made.run(seconds=50)
    Steady(made, "late", itertools.repeat(0.1)).start()
    before = worker.done["early"]
    made.run(seconds=50)
    assert jain([worker.done["early"] - before, worker.done["late"]]) >= 0.99


@pytest.mark.parametrize("ageing_s", [2.0, 20.0])
@pytest.mark.parametrize("waiting", [1, 10])
def test_starvation_is_bounded_by_ageing(ageing_s: float, waiting: int) -> None:
    """The k-th call of the worst class is dispatched within the bound and k aged turns."""
    made = world(Limits(ageing_s=ageing_s))
    server(made)
    Steady(made, "people", itertools.repeat(0.1), call_class=INTERACTIVE, outstanding=10).start()
    batch = Steady(made, "nightly", itertools.repeat(0.1), call_class=BATCH, outstanding=waiting)
    made.run(seconds=1)
    batch.start()
    made.run(seconds=ageing_s + waiting * AGED_EVERY * 0.1 + 1)
    bounds = [ageing_s + (k + 1) * AGED_EVERY * 0.1 + 0.1 for k in range(waiting)]
    assert len(batch.waits) >= waiting
    assert all(w <= b + 1e-6 for w, b in zip(batch.waits, bounds, strict=False))
    assert batch.waits[0] >= ageing_s - 0.1  # and not before: the order is strict until then


@pytest.mark.parametrize("credits", [1, 8])
def test_a_port_full_of_batch_work_takes_an_interactive_call_at_once(credits: int) -> None:
    made = world()
    server(made, credits)
    Steady(made, "nightly", itertools.repeat(LARGE), call_class=BATCH, outstanding=50).start()
    made.run(seconds=10.5)
    person = Steady(made, "ann", itertools.repeat(SMALL), 1, INTERACTIVE)
    person.start()
    made.run(seconds=20)
    one_service_time = LARGE if credits == 1 else 0.0
    assert max(person.waits) <= SMALL + one_service_time + 1e-6


@pytest.mark.parametrize("credits", [1, 4])
def test_no_priority_is_inverted_through_a_chain_of_three_servers(credits: int) -> None:
    """A calls B calls C for each call, and every one is full of BATCH work of its own."""
    time_s = 0.01  # of a call that A or B makes
    quiet = world()
    for service, calls in (("sim.A", "sim.B"), ("sim.B", "sim.C"), ("sim.C", "")):
        server(quiet, credits, service, calls, time_s)
    alone = Steady(quiet, "ann", itertools.repeat(SMALL), 1, INTERACTIVE, "sim.A")
    alone.start()
    quiet.run(seconds=2)

    busy = world()
    for service, calls in (("sim.A", "sim.B"), ("sim.B", "sim.C"), ("sim.C", "")):
        server(busy, credits, service, calls, time_s)
        Steady(busy, "hog", itertools.repeat(0.1), 30, BATCH, service).start()
    busy.run(seconds=20)
    person = Steady(busy, "ann", itertools.repeat(SMALL), 1, INTERACTIVE, "sim.A")
    person.start()
    busy.run(seconds=30)
    assert len(person.waits) >= 30
    # With more credits, some are kept for better classes. With one, each server first ends the one
    # call that it runs, which hurries from then on: it waits for one call at each server behind.
    most = 0.0
    if credits == 1:
        at_c = 0.1
        at_b = 0.1 + at_c + 1.5 * time_s
        at_a = 0.1 + at_b + time_s + at_c + 2 * time_s
        most = at_a + at_b + at_c
    assert max(person.waits) <= max(alone.waits) + most + 1e-6
