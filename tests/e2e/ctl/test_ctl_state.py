"""Documents, locks, audit log and quotas at the command line, through the kernel."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ctl_forked
from whole_os import WholeOS


@contextmanager
def running(os_up: WholeOS, *words: str) -> Iterator[subprocess.Popen[str]]:
    """Run `llmos-ctl` aside; end it in any case."""
    command = [sys.executable, "-m", "llmos.clients.ctl", "--state-dir", str(os_up.state_dir)]
    env = {k: v for k, v in os.environ.items() if not k.startswith("LLMOS_")}
    process = subprocess.Popen(
        [*command, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def holder(os_up: WholeOS, lock: str) -> int:
    """Wait until a lock is held; return the token."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for found in os_up.json("lock", "ls", lock):
            return int(found["holder"]["token"])
    raise AssertionError(f"nobody holds {lock}")


def test_documents(os_up: WholeOS, tmp_path: Path) -> None:
    with running(os_up, "-o", "json", "state", "watch", "app/", "--count", "3") as watch:
        assert watch.stderr is not None and watch.stdout is not None
        assert "watching" in watch.stderr.readline()
        made = os_up.json("state", "put", "app/theme", "dark")
        assert made["version"] == 1
        (tmp_path / "raw").write_bytes(b"\xff\x00")
        os_up.ok("state", "put", "app/raw", "--file", str(tmp_path / "raw"))
        refused = os_up.ctl("state", "put", "app/theme", "light", "--if-revision", "0")
        assert refused.returncode == 4 and "is at revision" in refused.stderr
        assert os_up.ok("state", "get", "app/theme") == "dark"
        assert os_up.json("state", "get", "app/raw")["base64"] == "/wA="
        listed = os_up.json("state", "ls", "app/")
        assert [d["key"] for d in listed] == ["app/raw", "app/theme"]
        assert "dark" in os_up.ok("state", "list", "app/")
        assert os_up.json("state", "delete", "app/", "--prefix")["deleted"] == 2
        lines = [json.loads(watch.stdout.readline()) for _ in range(3)]
    assert [(line["key"], line["deleted"]) for line in lines] == [
        ("app/theme", False),
        ("app/raw", False),
        ("app/raw", True),
    ]
    gone = os_up.ctl("state", "get", "app/theme")
    assert gone.returncode == 3 and "There is no document" in gone.stderr


def test_a_command_under_a_lock(os_up: WholeOS) -> None:
    done = os_up.ctl(
        "lock", "run", "e2e/one", "--", "sh", "-c", 'echo "fence $LLMOS_FENCE"; exit 3'
    )
    assert done.returncode == 3, done.stderr
    assert done.stdout.startswith("fence e2e/one:")
    assert os_up.json("lock", "ls", "e2e/one") == []  # free again
    assert os_up.ctl("lock", "run", "e2e/one", "--", "no-such-command").returncode == 127
    with running(
        os_up, "lock", "run", "e2e/one", "--ttl", "3", "--", "sh", "-c", "echo in; sleep 100"
    ) as busy:
        assert busy.stdout is not None
        assert busy.stdout.readline() == "in\n"
        token = holder(os_up, "e2e/one")
        refused = os_up.ctl("lock", "run", "e2e/one", "--wait", "0", "--", "true")
        assert refused.returncode == 4 and "is held by" in refused.stderr
        os_up.ok("lock", "release", "e2e/one", str(token))  # the lock is taken away
        _, said = busy.communicate(timeout=60)
        assert busy.returncode == 4 and "was lost" in said
    late = ctl_forked.run(
        *("--state-dir", str(os_up.state_dir), "state", "put", "k", "late"),
        env={**os.environ, "LLMOS_FENCE": f"e2e/one:{token}"},
    )
    assert late.returncode == 7 and "does not hold the lock" in late.stderr


def test_the_audit_log_is_checked_offline(os_up: WholeOS, tmp_path: Path) -> None:
    os_up.ok("state", "put", "audited", "1")
    os_up.ok("state", "put", "audited", "2")
    log = tmp_path / "audit.jsonl"
    os_up.ok("audit", "export", str(log))
    head = os_up.ok("audit", "head").strip()
    away = os_up.state_dir / "nowhere"  # verify needs no server

    def verify(*words: str) -> subprocess.CompletedProcess[str]:
        return ctl_forked.run("--state-dir", str(away), "audit", "verify", str(log), *words)

    done = verify("--head", head)
    assert done.returncode == 0 and "intact" in done.stdout, done.stderr
    os_up.ok("audit", "verify", "--head", head)
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:-1]))
    assert verify().returncode == 0
    cut = verify("--head", head)
    assert cut.returncode == 11 and "cut off" in cut.stderr
    log.write_text("".join(lines[:-1]) + lines[-1].replace('"audited"', '"innocent"'))
    edited = verify()
    assert edited.returncode == 11 and f"entry {len(lines)}" in edited.stderr
    found = os_up.json("audit", "ls", "--subject", "audited")
    assert [entry["action"] for entry in found[-2:]] == ["document.put"] * 2


def test_quotas(os_up: WholeOS) -> None:
    os_up.ok("storage", "quota", "set", "someone", "--bytes", "1.5KiB", "--items", "7")
    shown = os_up.json("storage", "quota", "show", "someone")
    assert (shown["limit_bytes"], shown["limit_items"]) == (1536, 7)
    os_up.ok("storage", "quota", "set", "someone", "--reset")
    mine = os_up.json("storage", "quota", "show")
    assert {kind["kind"] for kind in mine["kinds"]} >= {"model"}  # SmolLM2 was imported
    assert mine["used_bytes"] > 1 << 20
    assert os_up.ctl("storage", "quota", "set", "x", "--bytes", "many").returncode == 2
