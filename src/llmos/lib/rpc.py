"""Conversion between `llmos.lib.errors` and gRPC status, both directions, and nowhere else."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Mapping
from typing import Any

import grpc

from llmos.lib import errors, status
from llmos.lib.status import Metadata, from_wire

CODES: dict[int, grpc.StatusCode] = {c.value[0]: c for c in grpc.StatusCode}

# What gRPC itself says, where no server of ours got to say anything.
_OF_GRPC = {
    grpc.StatusCode.DEADLINE_EXCEEDED.value[0]: "No answer came in time; allow more, or try again.",
    grpc.StatusCode.UNAVAILABLE.value[0]: "The connection failed ({}); try again.",
}

log = logging.getLogger(__name__)


def from_exception(exc: BaseException) -> errors.LLMOSError:
    """Return `exc` as an error of ours; one that nobody raised on purpose is logged as a bug."""
    if isinstance(exc, errors.LLMOSError):
        return exc
    if isinstance(exc, grpc.RpcError):
        return from_rpc_error(exc)
    if isinstance(exc, asyncio.CancelledError):
        return errors.Cancelled("CANCELLED", "The call was cancelled.")
    if isinstance(exc, (asyncio.TimeoutError, TimeoutError)):
        return errors.DeadlineExceeded("DEADLINE", "The deadline passed.")
    if isinstance(exc, OSError) and exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return errors.ResourceExhausted(
            "DISK_FULL", f"No room on the disk ({exc.filename or exc}); free some and try again."
        )
    if isinstance(exc, OSError) and exc.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return errors.FailedPrecondition(
            "READ_ONLY", f"Cannot write {exc.filename or ''} ({exc.strerror}); check its rights."
        )
    log.error("unexpected error in a handler", exc_info=exc)
    return errors.Internal("BUG", f"Internal error ({type(exc).__name__}); see the server's log.")


def to_wire(exc: BaseException) -> tuple[int, str, Metadata]:
    """Return (status code, message, trailing metadata) for an exception that ended a call."""
    return status.to_wire(from_exception(exc))


def from_rpc_error(exc: grpc.RpcError) -> errors.LLMOSError:
    """Return the error behind a gRPC exception, sync or aio."""
    call: Any = exc
    code = call.code()
    number = code.value[0] if isinstance(code, grpc.StatusCode) else int(code or 2)
    metadata = call.trailing_metadata() or ()
    items = metadata.items() if isinstance(metadata, Mapping) else metadata
    pairs = [(k, v) for k, v in items]
    details = call.details() or ""
    if number in _OF_GRPC and not any(key == status.DETAILS for key, _ in pairs):
        details = _OF_GRPC[number].format(details.rstrip(".").lower() or "no cause given")
    return from_wire(number, details, pairs)


async def abort(context: Any, exc: BaseException) -> None:
    """End a grpc.aio handler's call with the status of `exc` (raises)."""
    code, message, trailers = to_wire(exc)
    await context.abort(CODES[code], message, tuple(trailers))


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Turns exceptions of handlers into status, for a plain grpc.aio server."""

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """Wrap the handler that would run."""
        handler = await continuation(handler_call_details)
        return None if handler is None else wrap(handler)


def decode(deserialize: Any, message: bytes) -> Any:
    """Return the request. Raises InvalidArgument BAD_MESSAGE when the bytes do not parse."""
    if deserialize is None:
        return message
    try:
        return deserialize(message)
    except Exception as exc:  # whatever a deserializer raises, the bytes are the caller's fault
        raise errors.InvalidArgument(
            "BAD_MESSAGE",
            f"The request does not parse: {str(exc).rstrip('.')}; it must be the method's message, "
            "and its texts UTF-8.",
        ) from exc


def wrap(handler: Any) -> Any:
    """Return an RpcMethodHandler that ends with a proper status whatever its behaviour raises.

    It takes bytes and parses them itself, so that a request that does not parse is the caller's
    INVALID_ARGUMENT and not our UNKNOWN.
    """
    parse = handler.request_deserializer

    def request_of(data: Any) -> Any:
        return _parsed(parse, data) if handler.request_streaming else decode(parse, data)

    if handler.response_streaming:
        inner = handler.stream_stream if handler.request_streaming else handler.unary_stream

        async def stream(data: Any, context: Any) -> Any:
            try:
                async for reply in inner(request_of(data), context):
                    yield reply
            except grpc.aio.AbortError:
                raise
            except Exception as exc:  # the one place where a handler's exceptions become status
                await abort(context, exc)

        make = (
            grpc.stream_stream_rpc_method_handler
            if handler.request_streaming
            else grpc.unary_stream_rpc_method_handler
        )
        return make(stream, None, _serializer(handler.response_serializer))
    unary_inner = handler.stream_unary if handler.request_streaming else handler.unary_unary

    async def unary(data: Any, context: Any) -> Any:
        try:
            return await unary_inner(request_of(data), context)
        except grpc.aio.AbortError:
            raise
        except Exception as exc:  # as above
            await abort(context, exc)

    make_unary = (
        grpc.stream_unary_rpc_method_handler
        if handler.request_streaming
        else grpc.unary_unary_rpc_method_handler
    )
    return make_unary(unary, None, _serializer(handler.response_serializer))


def _serializer(serialize: Any) -> Any:
    """Return a serializer that lets bytes through: a handler may serialize large replies itself."""
    if serialize is None:
        return None
    return lambda reply: reply if isinstance(reply, bytes) else serialize(reply)


async def _parsed(parse: Any, messages: Any) -> Any:
    async for message in messages:
        yield decode(parse, message)
