"""A whole LLM OS as a user brings it up: by `llmos-ctl up`, all servers real processes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import ctl_forked

from llmos.lib.config import run_dir, socket_address
from llmos.lib.host import ProcessRecord, records

CONFIG = """\
version = 1
[kernel]
tcp = "127.0.0.1:0"
[gateway]
port = 0
[execution]
threads = 1
[optimizer]
threads = 1
"""


class WholeOS:
    """One LLM OS in a state directory of its own; nothing in it uses a fixed TCP port."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self.kernel = socket_address(state_dir, "kernel")
        self._config = state_dir / "test.toml"
        self._config.write_text(CONFIG)

    def ctl(
        self, *words: str, timeout: float = 120, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run `llmos-ctl` as a user would."""
        return ctl_forked.run(
            "--state-dir", str(self.state_dir), *words, stdin=stdin or "", timeout=timeout
        )

    def ok(self, *words: str, timeout: float = 120) -> str:
        """Run `llmos-ctl`, which must succeed; return what it printed."""
        done = self.ctl(*words, timeout=timeout)
        assert done.returncode == 0, f"{words}: {done.stdout}\n{done.stderr}\n{self.logs()}"
        return done.stdout

    def json(self, *words: str) -> Any:
        """Run `llmos-ctl -o json`; return what it printed."""
        return json.loads(self.ok("-o", "json", *words))

    def up(self) -> None:
        self.ok("up", "--config", str(self._config))

    def down(self) -> None:
        """Stop it, and whatever is left of it should that fail."""
        try:
            self.ok("down")
        finally:
            self.kill_all()

    def kill_all(self) -> None:
        """End all that is left of it."""
        for record in self.records():
            with contextlib.suppress(ProcessLookupError):
                os.kill(record.pid, signal.SIGKILL)

    def records(self) -> list[ProcessRecord]:
        return list(records(run_dir(self.state_dir)))

    def pid(self, prefix: str) -> int:
        """Return the pid of the running process whose name starts so; 0 when there is none."""
        return next((r.pid for r in self.records() if r.name.startswith(prefix)), 0)

    def kill(self, prefix: str) -> int:
        """kill -9; return the pid that it had."""
        pid = self.pid(prefix)
        assert pid, f"no {prefix} runs: {[r.name for r in self.records()]}"
        os.kill(pid, signal.SIGKILL)
        return pid

    def wait_new(self, prefix: str, old: int, timeout_s: float = 30) -> float:
        """Wait until another process of that name runs; return the seconds it took."""
        started = time.monotonic()
        while not (pid := self.pid(prefix)) or pid == old:
            assert time.monotonic() - started < timeout_s, f"{prefix} did not come back"
            time.sleep(0.05)
        return time.monotonic() - started

    def gateway(self) -> str:
        """Return the gateway's base URL."""
        return "http://" + (run_dir(self.state_dir) / "gateway.address").read_text().strip()

    def logs(self) -> str:
        """Return the last lines of every log."""
        return "\n".join(
            f"--- {path.name}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-8:])
            for path in sorted((self.state_dir / "logs").glob("*.log"))
        )
