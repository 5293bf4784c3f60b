"""Manifests: the shipped one, dependency order, and every way to get one wrong."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from llmos.lib.errors import InvalidArgument
from llmos.servers.init import manifest


def write(folder: Path, text: str, version: str = "version = 1\n") -> Path:
    path = folder / "my.toml"
    path.write_text(version + text)
    return path


def test_shipped_order() -> None:
    levels = [[spec.name for spec in level] for level in manifest.load(None).levels()]
    assert [sorted(level) for level in levels] == [
        ["kernel"],
        ["memory", "storage"],
        ["execution", "optimizer"],
        ["gateway"],
    ]


def test_default_command(tmp_path: Path) -> None:
    specs = {spec.name: spec for spec in manifest.load(None).specs}
    assert specs["storage"].argv(Path("/c.toml"), tmp_path) == [
        *(sys.executable, "-m", "llmos.servers.storage"),
        *("--config", "/c.toml", "--state-dir", str(tmp_path)),
    ]
    assert specs["kernel"].argv(Path("/c.toml"), tmp_path)[2] == "llmos.kernel"


def test_own_command_has_only_its_words_and_their_values(tmp_path: Path) -> None:
    text = '[processes.x]\ncommand = ["x", "--at", "{socket}", "{other}"]\nstop_timeout = 3'
    (spec,) = manifest.load(write(tmp_path, text)).specs
    socket = f"unix:{tmp_path}/run/x.sock"
    if len(socket) < 90:  # else the run directory is elsewhere
        assert spec.argv(Path("c"), tmp_path) == ["x", "--at", socket, "{other}"]
    assert spec.stop_timeout_s == 3


def test_settings_alone_boot_the_shipped_processes(tmp_path: Path) -> None:
    path = write(tmp_path, "[gateway]\nport = 9000")
    loaded = manifest.load(path)
    assert {spec.name for spec in loaded.specs} == {s.name for s in manifest.load(None).specs}
    assert loaded.path == path


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[processes]", "[processes] has no process"),
        ("[processes.init]", "[processes.init] is not a process name"),
        ('[processes."a b"]', "is not a process name"),
        ("processes = 3", "[processes] has no process"),
        ("[processes]\nx = 3", "[processes.x] must be a table"),
        ("[processes.x]\nafter = ['y']", "after names 'y'; there are x"),
        ("[processes.x]\nafter = 'y'", "[processes.x] after must be a list of texts"),
        ("[processes.x]\ncommand = []", "[processes.x] command is empty"),
        ("[processes.x]\ncommand = 'x'", "command must be a list of texts"),
        ("[processes.x]\nstart_timeout = 0", "start_timeout must be a number of seconds"),
        ("[processes.x]\nstop_timeout = true", "stop_timeout must be a number of seconds"),
        ("[processes.x]\nwhen = 1", "[processes.x] has no key 'when'"),
        ("[gatewey]\nport = 1", "[gatewey] is no process"),
        ("[processes.a]\nafter=['b']\n[processes.b]\nafter=['a']", "is a circle: "),
        ("[processes", "Expected ']'"),
    ],
)
def test_wrong_manifests_name_file_and_key(tmp_path: Path, text: str, said: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(InvalidArgument) as caught:
        manifest.load(path)
    assert caught.value.reason == "BAD_CONFIG"
    assert str(path) in caught.value.message
    assert said in caught.value.message


def test_wrong_version_and_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="version = 2, expected 1"):
        manifest.load(write(tmp_path, "", "version = 2\n"))
    with pytest.raises(InvalidArgument, match=r"absent\.toml"):
        manifest.load(tmp_path / "absent.toml")
