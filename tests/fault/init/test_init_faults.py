"""init under fire: killed processes, a killed init, hangs, and every way `up` can go wrong.

Real llmos-init and llmos-ctl over tiny real gRPC servers.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_os import TinyOS, server, tiny_os

MANIFEST = server("a") + server("b", "a")


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TinyOS]:
    manifest = MANIFEST + "[init]\nhang_s = 1.5\n"
    with tiny_os(tmp_path_factory.mktemp("os"), manifest) as system:
        yield system


@pytest.fixture
def running(system: TinyOS) -> TinyOS:
    system.up()
    return system


def test_up_shows_progress_and_ps_shows_processes(running: TinyOS) -> None:
    running.ctl("down")
    done = running.up()
    assert done.stdout == "LLM OS is ready.\n"
    said = [line.split()[:2] for line in done.stderr.splitlines()]
    assert said == [["a", "ready"], ["b", "ready"]]
    listed = running.ctl("ps", "-o", "json")
    processes = {process["name"]: process for process in json.loads(listed.stdout)}
    assert list(processes)[:3] == ["a", "b", "init"]
    assert {p["state"] for p in processes.values()} == {"running"}
    assert [p["managed"] for p in processes.values()][:3] == [True, True, False]
    table = running.ctl("ps")
    assert table.stdout.split()[:7] == "NAME PID STATE RESTARTS RSS UPTIME CALLS".split()
    assert "Call counts are not known" in table.stderr  # this OS has no kernel


def test_second_up_says_so_and_changes_nothing(running: TinyOS) -> None:
    running.wait_for(["a", "b", "init"])
    before = {name: p["pid"] for name, p in running.ps().items()}
    done = running.up()
    assert done.stdout == f"LLM OS already runs in {running.state_dir}; nothing changed.\n"
    assert {name: p["pid"] for name, p in running.ps().items()} == before
    # Past ctl's own look: a second init finds the lock.
    init = subprocess.run(
        [sys.executable, "-m", "llmos.servers.init", "--state-dir", str(running.state_dir)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert init.returncode == 0
    assert f"already runs in {running.state_dir} (init has pid {before['init']})" in init.stderr
    assert {name: p["pid"] for name, p in running.ps().items()} == before


def test_two_ups_at_once(system: TinyOS) -> None:
    system.ctl("down")
    results: list[subprocess.CompletedProcess[str]] = []
    threads = [threading.Thread(target=lambda: results.append(system.ctl("up"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [done.returncode for done in results] == [0, 0], [done.stderr for done in results]
    assert "LLM OS is ready.\n" in [done.stdout for done in results]
    system.wait_for(["a", "b", "init"])


def test_killed_process_is_back(running: TinyOS) -> None:
    before = running.ps()["a"]
    os.kill(before["pid"], signal.SIGKILL)
    after = running.until(
        lambda ps: ps["a"]["state"] == "running" and ps["a"]["pid"] != before["pid"], 10
    )["a"]
    assert after["restarts"] == before["restarts"] + 1
    assert after["last_exit"] == "killed by SIGKILL"
    crash = running.ctl("logs", "a.crash").stdout
    assert f"pid {before['pid']}: killed by SIGKILL" in crash
    assert '"message": "serving"' in crash  # its last lines
    assert running.ps()["b"]["restarts"] == 0  # nobody else was touched


def test_stopped_process_is_taken_for_hung(running: TinyOS) -> None:
    before = running.ps()["b"]
    os.kill(before["pid"], signal.SIGSTOP)
    after = running.until(lambda ps: ps["b"]["restarts"] == before["restarts"] + 1)["b"]
    assert after["last_exit"] == "killed by SIGKILL (hung: no answer for 1.5 s)"
    running.until(lambda ps: ps["b"]["state"] == "running")


def test_killed_init_is_replaced_by_its_stand_in(running: TinyOS) -> None:
    running.wait_for(["a", "b", "init"])
    before = running.ps()
    os.kill(before["init"]["pid"], signal.SIGKILL)
    running.wait_for(["a", "b", "init"], gone=before["init"]["pid"])
    after = running.ps()
    assert after["init"]["pid"] == before["stand-in"]["pid"] != after["stand-in"]["pid"]
    for name in "ab":
        assert after[name]["pid"] == before[name]["pid"]
        assert after[name]["restarts"] == before[name]["restarts"]
    os.kill(after["stand-in"]["pid"], signal.SIGKILL)
    running.until(
        lambda ps: ps.get("stand-in", after["stand-in"])["pid"] != after["stand-in"]["pid"]
    )


def test_without_init_all_goes_on_and_the_next_one_adopts(running: TinyOS) -> None:
    running.wait_for(["a", "b", "init"])
    before = running.ps()
    running.end_init()
    running.wait_for(["a", "b"])
    without = running.ctl("ps")
    assert without.returncode == 8
    assert "init is gone, but a, b run: `llmos-ctl up` supervises them again" in without.stderr
    done = running.up()
    assert [line.split()[:2] for line in done.stderr.splitlines()] == [
        ["a", "adopted"],
        ["b", "adopted"],
    ]
    after = running.ps()
    for name in "ab":
        for key in ("pid", "restarts", "last_exit", "state"):
            assert after[name][key] == before[name][key]
    # What was adopted is watched as if it were a child.
    os.kill(after["a"]["pid"], signal.SIGKILL)
    back = running.until(
        lambda ps: ps["a"]["state"] == "running" and ps["a"]["pid"] != after["a"]["pid"], 10
    )["a"]
    assert back["restarts"] == after["a"]["restarts"] + 1
    assert "adopted" in back["last_exit"]


def test_next_init_starts_what_died_while_there_was_none(running: TinyOS) -> None:
    running.wait_for(["a", "b", "init"])
    before = running.ps()
    running.end_init()
    os.kill(before["b"]["pid"], signal.SIGKILL)
    running.wait_for(["a"])
    running.up()
    after = running.ps()
    assert after["a"]["pid"] == before["a"]["pid"] and after["b"]["pid"] != before["b"]["pid"]


def test_down_without_init_stops_what_it_left(running: TinyOS) -> None:
    running.wait_for(["a", "b", "init"])
    running.end_init()
    running.wait_for(["a", "b"])
    done = running.ctl("down")
    assert (done.returncode, done.stdout) == (0, "LLM OS is down.\n"), done.stderr
    assert running.alive() == []


def test_down_is_in_reverse_order_and_leaves_nothing(running: TinyOS) -> None:
    done = running.ctl("down")
    assert done.stdout == "LLM OS is down.\n"
    stopped = [line.split()[0] for line in done.stderr.splitlines()]
    assert [name for name in stopped if name in ("a", "b", "init")] == ["b", "a", "init"]
    assert running.alive() == []
    assert running.ctl("ps").returncode == 8


def test_restart_and_logs(running: TinyOS) -> None:
    before = running.ps()["b"]
    assert running.ctl("restart", "b").returncode == 0
    assert running.ps()["b"]["restarts"] == before["restarts"] + 1
    wrong = running.ctl("restart", "zz")
    assert wrong.returncode == 3
    assert wrong.stderr == "llmos-ctl: The manifest has no process 'zz'; it has a, b.\n"
    assert running.ctl("logs", "b", "-n", "1").stdout.count("\n") == 1
    wrong = running.ctl("logs", "../../etc/passwd")
    assert wrong.returncode == 3 and "there are a" in wrong.stderr


def test_sigterm_of_init_is_a_graceful_down(running: TinyOS) -> None:
    os.kill(running.pid("init"), signal.SIGTERM)
    running.wait_for([])
    assert '"message": "stopped"' in running.log("a").splitlines()[-1]


def test_restarts_back_off(tmp_path: Path) -> None:
    manifest = server("a", dies_after_s=0.5) + "[init]\nbackoff_cap_s = 0.4\n"
    with tiny_os(tmp_path, manifest) as system:
        system.up()
        system.until(lambda ps: ps["a"]["restarts"] >= 2)
        assert system.ps()["a"]["last_exit"] == "exit code 3"
        assert system.ctl("down").returncode == 0


@contextlib.contextmanager
def busy_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_busy_tcp_port_fails_up_with_the_process_own_sentence(tmp_path: Path) -> None:
    with busy_port() as port:
        kernel = f'[processes.kernel]\n[kernel]\ntcp = "127.0.0.1:{port}"\n'
        with tiny_os(tmp_path, kernel + server("a", "kernel")) as system:
            done = system.ctl("up")
            assert done.returncode == 7 and not done.stdout
            (sentence,) = done.stderr.splitlines()
            assert sentence.startswith("llmos-ctl: LLM OS did not start: kernel does not start: ")
            assert f"127.0.0.1:{port}" in sentence and "in use" in sentence
            assert system.alive() == []
            assert not (system.state_dir / "logs" / "a.log").exists()


def test_wrong_setting_fails_up_at_once_with_file_and_key(tmp_path: Path) -> None:
    manifest = "[processes.kernel]\n[kernel]\ntpc = 1\n"
    with tiny_os(tmp_path, manifest) as system:
        done = system.ctl("up")
        assert done.returncode == 7
        assert f"{system.config}: [kernel] has no key 'tpc'" in done.stderr
        assert system.log("kernel").count("has no key") == 1  # trying again would not help
        assert system.alive() == []


def test_wrong_manifest_fails_up(tmp_path: Path) -> None:
    with tiny_os(tmp_path, "[processes.a]\nafter = ['z']\n") as system:
        done = system.ctl("up")
        assert done.returncode == 2
        assert f"{system.config}: [processes.a] after names 'z'; there are a." in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_full_disk_fails_up_with_one_sentence(tmp_path: Path) -> None:
    """A file system of one page in a mount namespace of its own; nothing outlives the namespace."""
    unshare = [shutil.which("unshare") or "unshare", "--user", "--map-root-user", "--mount"]
    unshare += ["--pid", "--fork", "--kill-child"]
    if subprocess.run([*unshare, "true"], capture_output=True).returncode:
        pytest.skip("this system allows no mount namespaces")
    state = tmp_path / "state"
    state.mkdir()
    script = (
        f"mount -t tmpfs -o size=4k none {state} && mkdir {state}/logs && "
        f"head -c 4096 /dev/zero > {state}/logs/filler; "
        f"exec {sys.executable} -m llmos.clients.ctl --state-dir {state} up"
    )
    done = subprocess.run(
        [*unshare, "sh", "-c", script], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 6, done.stderr
    said = done.stderr.splitlines()
    assert said[-1].startswith("llmos-ctl: No room on the disk of ")
    # Whatever was ready before the disk was asked for more is told before it.
    assert all(line.startswith("  ") for line in said[:-1]), done.stderr


def test_interrupted_up_stops_what_it_started(tmp_path: Path) -> None:
    never = '[processes.b]\nafter = ["a"]\ncommand = ["sleep", "60"]\n'
    with tiny_os(tmp_path, server("a") + never) as system:
        up = subprocess.Popen(
            [sys.executable, "-m", "llmos.clients.ctl", "up"],
            env={
                **os.environ,
                "LLMOS_CONFIG": str(system.config),
                "LLMOS_STATE_DIR": str(system.state_dir),
            },
            stderr=subprocess.PIPE,
            text=True,
            # A shell's background job ignores SIGINT, and so would its children.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        try:
            while system.alive() != ["a", "b", "init"]:  # no stand-in yet: b is never ready
                time.sleep(0.05)
            up.send_signal(signal.SIGINT)
            _, err = up.communicate(timeout=30)
        finally:
            up.kill()
            up.wait()
        assert up.returncode == 130 and "Traceback" not in err
        assert system.alive() == []
