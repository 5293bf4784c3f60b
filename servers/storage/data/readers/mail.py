"""Mails: an mbox, a maildir, or a file each; folders are labels. No header is trusted."""

from __future__ import annotations

import email
import email.errors
import email.header
import email.message
import email.policy
import re
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from llmos.lib.errors import InvalidArgument
from llmos.servers.storage.data.faults import bad_data
from llmos.servers.storage.data.inputs import Input
from llmos.servers.storage.data.readers.base import Context, Parts, batched, with_label

MAX_MAIL = 16 << 20  # bytes
_MAX_PARTS = 1000
_SCHEMA = pa.schema(
    [
        ("text", pa.string()),
        ("label", pa.string()),
        ("subject", pa.string()),
        ("sender", pa.string()),
        ("file", pa.string()),
    ]
)
_HEADER = re.compile(rb"[!-9;-~]{1,100}:[ \t]?[^\r\n]*")
_KNOWN = re.compile(
    rb"(?im)^(received|from|subject|date|to|return-path|message-id|delivered-to|mime-version|"
    rb"x-[a-z-]+):"
)
_FROM = re.compile(rb"From [^\r\n]{3,200} \d{2}:\d{2}")


def is_mbox(head: bytes) -> bool:
    """Return whether a file that begins so is an mbox, or a mail that was cut out of one."""
    first, _, rest = head.partition(b"\n")
    return bool(_FROM.match(first)) and is_mail(rest)


def is_mail(head: bytes) -> bool:
    """Return whether a file begins with mail headers."""
    lines = head.split(b"\n\n")[0].replace(b"\r", b"").split(b"\n")[:20]
    headers = [line for line in lines if not line.startswith((b" ", b"\t"))]
    whole = headers if len(headers) < 20 else headers[:-1]
    sound = sum(bool(_HEADER.fullmatch(line)) for line in whole)
    known = {found[1].lower() for found in _KNOWN.finditer(b"\n".join(whole))}
    return len(known) >= 2 and sound >= 0.8 * len(whole)


def read(files: Sequence[Input], context: Context) -> Parts:
    """Read mails; see Reader."""
    schema = with_label(_SCHEMA, files)
    for split in dict.fromkeys(file.split for file in files):
        for rows in batched(_rows([f for f in files if f.split == split], context)):
            yield split, pa.RecordBatch.from_pylist(rows, schema=schema)


def _rows(files: Sequence[Input], context: Context) -> Iterator[tuple[dict[str, Any], int]]:
    for file in files:
        for number, data in enumerate(_mails(file, context)):
            context.entries += 1
            try:
                yield _row(file, data), len(data)
            except InvalidArgument as exc:
                where = f"mail {number + 1}: " if number else ""
                context.leave_out(InvalidArgument(exc.reason, f"{where}{exc.message}"))


def _mails(file: Input, context: Context) -> Iterator[bytes]:
    """Yield the mails of a file: `From ... TIME` after a blank line begins one (RFC 4155)."""
    waiting: list[bytes] = []
    size, blank = 0, True
    with file.open(context.tick) as raw:
        rest = b""
        while data := raw.read(1 << 20):
            lines = (rest + data).splitlines(keepends=True)
            rest = b""
            if not lines[-1].endswith(b"\n"):
                rest = lines.pop()
            for line in lines:
                if blank and line.startswith(b"From ") and _FROM.match(line):
                    if any(part.strip() for part in waiting):
                        yield b"".join(waiting)
                    waiting, size = [], 0
                else:
                    waiting.append(line)
                    size += len(line)
                blank = not line.strip()
            if size + len(rest) > MAX_MAIL:
                fault = f"a mail of over {MAX_MAIL >> 20} MiB"
                raise bad_data(file.name, fault, "take it out, or its attachments")
        waiting.append(rest)
    yield b"".join(waiting)


def _row(file: Input, data: bytes) -> dict[str, Any]:
    if not data.strip():
        raise bad_data(file.name, "an empty mail", "take it out")
    try:
        message = email.message_from_bytes(data, policy=email.policy.compat32)
        return {
            "text": _body(message),
            "label": file.label or None,
            "subject": _header(message, "Subject"),
            "sender": _header(message, "From"),
            "file": file.name,
        }
    # The email package raises these for some malformed headers.
    except (RecursionError, ValueError, LookupError, TypeError, AttributeError) as exc:
        raise bad_data(file.name, "its structure cannot be read", "take it out") from exc


def _header(message: email.message.Message, name: str) -> str:
    """Return a header as text; what does not decode stays as it is, with marks."""
    value = message.get(name)
    if value is None:
        return ""
    parts = []
    for data, charset in _decoded(value):
        parts.append(_text(data, charset or "ascii") if isinstance(data, bytes) else data)
    return _clean("".join(parts)).strip()


def _decoded(value: Any) -> list[tuple[Any, str | None]]:
    try:
        return list(email.header.decode_header(value))
    except (ValueError, email.errors.HeaderParseError):
        return [(str(value), None)]


def _body(message: email.message.Message) -> str:
    """Return the plain text of a mail; where it has none, its HTML."""
    plain: list[str] = []
    html: list[str] = []
    for count, part in enumerate(message.walk()):
        if count >= _MAX_PARTS:
            raise ValueError("too many parts")
        if part.get_content_maintype() != "text" or part.get_filename():
            continue
        payload = part.get_payload(decode=True)
        if isinstance(payload, bytes):
            found = html if part.get_content_subtype() == "html" else plain
            found.append(_text(payload, part.get_content_charset() or "utf-8"))
    return _clean("\n".join(plain or html))


def _text(data: bytes, charset: str) -> str:
    """Return bytes as text: as the mail says, else UTF-8, else as Latin-1, which takes all."""
    for name in (charset, "utf-8"):
        try:
            return data.decode(name)
        except (LookupError, ValueError):
            continue
    return data.decode("latin-1")


def _clean(text: str) -> str:
    """Return text that can be stored: no NULs, no lone surrogates, one kind of line end."""
    text = text.replace("\0", "").replace("\r\n", "\n")
    return text.encode("utf-8", "replace").decode()
