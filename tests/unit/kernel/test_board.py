"""Publish and subscribe: patterns, bounds, what slow subscribers are told, redelivery."""

from __future__ import annotations

import pytest

from llmos.api.kernel.v1 import events_pb2 as pb
from llmos.kernel.core.board import KEPT_S, MAX_PAYLOAD, Board, Subscription
from llmos.lib.errors import AlreadyExists, InvalidArgument, NotFound, ResourceExhausted


def woken() -> None:
    """Do nothing: the tests take by themselves."""


def subscribe(board: Board, *patterns: str, pending: int = 0, name: str = "") -> Subscription:
    request = pb.SubscribeRequest(
        patterns=patterns, max_pending=pending, name=name, ack_timeout_s=5
    )
    return board.subscribe(request, woken)


def taken(subscription: Subscription, now: float = 0.0) -> list[pb.SubscribeResponse]:
    events = []
    while (event := subscription.take(now)) is not None:
        events.append(event)
    return events


def test_events_go_to_those_whose_patterns_match() -> None:
    board = Board()
    models, all_ = subscribe(board, "model.*"), subscribe(board, "*")
    assert board.publish("model.loaded", b"x", "me", 0) == 2
    assert board.publish("port.gone", b"y", "me", 0) == 1
    assert [e.topic for e in taken(models)] == ["model.loaded"]
    assert [e.topic for e in taken(all_)] == ["model.loaded", "port.gone"]


def test_a_slow_subscriber_loses_the_oldest_is_told_and_holds_up_nobody() -> None:
    board = Board()
    slow, quick = subscribe(board, "*", pending=3), subscribe(board, "*")
    for i in range(10):
        board.publish(f"t{i}", b"", "me", 0)
        assert len(taken(quick)) == 1
    events = taken(slow)
    assert [e.topic for e in events] == ["t7", "t8", "t9"]
    assert [e.missed for e in events] == [7, 0, 0]


def test_what_is_not_acknowledged_comes_again() -> None:
    board = Board()
    subscription = subscribe(board, "*", name="mine")
    board.publish("a", b"", "me", 0)
    board.publish("b", b"", "me", 0)
    first, second = taken(subscription, 0)
    board.acknowledge("mine", [first.id])
    assert taken(subscription, 4.9) == []
    (again,) = taken(subscription, 5)
    assert (again.id, again.redelivered) == (second.id, 1)
    board.acknowledge("mine", [second.id, second.id])
    assert taken(subscription, 100) == []


def test_a_named_subscription_outlives_its_stream_for_a_while() -> None:
    board = Board()
    subscription = subscribe(board, "*", name="mine")
    board.publish("a", b"", "me", 0)
    assert len(taken(subscription)) == 1
    board.leave(subscription, 0)
    board.publish("b", b"", "me", 1)
    back = subscribe(board, "*", name="mine")
    assert [e.topic for e in taken(back, 2)] == ["a", "b"]
    with pytest.raises(AlreadyExists):
        subscribe(board, "*", name="mine")
    board.leave(back, 2)
    assert board.publish("c", b"", "me", 3 + KEPT_S) == 0


def test_bad_input() -> None:
    board = Board()
    for topic in ("", "a*", "x" * 257):
        with pytest.raises(InvalidArgument) as info:
            board.publish(topic, b"", "me", 0)
        assert info.value.reason == "BAD_TOPIC"
    with pytest.raises(ResourceExhausted):
        board.publish("a", b"x" * (MAX_PAYLOAD + 1), "me", 0)
    with pytest.raises(InvalidArgument):
        subscribe(board)
    with pytest.raises(NotFound):
        board.acknowledge("nobody", [1])
