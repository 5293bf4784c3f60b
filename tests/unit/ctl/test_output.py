"""Printers, formats and exit codes of llmos-ctl."""

from __future__ import annotations

import json

import pytest

from llmos.api.execution.v1 import execution_pb2
from llmos.api.init.v1 import init_pb2
from llmos.api.kernel.v1 import admin_pb2
from llmos.clients.ctl import exits, output
from llmos.lib import errors

COLUMNS = ["NAME", "PID", "NOTE"]
ROWS = [["kernel", "12", ""], ["a-longer-name", "34567", "[bold]not markup[/bold]"]]


def test_table_aligns_and_takes_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    output.printer(output.Output.TABLE).rows(COLUMNS, ROWS, None)
    header, first, second = capsys.readouterr().out.splitlines()
    assert header.split() == COLUMNS
    assert first.index("12") + 2 == second.index("34567") + 5
    assert second.endswith("[bold]not markup[/bold]")


def test_table_of_nothing_has_its_header(capsys: pytest.CaptureFixture[str]) -> None:
    output.printer(output.Output.TABLE).rows(COLUMNS, [], [])
    assert capsys.readouterr().out.split() == COLUMNS


def test_json_is_the_value(capsys: pytest.CaptureFixture[str]) -> None:
    printer = output.printer(output.Output.JSON)
    value = [{"é": 1}]
    printer.rows(COLUMNS, ROWS, value)
    printer.fields({"a": "b"}, value)
    printer.say("done", value)
    assert (
        json.loads(f"[{capsys.readouterr().out.replace('][', '],[')}]".replace("]\n[", "],["))
        == [value] * 3
    )


def test_fields(capsys: pytest.CaptureFixture[str]) -> None:
    output.printer(output.Output.TABLE).fields({"a": "1", "long": "2"}, None)
    assert capsys.readouterr().out == "a     1\nlong  2\n"


def test_as_value_keeps_numbers_names_enums_and_shows_every_field() -> None:
    process = init_pb2.Process(
        name="x", rss_bytes=2**60, state=init_pb2.PROCESS_STATE_BACKOFF, managed=True
    )
    value = output.as_value(process)
    assert value["rss_bytes"] == 2**60 and value["state"] == "backoff" and value["pid"] == 0
    assert list(value) == [field.name for field in init_pb2.Process.DESCRIPTOR.fields]


def test_as_value_of_nested_repeated_maps_and_absent_messages() -> None:
    stats = admin_pb2.GetStatsResponse(ended={0: 3, 14: 1})
    assert output.as_value(stats)["ended"] == {"0": 3, "14": 1}
    ports = admin_pb2.ListPortsResponse(
        ports=[admin_pb2.PortInfo(exports=[admin_pb2.ExportInfo(keys=["a", "b"])])]
    )
    assert output.as_value(ports)["ports"][0]["exports"][0]["keys"] == ["a", "b"]
    assert output.as_value(execution_pb2.GenerateResponse())["usage"] is None
    handle = execution_pb2.GenerateRequest(sampling=execution_pb2.Sampling(temperature=0))
    sampling = output.as_value(handle)["sampling"]
    assert (sampling["temperature"], sampling["top_p"], sampling["seed"]) == (0.0, None, None)


def test_unknown_enum_number_is_shown_as_it_is() -> None:
    assert output.short_name(init_pb2.ProcessState.DESCRIPTOR, 99) == "99"


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (98_400_000, "93.8 MiB"), (2**41, "2.0 TiB")],
)
def test_size(count: int, text: str) -> None:
    assert output.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.34, "0.3s"), (59.4, "59s"), (61, "1m01s"), (3725, "1h02m"), (200_000, "2d07h")],
)
def test_duration(seconds: float, text: str) -> None:
    assert output.duration(seconds) == text


def test_every_error_class_has_an_exit_code() -> None:
    assert set(exits.EXIT_CODES) == set(errors.LLMOSError.__subclasses__())
    assert 0 not in exits.EXIT_CODES.values()


def test_report_is_one_sentence_or_json(capsys: pytest.CaptureFixture[str]) -> None:
    error = errors.NotFound("NO_SUCH_MODEL", "There is no model x.")
    assert exits.report(error) == 3
    assert capsys.readouterr().err == "llmos-ctl: There is no model x.\n"
    assert exits.report(error, json=True) == 3
    said = json.loads(capsys.readouterr().err)["error"]
    assert (said["reason"], said["message"]) == ("NO_SUCH_MODEL", "There is no model x.")


def test_tables_of_top_share_the_lines_of_the_screen() -> None:
    from llmos.clients.ctl.dashboard_view import shares

    rows = {"servers": 10, "models": 1, "calls": 8, "jobs": 0}
    assert shares(22, rows) == rows  # nothing is hidden while there is room
    assert shares(12, rows) == {"servers": 9, "models": 1, "calls": 2, "jobs": 0}
    full = shares(40, dict.fromkeys(rows, 100))
    assert full == {"servers": 16, "models": 10, "calls": 8, "jobs": 6}


def test_top_has_the_kernels_own_port_and_calls_of_models_first() -> None:
    from llmos.api.kernel.v1 import admin_pb2 as pb
    from llmos.clients.ctl import frame
    from llmos.clients.ctl.dashboard_look import Look

    ports = pb.ListPortsResponse(ports=[pb.PortInfo(port=1, name="kernel", running=4)])
    stats, services = pb.GetStatsResponse(pid=7), pb.ListServicesResponse()
    sample = frame.Sample(0.0, stats, ports, services, pb.ListTenantsResponse())
    kernel = {"name": "kernel", "pid": 7, "restarts": 0, "managed": True}
    calls = [{"id": i, "key": key, "age_s": age} for i, key, age in (("1", "", 9), ("2", "m", 1))]
    look = Look(sample, frame.rates(None, sample), processes=[kernel], calls=calls)
    (row,) = look.servers()
    assert (row["port"], row["running"]) == (1, 4)
    assert [call["id"] for call in look.rows("calls")] == ["2", "1"]
