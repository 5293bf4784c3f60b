"""A job's files for people: its log and its artefacts, read piece by piece."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from llmos.api.optimizer.v1 import jobs_pb2
from llmos.lib.errors import NotFound
from llmos.servers.optimizer.entry import Entry

_PIECE = 256 << 10
_LOOK_S = 0.2


class Files:
    """The files of one job; nothing is changed."""

    def __init__(self, entry: Entry) -> None:
        """Read beside `entry`."""
        self._entry = entry

    def list(self) -> list[jobs_pb2.Artifact]:
        """Return the artefacts by name."""
        folder = self._entry.folder.artifacts
        found = sorted(folder.iterdir()) if folder.is_dir() else []
        return [jobs_pb2.Artifact(name=p.name, size=p.stat().st_size) for p in found if p.is_file()]

    def read(self, name: str) -> Iterator[bytes]:
        """Yield an artefact. Raises NotFound NO_SUCH_ARTIFACT."""
        names = [artifact.name for artifact in self.list()]
        if name not in names:
            raise NotFound(
                "NO_SUCH_ARTIFACT",
                f"The job has no artefact {name[:60]!r}; it has {', '.join(names) or 'none'}.",
            )
        with (self._entry.folder.artifacts / name).open("rb") as file:
            while piece := file.read(_PIECE):
                yield piece

    async def log(self, lines: int, follow: bool) -> AsyncIterator[bytes]:
        """Yield the log, or its last lines; with `follow` also what comes until the job ends."""
        path = self._entry.folder.log
        at = _start(path, lines) if lines else 0
        while True:
            ended = self._entry.ended  # before the last look, so that nothing is missed
            while piece := _read(path, at):
                at += len(piece)
                yield piece
            if ended or not follow:
                return
            await asyncio.sleep(_LOOK_S)


def _read(path: Path, at: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(at)
            return file.read(_PIECE)
    except FileNotFoundError:  # it has not been started yet
        return b""


def _start(path: Path, lines: int) -> int:
    """Return where the last lines begin."""
    try:
        with path.open("rb") as file:
            at = file.seek(0, 2)
            count = -1  # the end of the last line does not count
            while at > 0:
                size = min(_PIECE, at)
                file.seek(at - size)
                piece = file.read(size)
                for index in range(size - 1, -1, -1):
                    if piece[index] == 10:
                        count += 1
                        if count == lines:
                            return at - size + index + 1
                    elif count < 0:
                        count = 0  # a last line without its end
                at -= size
    except FileNotFoundError:
        pass
    return 0
