"""The pure state machine of a managed process, under a virtual clock."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llmos.servers.init.life import Life, Policy, State

POLICY = Policy(base_s=0.1, cap_s=10, healthy_s=30, hang_s=15, attempts=3)


def run_once(life: Life, now: float, lives_s: float) -> float | None:
    life.started()
    life.ready(now)
    return life.died(now + lives_s, "killed by SIGKILL")


def test_first_restart_is_at_once_then_doubles_to_the_cap() -> None:
    life = Life(POLICY)
    pauses = [run_once(life, 0, 1) for _ in range(10)]
    assert pauses == [0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10]
    assert life.restarts == 10
    assert life.state is State.BACKOFF


def test_a_healthy_time_starts_the_back_off_afresh() -> None:
    life = Life(POLICY)
    for _ in range(5):
        run_once(life, 0, 1)
    assert run_once(life, 100, 30) == 0
    assert run_once(life, 200, 1) == 0.1


def test_what_is_never_ready_is_given_up_after_its_attempts() -> None:
    life = Life(POLICY)
    pauses = []
    for now in range(3):
        life.started()
        pauses.append(life.died(now, "exit code 1"))
    assert pauses == [0, 0.1, None]
    assert life.state is State.STOPPED
    assert life.last_exit == "exit code 1"
    assert life.restarts == 2


def test_a_wrong_configuration_is_given_up_at_once() -> None:
    life = Life(POLICY)
    life.started()
    assert life.died(0, "exit code 2", hopeless=True) is None


def test_what_was_ready_once_is_never_given_up() -> None:
    life = Life(POLICY)
    run_once(life, 0, 1)
    for _ in range(20):
        life.started()
        assert life.died(2, "exit code 2", hopeless=True) is not None


def test_three_misses_in_a_row_are_a_hang() -> None:
    life = Life(POLICY)
    life.started()
    life.ready(0)
    assert [life.missed(), life.missed()] == [False, False]
    life.answered()
    assert [life.missed(), life.missed(), life.missed()] == [False, False, True]
    assert POLICY.check_s == 5


def test_a_requested_restart_counts_and_does_not_wait() -> None:
    life = Life(POLICY, restarts=4)
    life.stopping()
    life.stopped("exit code 0")
    life.again()
    assert (life.state, life.restarts, life.last_exit) == (State.WAITING, 5, "exit code 0")


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 100)), max_size=60))
def test_pauses_are_bounded_and_never_shrink_without_health(
    lives: list[tuple[bool, float]],
) -> None:
    life = Life(POLICY)
    run_once(life, 0, 0)
    now, previous = 0.0, 0.0
    for ready, lives_s in lives:
        life.started()
        if ready:
            life.ready(now)
        now += lives_s
        pause = life.died(now, "exit code 1")
        assert pause is not None and 0 <= pause <= POLICY.cap_s
        assert pause >= previous or (ready and lives_s >= POLICY.healthy_s)
        previous = pause


def test_state_numbers_are_those_of_the_proto() -> None:
    from llmos.api.init.v1 import init_pb2

    for state in State:
        assert int(init_pb2.ProcessState.Value(f"PROCESS_STATE_{state.name}")) == int(state)
    assert len(init_pb2.ProcessState.keys()) == len(State) + 1
