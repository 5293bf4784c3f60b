"""What gRPC metadata means to the kernel: the keys `llmos-*` steer a call."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from llmos.api.kernel.v1 import port_pb2 as pb
from llmos.lib.errors import InvalidArgument
from llmos.lib.status import metadata_to_wire

CLASSES = {
    "system": pb.CALL_CLASS_SYSTEM,
    "interactive": pb.CALL_CLASS_INTERACTIVE,
    "normal": pb.CALL_CLASS_NORMAL,
    "batch": pb.CALL_CLASS_BATCH,
}
MAX_METADATA = 64 << 10


def apply_metadata(opened: pb.Open, metadata: Iterable[tuple[str, Any]]) -> None:
    """Put gRPC metadata into an OPEN; the keys `llmos-*` steer it.

    Raises InvalidArgument BAD_CLASS, METADATA_TOO_LARGE.
    """
    size = 0
    for key, value in metadata:
        text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
        size += len(key) + len(text)
        if key == "llmos-class":
            if text not in CLASSES:
                raise InvalidArgument(
                    "BAD_CLASS", f"llmos-class is {text!r}; it must be one of {', '.join(CLASSES)}."
                )
            opened.call_class = CLASSES[text]
        elif key == "llmos-key":
            opened.key = text
        elif key == "llmos-tenant":
            opened.tenant = text
        elif key == "llmos-affinity":
            opened.affinity = text
        elif key == "llmos-request-id":
            opened.request_id = text
        else:
            opened.metadata.extend(metadata_to_wire([(key, value)]))
    if size > MAX_METADATA:
        raise InvalidArgument(
            "METADATA_TOO_LARGE",
            f"The call's metadata has {size} bytes; at most {MAX_METADATA} are allowed.",
        )
