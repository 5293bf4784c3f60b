"""Recording what the core was given, and replaying it: `--record FILE`, `--replay FILE`."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import IO

from google.protobuf.message import DecodeError, Message

from llmos.api.kernel.v1 import record_pb2 as pb
from llmos.kernel.core.core import Core
from llmos.kernel.core.events import (
    Actions,
    Attached,
    CancelRequested,
    Detached,
    DrainRequested,
    Event,
    Received,
    Tick,
)
from llmos.lib.errors import InvalidArgument

What = pb.RecordedEvent.What


def crc(actions: Actions) -> int:
    """Return the checksum of what leaves: per port its number and its envelopes' bytes."""
    value = 0
    for port, envelopes in sorted(actions.frames.items()):
        value = zlib.crc32(f"{port}:".encode(), value)
        for envelope in envelopes:
            value = zlib.crc32(envelope.SerializeToString(deterministic=True), value)
    return value


class Recorder:
    """Writes a recording while the kernel runs."""

    def __init__(self, path: Path, core: Core) -> None:
        """Start a file. Raises OSError."""
        self._file: IO[bytes] = path.open("wb")
        self._write(pb.RecordHeader(kernel=core.kernel, host=core.host, version=version("llmos")))

    def _write(self, message: Message) -> None:
        data = message.SerializeToString()
        self._file.write(len(data).to_bytes(4, "big") + data)

    def describe(self, event: Event, now: float) -> pb.RecordedEvent:
        """Return the record of an event; before the core has it, which changes envelopes."""
        record = pb.RecordedEvent(now=now)
        if isinstance(event, Received):
            record.what, record.subject = What.WHAT_RECEIVED, event.port
            record.envelopes.extend(event.envelopes)
        elif isinstance(event, Attached):
            record.what, record.subject = What.WHAT_ATTACHED, event.port
            record.own = event.own
        elif isinstance(event, Detached):
            record.what, record.subject = What.WHAT_DETACHED, event.port
        elif isinstance(event, CancelRequested):
            record.what, record.subject = What.WHAT_CANCEL_REQUESTED, event.call
        elif isinstance(event, DrainRequested):
            record.what, record.subject = What.WHAT_DRAIN_REQUESTED, event.port
        else:
            record.what = What.WHAT_TICK
        return record

    def finish(self, record: pb.RecordedEvent, actions: Actions) -> None:
        """Write a record with the checksum of what came of it."""
        record.actions_crc = crc(actions)
        self._write(record)
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _messages(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while head := file.read(4):
            data = file.read(int.from_bytes(head, "big"))
            if len(head) < 4 or len(data) < int.from_bytes(head, "big"):
                return  # the kernel was killed while it wrote
            yield data


def _event(record: pb.RecordedEvent) -> Event:
    if record.what == What.WHAT_RECEIVED:
        return Received(record.subject, record.envelopes)
    if record.what == What.WHAT_ATTACHED:
        return Attached(record.subject, record.own)
    if record.what == What.WHAT_DETACHED:
        return Detached(record.subject)
    if record.what == What.WHAT_CANCEL_REQUESTED:
        return CancelRequested(record.subject)
    if record.what == What.WHAT_DRAIN_REQUESTED:
        return DrainRequested(record.subject)
    return Tick()


def replay(path: Path) -> Iterator[str]:
    """Yield one JSON line per event, then a summary; `same` = the core did again what it did.

    Raises InvalidArgument BAD_RECORDING.
    """
    try:
        messages = _messages(path)
        header = pb.RecordHeader.FromString(next(messages))
        core = Core(header.kernel, header.host)
        events = different = 0
        start: float | None = None
        for data in messages:
            record = pb.RecordedEvent.FromString(data)
            start = record.now if start is None else start
            actions = core.handle(_event(record), record.now)
            same = crc(actions) == record.actions_crc
            events += 1
            different += not same
            yield json.dumps(
                {
                    "t": round(record.now - start, 6),
                    "event": What.Name(record.what).removeprefix("WHAT_").lower(),
                    "subject": record.subject,
                    "envelopes": len(record.envelopes),
                    "sent": {str(p): len(e) for p, e in actions.frames.items()},
                    "same": same,
                }
            )
    except (OSError, StopIteration, DecodeError) as exc:
        raise InvalidArgument("BAD_RECORDING", f"{path} is not a recording: {exc!r}") from exc
    yield json.dumps({"events": events, "different": different, "version": header.version})
