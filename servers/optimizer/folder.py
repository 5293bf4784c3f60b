"""The folder of one job: what server and job process leave for each other (see process.proto).

job.pb        the record, by the server            launch.pb   what to do, for the process
progress.<n>  reports of the n-th try, by the process; append-only
job.log       what the process printed             lock        held while a process runs
work/         files of the job; gone when it has ended
artifacts/    files of the job for people; they stay
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

from google.protobuf.message import DecodeError, Message
from google.protobuf.proto import parse_length_prefixed, serialize_length_prefixed

from llmos.api.optimizer.v1 import process_pb2 as pb

ARTIFACTS = "artifacts"


class Folder:
    """Reads and writes the files of one job."""

    def __init__(self, path: Path) -> None:
        """Take the folder's path; it may not exist yet."""
        self.path = path
        self.log = path / "job.log"
        self.work = path / "work"
        self.artifacts = path / ARTIFACTS

    def create(self, record: pb.JobRecord) -> None:
        """Make the folder with its record; nothing is left when that fails (raises OSError)."""
        try:
            self.path.mkdir(parents=True, mode=0o700)
            self.save(record)
        except OSError:
            self.remove()
            raise

    def save(self, record: pb.JobRecord) -> None:
        """Write the record so that either the old or the new one survives a crash."""
        _write(self.path / "job.pb", record)

    def load(self) -> pb.JobRecord | None:
        """Return the record; None when the folder was never finished."""
        try:
            return pb.JobRecord.FromString((self.path / "job.pb").read_bytes())
        except (FileNotFoundError, DecodeError):
            return None

    def write_launch(self, launch: pb.JobLaunch) -> None:
        """Write what the next process needs, and make its working folder."""
        self.work.mkdir(exist_ok=True, mode=0o700)
        _write(self.path / "launch.pb", launch)

    def read_launch(self) -> pb.JobLaunch:
        """Return what this process was started for."""
        return pb.JobLaunch.FromString((self.path / "launch.pb").read_bytes())

    def progress(self, attempt: int) -> Path:
        """Return the file that the process of a try reports into."""
        return self.path / f"progress.{attempt}"

    def lock(self) -> int:
        """Take the lock and return its descriptor, to be given to the process that is started.

        The lock belongs to the open file: it is free when the last process that has it ends,
        however it ends. Raises BlockingIOError while another one has it.
        """
        descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise
        return descriptor

    def locked(self) -> bool:
        """Return whether a process of this job runs."""
        try:
            os.close(self.lock())
        except BlockingIOError:
            return True
        return False

    def clear_work(self) -> None:
        """Remove the job's working files."""
        shutil.rmtree(self.work, ignore_errors=True)

    def remove(self) -> None:
        """Remove everything."""
        shutil.rmtree(self.path, ignore_errors=True)


class Report:
    """The writing end of a progress file."""

    def __init__(self, path: Path) -> None:
        """Open it for appending; one writer only."""
        self._file = path.open("ab", buffering=0)

    def send(self, message: pb.JobProgress) -> None:
        """Append one message, in one write."""
        buffer = BytesIO()
        serialize_length_prefixed(message, buffer)
        self._file.write(buffer.getvalue())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Tail:
    """The reading end: yields every message once, from the beginning, as they come."""

    def __init__(self, path: Path) -> None:
        """Take the file's path; it may not exist yet."""
        self._path = path
        self._offset = 0

    def read(self) -> Iterator[pb.JobProgress]:
        """Yield what is new; a message that is not whole yet stays for the next time."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                buffer = BytesIO(file.read())
        except FileNotFoundError:
            return
        start = self._offset
        while True:
            try:
                message = parse_length_prefixed(pb.JobProgress, buffer)
            except (ValueError, EOFError, DecodeError):  # cut within a message
                return
            if message is None:
                return
            self._offset = start + buffer.tell()
            yield message


def _write(path: Path, message: Message) -> None:
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        file.write(message.SerializeToString())
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
