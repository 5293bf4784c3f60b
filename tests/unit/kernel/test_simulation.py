"""A long random life of the pure core under a virtual clock: every invariant, at every moment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from kernel_chaos import Chaos
from kernel_invariants import check_garbage, reachable

EVENTS = 1_000_000
SUPPORT = Path(__file__).parents[2] / "support"


@pytest.mark.timeout(900)  # about a minute and a half of one quiet core
def test_every_invariant_holds_over_a_million_events() -> None:
    before = reachable()
    chaos = Chaos(seed=20261122)
    chaos.world.run(events=EVENTS)
    chaos.finish()
    world = chaos.world
    assert world.events >= EVENTS
    # The run is worth something only if everything happened in it.
    for outcome in (
        "OK",
        "given up",
        "CANCELLED_BY_OPERATOR",
        "DEADLINE",
        "DEADLINE_CANNOT_BE_MET",
        "FAULT_WITHOUT_EFFECT",
        "NO_SERVER",
        "NO_SUCH_SERVICE",
        "NOT_FOUND",
        "QUEUE_FULL",
        "SERVER_DIED",
        "SERVER_DIED_MAY_HAVE_RUN",
    ):
        assert world.outcomes[outcome], outcome
    assert world.core.stats.redispatched > 100 and world.core.stats.faults > 100
    core = world.core
    del chaos, world
    check_garbage(core, before)


@pytest.mark.parametrize("seed", range(4))
def test_every_invariant_holds_when_accidents_come_all_the_time(seed: int) -> None:
    chaos = Chaos(seed, rate=300.0, accidents=15.0)
    chaos.world.judge_every = 50
    chaos.world.run(events=15_000)
    chaos.finish()


def test_the_same_events_give_the_same_actions_in_every_process() -> None:
    """What --replay promises: nothing depends on addresses, hashes or the time of day."""
    script = (
        "import zlib; from kernel_chaos import Chaos; from kernel_world import World\n"
        "crc = 0\n"
        "class Recorded(World):\n"
        "    def carried(self, port, envelope):\n"
        "        global crc\n"
        "        crc = zlib.crc32(b'%d:' % port + envelope.SerializeToString(True), crc)\n"
        "chaos = Chaos(7, accidents=10.0, world=Recorded)\n"
        "chaos.world.run(events=8_000); print(crc)\n"
    )
    seen = set()
    for number in ("1", "2"):
        env = {**os.environ, "PYTHONPATH": str(SUPPORT), "PYTHONHASHSEED": number}
        done = subprocess.run(
            [sys.executable, "-c", script], env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        seen.add(done.stdout)
    assert len(seen) == 1
