"""LLM OS where it cannot run: one sentence says why, and nothing of it stays behind."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from whole_os import CONFIG, WholeOS

from llmos.lib.config import run_dir
from llmos.lib.family import members
from llmos.lib.host import records

# A mount and process namespace of its own; nothing outlives it.
UNSHARE = ["--user", "--map-root-user", "--mount", "--pid", "--fork", "--kill-child"]
UNSHARE = [shutil.which("unshare") or "unshare", *UNSHARE, "--mount-proc"]


@pytest.mark.parametrize("free_kib", [0, 16, 40])
def test_a_nearly_full_disk(tmp_path: Path, free_kib: int) -> None:
    if subprocess.run([*UNSHARE, "true"], capture_output=True).returncode:
        pytest.skip("this system allows no mount namespaces")
    script = (
        f"mount -t tmpfs -o size=64k none {tmp_path} && "
        f"head -c {64 - free_kib}k /dev/zero > {tmp_path}/filler; "
        f"{sys.executable} -m llmos.clients.ctl --state-dir {tmp_path}/s up; "
        "code=$?; grep -lz llmos /proc/[0-9]*/cmdline; exit $code"
    )
    done = subprocess.run([*UNSHARE, "sh", "-c", script], capture_output=True, text=True)
    assert done.returncode == 6, done.stderr
    assert "Traceback" not in done.stderr
    sentence = done.stderr.splitlines()[-1]
    assert sentence.startswith(f"llmos-ctl: No room on the disk of {tmp_path}/s/logs; free some")
    assert done.stdout.count("/proc/") == 1  # the shell, whose script names llmos: nothing runs


def test_a_failed_boot_leaves_no_process(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        system = WholeOS(tmp_path)
        (tmp_path / "test.toml").write_text(CONFIG.replace("port = 0", f"port = {port}"))
        try:
            done = system.ctl("up", "--config", str(tmp_path / "test.toml"))
            assert done.returncode == 7
            assert f"TCP port {port} on 127.0.0.1 is in use" in done.stderr.splitlines()[-1]
            assert not list(members(run_dir(tmp_path)))
        finally:
            system.kill_all()
    left = {path.name for path in run_dir(tmp_path).iterdir()}
    assert left <= {"init.lock", "zygote.lock", "proc"}


def test_a_zygote_that_still_imports_is_found(tmp_path: Path) -> None:
    """It takes seconds, and a stop must not overlook it (setproctitle hides its environment)."""
    folder = run_dir(tmp_path)
    zygote = subprocess.Popen(
        [sys.executable, "-m", "llmos.servers.execution.zygote", str(tmp_path), "info"],
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 30
        while not (found := list(records(folder))):
            assert zygote.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        assert [(r.name, r.pid) for r in found] == [("zygote", zygote.pid)]
        assert not (folder / "zygote.sock").exists()  # it does not serve yet
        psutil.Process(zygote.pid).terminate()
        zygote.wait(10)
        assert not list(members(folder))
    finally:
        zygote.kill()
        zygote.wait()
