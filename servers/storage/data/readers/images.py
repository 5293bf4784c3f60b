"""Folders of images: the folder is the label, and the bytes are kept as Pillow could read them."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
from PIL import Image

from llmos.lib.errors import InvalidArgument
from llmos.servers.storage.data.faults import bad_data
from llmos.servers.storage.data.inputs import Input
from llmos.servers.storage.data.readers.base import Context, Parts, batched, with_label

MAX_BYTES = 32 << 20
MAX_PIXELS = 50_000_000
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF")
_MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*")
_SCHEMA = pa.schema(
    [
        ("image", pa.binary()),
        ("label", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("format", pa.string()),
        ("file", pa.string()),
    ]
)


def is_image(head: bytes) -> bool:
    """Return whether a file that begins so is an image."""
    return head.startswith(_MAGIC) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")


def read(files: Sequence[Input], context: Context) -> Parts:
    """Read images; see Reader."""
    schema = with_label(_SCHEMA, files)
    for split in dict.fromkeys(file.split for file in files):
        for rows in batched(_rows([f for f in files if f.split == split], context)):
            yield split, pa.RecordBatch.from_pylist(rows, schema=schema)


def _rows(files: Sequence[Input], context: Context) -> Iterator[tuple[dict[str, Any], int]]:
    for file in files:
        context.entries += 1
        try:
            yield _row(file, context)
        except InvalidArgument as exc:
            context.leave_out(exc)


def _row(file: Input, context: Context) -> tuple[dict[str, Any], int]:
    if file.size > MAX_BYTES:
        raise bad_data(file.name, f"an image of over {MAX_BYTES >> 20} MiB", "make it smaller")
    with file.raw(context.tick) as raw:
        data = raw.read(MAX_BYTES + 1) or b""
    width, height, kind = _look(file.name, data)
    row = {
        "image": data,
        "label": file.label or None,
        "width": width,
        "height": height,
        "format": kind.lower(),
        "file": file.name,
    }
    return row, len(data)


def _look(name: str, data: bytes) -> tuple[int, int, str]:
    """Decode an image; return width, height and format. Raises BAD_DATA_FILE."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own limit warns before ours refuses
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            image.load()
    except Image.DecompressionBombError as exc:
        fault = f"an image of over {MAX_PIXELS // 1_000_000} megapixels"
        raise bad_data(name, fault, "make it smaller") from exc
    # Pillow's decoders raise these for damaged files.
    except (OSError, SyntaxError, ValueError, EOFError) as exc:
        fault = "it is cut or no image that can be read"
        raise bad_data(name, fault, f"give one of {', '.join(FORMATS)}") from exc
    return image.width, image.height, str(image.format)
