"""Errors of ours as wire status and back; without grpc, so that the kernel's core can use it."""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from llmos.api.kernel.v1 import port_pb2 as pb
from llmos.lib import errors

Metadata = list[tuple[str, str | bytes]]

DETAILS = "grpc-status-details-bin"
RETRY_AFTER_MS = "retry-after-ms"
_RETRY_DIGITS = 12  # thirty years; a foreign server may send anything


def to_wire(err: errors.LLMOSError) -> tuple[int, str, Metadata]:
    """Return (status code, message, trailing metadata) of an error."""
    status = status_pb2.Status(code=err.code, message=err.message)
    info = error_details_pb2.ErrorInfo(
        reason=err.reason, domain=errors.DOMAIN, metadata=err.details
    )
    packed = any_pb2.Any()
    packed.Pack(info)
    status.details.append(packed)
    trailers: Metadata = []
    if err.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(round(err.retry_after_s * 1000))
        packed = any_pb2.Any()
        packed.Pack(error_details_pb2.RetryInfo(retry_delay=delay))
        status.details.append(packed)
        trailers.append((RETRY_AFTER_MS, str(round(err.retry_after_s * 1000))))
    trailers.insert(0, (DETAILS, status.SerializeToString()))
    return err.code, err.message, trailers


def from_wire(
    code: int, message: str, trailers: Iterable[tuple[str, str | bytes]]
) -> errors.LLMOSError:
    """Return the error that a status with its trailing metadata stands for."""
    cls = errors.BY_CODE.get(code, errors.Unknown)
    reason, details, retry = errors.NAMES.get(code, "UNKNOWN"), dict[str, str](), None
    for key, value in trailers:
        if key == DETAILS and isinstance(value, bytes):
            reason, details = _reason(value) or (reason, details)
        elif key == RETRY_AFTER_MS:
            text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
            if text.isascii() and text.isdigit() and len(text) <= _RETRY_DIGITS:
                retry = int(text) / 1000
    return cls(reason, message, retry_after_s=retry, details=details)


def _reason(packed: bytes) -> tuple[str, dict[str, str]] | None:
    info = error_details_pb2.ErrorInfo()
    try:
        for detail in status_pb2.Status.FromString(packed).details:
            if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR) and detail.Unpack(info):
                return info.reason, dict(info.metadata)
    except DecodeError:  # a foreign server may send anything here; code and message still stand
        return None
    return None


def make_status(err: errors.LLMOSError) -> pb.Status:
    """Return an error as the wire's Status."""
    code, message, trailers = to_wire(err)
    return pb.Status(code=code, message=message, trailers=metadata_to_wire(trailers))


def metadata_to_wire(items: object) -> list[pb.Metadatum]:
    """Return gRPC metadata (pairs) as the wire's."""
    return [
        pb.Metadatum(key=k, value=v.encode() if isinstance(v, str) else v)
        for k, v in items  # type: ignore[attr-defined]
    ]
