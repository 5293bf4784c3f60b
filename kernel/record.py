"""Recording what the core was given, and replaying it: `--record FILE`, `--replay FILE`."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, get_args

from google.protobuf.message import DecodeError, Message

from llmos.api.kernel.v1 import record_pb2 as pb
from llmos.kernel.core.core import Core
from llmos.kernel.core.events import Actions, Attached, Event, LimitsChanged, Received, Tick
from llmos.lib.errors import FailedPrecondition, InvalidArgument

What = pb.RecordedEvent.What
# Each kind of event has the value that is called like it: LimitsChanged is WHAT_LIMITS_CHANGED.
_WHAT: dict[type[Any], What.ValueType] = {
    kind: What.Value("WHAT" + re.sub("([A-Z])", r"_\1", kind.__name__).upper())
    for kind in get_args(Event)
}
_KIND = {what: kind for kind, what in _WHAT.items()}


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
        """Start a file. Raises FailedPrecondition READ_ONLY."""
        try:
            self._file: IO[bytes] = path.open("wb")
        except OSError as exc:
            raise FailedPrecondition("READ_ONLY", f"Cannot write {path}: {exc.strerror}.") from exc
        self._write(pb.RecordHeader(kernel=core.kernel, host=core.host, version=version("llmos")))

    def _write(self, message: Message) -> None:
        data = message.SerializeToString()
        self._file.write(len(data).to_bytes(4, "big") + data)

    def describe(self, event: Event, now: float) -> pb.RecordedEvent:
        """Return the record of an event; before the core has it, which changes envelopes."""
        subject = getattr(event, "port", 0) or getattr(event, "call", 0)
        record = pb.RecordedEvent(now=now, what=_WHAT[type(event)], subject=subject)
        if isinstance(event, Received):
            record.envelopes.extend(event.envelopes)
        elif isinstance(event, Attached):
            record.own = event.own
        elif isinstance(event, LimitsChanged):
            record.limits.CopyFrom(event.request)
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
    if record.what == What.WHAT_LIMITS_CHANGED:
        return LimitsChanged(record.limits)
    if record.what == What.WHAT_TICK:
        return Tick()
    more = {What.WHAT_RECEIVED: (record.envelopes,), What.WHAT_ATTACHED: (record.own,)}
    event: Event = _KIND[record.what](record.subject, *more.get(record.what, ()))
    return event


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
    except (OSError, StopIteration, DecodeError, KeyError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else "llmos-kernel --record did not write it"
        raise InvalidArgument("BAD_RECORDING", f"{path} is not a recording: {why}.") from exc
    yield json.dumps({"events": events, "different": different, "version": header.version})
