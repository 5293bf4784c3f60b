"""Whether a process runs is told by its socket, however busy the process is."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from tempfile import TemporaryDirectory

from llmos.clients.ctl.session import connects


def test_a_busy_process_is_there_and_a_dead_one_is_not() -> None:
    with TemporaryDirectory(prefix="llmos-") as folder, contextlib.ExitStack() as waiting:
        path = Path(folder) / "init.sock"
        assert not connects(path)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen(0)
            assert connects(path)
            for _ in range(4):  # it lets nobody in
                client = waiting.enter_context(socket.socket(socket.AF_UNIX))
                client.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    client.connect(str(path))
            assert connects(path)
        assert not connects(path)
