"""The waterfall of a request, from what the gateway logged of it."""

from __future__ import annotations

import itertools

from llmos.clients.ctl.trace import drawn, served, waterfall

REQUEST = {
    "message": "request",
    "seconds": 2.0,
    "first_token_s": 0.5,
    "worker_first_token_s": 0.4,
    "worker_decode_s": 1.25,
}


def test_the_parts_follow_one_another_and_fill_the_whole() -> None:
    whole, *parts = waterfall(REQUEST)
    assert whole == ("request", 0.0, 2.0)
    assert [what.partition(":")[0] for what, _, _ in parts] == [
        "waiting",
        "worker",
        "worker",
        "rest",
    ]
    assert parts[0][1] == 0.0 and parts[-1][2] == 2.0
    for (_, _, end), (_, begin, _) in itertools.pairwise(parts):
        assert end == begin


def test_clocks_that_disagree_give_no_negative_part() -> None:
    for more in ({"worker_first_token_s": 0.9}, {"worker_decode_s": 9.0}):
        assert all(to >= begin for _, begin, to in waterfall({**REQUEST, **more}))


def test_a_request_without_tokens_is_one_part() -> None:
    assert waterfall({"message": "request", "seconds": 0.01}) == [("request", 0.0, 0.01)]


def test_bars_are_in_proportion() -> None:
    lines = drawn(waterfall(REQUEST))
    bars = [line.count("█") for line in lines]
    assert bars[0] == 48 and bars[2] == round(0.4 / 2 * 48) and max(map(len, lines)) <= 110
    assert drawn([]) == []


def test_a_call_that_generates_nothing_has_its_time_in_the_os() -> None:
    request = {"seconds": 0.5, "call_from_s": 0.1, "call_to_s": 0.4}
    assert [(begin, end) for _, begin, end in waterfall(request)] == [
        (0.0, 0.5),
        (0.0, 0.1),
        (0.1, 0.4),
        (0.4, 0.5),
    ]


def test_calls_that_came_by_grpc_share_one_line_of_time() -> None:
    generate = {
        "time": "2026-11-22T10:00:03.000Z",
        "message": "served",
        "process": "worker/m@1",
        "method": "/llmos.api.execution.v1.Execution/Generate",
        "key": "m",
        "waited_s": 1.0,
        "seconds": 2.0,
        "first_reply_s": 0.5,
    }
    look = {"message": "served", "time": "2026-11-22T10:00:01.500Z", "seconds": 0.25, "waited_s": 0}
    parts = served([look, generate, {"message": "another"}])
    assert [(round(a, 6), round(b, 6)) for _, a, b in parts] == [
        (0.0, 3.0),
        (0.0, 1.0),
        (1.0, 1.5),
        (1.5, 3.0),
        (1.25, 1.5),
        (1.25, 1.25),
        (1.25, 1.5),
    ]
    assert parts[0][0] == "Execution/Generate m" and parts[2][0] == "worker/m@1: first reply"
    assert served([]) == []
