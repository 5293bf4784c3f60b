"""What the kernel commands of llmos-ctl compute and draw, without a kernel."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from llmos.api.kernel.v1 import admin_pb2 as pb
from llmos.clients.ctl import events, frame, top_view
from llmos.clients.ctl.__main__ import main

SECOND = frame.Sample(
    at=12.0,
    stats=pb.GetStatsResponse(
        kernel="0123456789",
        pid=7,
        uptime_s=65,
        ended={0: 1100, 5: 10},
        running=2,
        queued=9,
        ports=3,
    ),
    ports=pb.ListPortsResponse(
        ports=[
            pb.PortInfo(port=1, name="storage", pid=11, served=50),
            pb.PortInfo(
                port=2,
                name="worker/m@1",
                pid=12,
                served=1000,
                running=2,
                exports=[pb.ExportInfo(service="a.b.Execution", keys=["m", "m@1"])],
            ),
            pb.PortInfo(port=3, name="worker/[red]@1", pid=13, stalled=True),
        ]
    ),
    services=pb.ListServicesResponse(
        services=[
            pb.ServiceInfo(
                service="a.b.Execution",
                queues=[
                    pb.QueueInfo(key="m", queued=9, by_class=[0, 2, 3, 4], oldest_s=1.5),
                    pb.QueueInfo(key="n", faulting=True),
                ],
            )
        ]
    ),
    tenants=pb.ListTenantsResponse(
        tenants=[
            pb.TenantInfo(
                limits=pb.TenantLimits(tenant="local", weight=1), open=11, ended=1110, cost=40.5
            )
        ]
    ),
)
FIRST = frame.Sample(
    at=10.0,
    stats=pb.GetStatsResponse(kernel="0123456789", ended={0: 1000, 5: 8}),
    ports=pb.ListPortsResponse(ports=[pb.PortInfo(port=2, served=900)]),
    services=pb.ListServicesResponse(),
    tenants=pb.ListTenantsResponse(
        tenants=[pb.TenantInfo(limits=pb.TenantLimits(tenant="local"), ended=1008, cost=40.0)]
    ),
)


def drawn(sample: frame.Sample, rate: frame.Rates, **options: object) -> str:
    console = Console(width=140, highlight=False)
    with console.capture() as capture:
        console.print(top_view.view(sample, rate, **options))  # type: ignore[arg-type]
    return capture.get()


def test_rates_are_growth_by_time() -> None:
    rate = frame.rates(FIRST, SECOND)
    assert (rate.calls, rate.failed) == (51.0, 1.0)
    assert rate.served == {2: 50.0}, "a port that was not there before has no rate yet"
    assert rate.ended == {"local": 51.0} and rate.cost == {"local": 0.25}


def test_no_rates_over_the_death_of_a_kernel() -> None:
    other = frame.Sample(
        9.0, pb.GetStatsResponse(kernel="other"), FIRST.ports, FIRST.services, FIRST.tenants
    )
    assert frame.rates(other, SECOND) == frame.rates(None, SECOND) == frame.Rates()


def test_a_frame_has_everything() -> None:
    text = drawn(SECOND, frame.rates(FIRST, SECOND))
    assert "51.0 calls/s" in text and "kernel 01234567" in text and "up 1m05s" in text
    lines = text.splitlines()
    header = next(line for line in lines if "WAITING" in line)
    queue = next(line for line in lines if " m " in line and "Execution" in line)
    assert header.split() == [*"WAITING SYS INT NOR BAT OLDEST KEY SERVICE".split()]
    assert queue.split() == ["9", "0", "2", "3", "4", "1.5s", "m", "Execution"]
    assert any("n (loading)" in line for line in lines)
    (stalled,) = [line for line in lines if "STALLED" in line]
    assert "worker/[red]@1" in stalled, "names are no markup"
    ports = [line for line in lines if "worker/" in line or "storage" in line]
    assert ports[0] is stalled and "worker/m@1" in ports[1], "trouble first, then the busiest"
    assert ports[1].split()[:8] == ["2", "12", "0.0s", "2", "50.0", "1,000", "0", "worker/m@1"]
    assert "Execution[m,m@1]" in ports[1]
    assert "NOT_FOUND 10" in text


def test_long_lists_of_services_take_nothing_from_the_numbers() -> None:
    keys = [f"some-long-model-name@{number}" for number in range(50)]
    port = pb.PortInfo(port=7, name="worker/x", pid=12345, served=77, exports=[])
    port.exports.add(service="a.b.Execution", keys=keys)
    ports = pb.ListPortsResponse(ports=[port])
    sample = frame.Sample(1.0, SECOND.stats, ports, SECOND.services, SECOND.tenants)
    (line,) = [line for line in drawn(sample, frame.Rates()).splitlines() if "worker/x" in line]
    assert line.split()[:8] == ["7", "12345", "0.0s", "0", "0.0", "77", "0", "worker/x"]
    assert len(line.rstrip()) <= 140 and "…" in line


def test_a_frame_fits_the_screen_and_says_what_it_leaves_out() -> None:
    many = pb.ListPortsResponse(ports=[pb.PortInfo(port=i, name=f"p{i}") for i in range(1, 100)])
    sample = frame.Sample(1.0, SECOND.stats, many, SECOND.services, SECOND.tenants)
    text = drawn(sample, frame.Rates(), height=30)
    assert len(text.splitlines()) <= 30
    assert "of 99" in text
    assert "NOT OF NOW: nobody answers" in drawn(sample, frame.Rates(), trouble="nobody answers")


def test_a_frame_as_json() -> None:
    value = json.loads(json.dumps(frame.value(SECOND, frame.rates(FIRST, SECOND))))
    assert value["calls_per_s"] == 51.0
    assert value["ports"][1]["served_per_s"] == 50.0
    assert value["queues"][0] == {
        "service": "a.b.Execution",
        "key": "m",
        "queued": 9,
        "faulting": False,
        "oldest_s": 1.5,
        "by_class": [0, 2, 3, 4],
    }
    assert value["tenants"][0]["cost_per_s"] == 0.25


@pytest.mark.parametrize(
    ("payload", "value", "text"),
    [
        (b'{"at": 1, "m": "m", "ok": true}', {"at": 1, "m": "m", "ok": True}, 'm="m" ok=true'),
        (b"[1, 2]", [1, 2], "[1, 2]"),
        (b"plain \x1b[31mwords", "plain \x1b[31mwords", "plain  [31mwords"),
        (b"", "", ""),
    ],
    ids=["object", "list", "text", "empty"],
)  # fmt: skip
def test_payloads(payload: bytes, value: object, text: str) -> None:
    decoded = events.decode(payload)
    assert decoded == {"payload": value}
    assert events.people(decoded) == text


def test_a_payload_that_is_no_text() -> None:
    assert events.decode(b"\xff\x00") == {"payload_base64": "/wA="}
    assert events.people(events.decode(b"\xff\x00")) == "/wA="


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--set", "max_queued"], "--set max_queued is not KEY=VALUE"),
        (["--set", "nope=1"], "There is no limit 'nope'; there are max_queued, "),
        (["--set", "max_queued=many"], "max_queued = many is no limit: it must be a whole number"),
        (["--set", "max_queued=-1"], "max_queued = -1 is no limit"),
        (["--set", "ageing_s=soon"], "ageing_s = soon is no limit: it must be a number"),
        (["--weight", "2"], "Say whose weight it is: add --tenant NAME"),
        (["--tenant", "alice"], "Say what is to change for alice"),
    ],
    ids=" ".join,
)
def test_wrong_limits(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, words: list[str], said: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--state-dir", str(tmp_path), "kernel", "limits", *words])
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


def test_a_file_that_is_no_recording(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for path, text in ((tmp_path / "none.rec", None), (tmp_path / "empty.rec", "")):
        if text is not None:
            path.write_text(text)
        with pytest.raises(SystemExit) as caught:
            main(["kernel", "replay", str(path)])
        _, err = capsys.readouterr()
        assert caught.value.code == 2
        assert err.startswith(f"llmos-ctl: {path} is not a recording") and err.count("\n") == 1
