"""Images and sounds: the parts of chats and forms that carry them, and the models that read them.

Such a model (reading text, transcribing, naming) takes bytes and says text: its tensors are asked
for by the Open Inference Protocol's ModelMetadata, and it is run by the protocol's ModelInfer.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import AsyncGenerator
from typing import Any, NamedTuple

import grpc
from pydantic_core import PydanticCustomError

from llmos.api.execution.v1 import execution_pb2 as pb
from llmos.api.inference import open_inference_pb2 as oip
from llmos.api.inference import open_inference_pb2_grpc
from llmos.lib.errors import FailedPrecondition, InvalidArgument
from llmos.lib.rpc import from_rpc_error
from llmos.servers.gateway.backend import Call

_DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,")
_LOOK_S = 120.0  # the first look loads the model
_SAYS = ("text", "label")  # outputs that are an answer in words, best first


class Medium(NamedTuple):
    """An image or a sound in its file format."""

    kind: str
    data: bytes


class Content(str):
    """The text of a chat message with the media beside it."""

    media: tuple[Medium, ...] = ()


def medium_of(part: dict[str, Any]) -> Medium:
    """Return what an `image_url` or `input_audio` part carries; for use in a validator."""
    if part.get("type") == "image_url":
        asked = part.get("image_url")
        url = asked.get("url") if isinstance(asked, dict) else asked
        found = _DATA_URL.match(url) if isinstance(url, str) else None
        if found is None:
            raise PydanticCustomError(
                "unsupported_value",
                "has an image that is no `data:image/...;base64,` URL; nothing is fetched here, so "
                "send the image itself",
            )
        return Medium("image", _decoded(str(url)[found.end() :]))
    asked = part.get("input_audio")
    data = asked.get("data") if isinstance(asked, dict) else None
    if not isinstance(data, str):
        raise PydanticCustomError("invalid_type", "has an `input_audio` part without `data`")
    return Medium("sound", _decoded(data))


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise PydanticCustomError(
            "invalid_value", "has an image or sound that is no base64"
        ) from None


class Reader:
    """A backend of one generation: what the model reads in a medium. Raises LLMOSError."""

    def __init__(self, channel: grpc.aio.Channel, medium: Medium, param: str = "messages") -> None:
        """Ask on `channel`. param: of the request, where the medium stands."""
        self._medium, self._param = medium, param
        self._stub: Any = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)

    async def generate(
        self, request: pb.GenerateRequest, call: Call
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        """Yield the text in one piece.

        Raises FailedPrecondition WRONG_TASK for a model that does not turn bytes into text.
        """
        name, _, version = request.model.partition("@")
        look = oip.ModelMetadataRequest(name=name, version=version)
        metadata = (*call.metadata, ("llmos-key", request.model))
        try:
            about = await self._stub.ModelMetadata(
                look, timeout=min(call.timeout_s, _LOOK_S), metadata=metadata
            )
            outputs = {t.name for t in about.outputs if t.datatype == "BYTES"}
            says = next((output for output in _SAYS if output in outputs), None)
            takes = about.inputs[0] if len(about.inputs) == 1 else None
            if takes is None or takes.datatype != "BYTES" or says is None:
                raise self._unfit(request.model)
            if takes.name.startswith("text"):
                raise self._unfit(request.model)
            asked = oip.ModelInferRequest(model_name=name, model_version=version)
            asked.inputs.add(name=takes.name, datatype="BYTES", shape=[1] * len(takes.shape))
            asked.inputs[0].contents.bytes_contents.append(self._medium.data)
            asked.outputs.add(name=says)
            reply = await self._stub.ModelInfer(asked, timeout=call.timeout_s, metadata=metadata)
        except grpc.RpcError as exc:
            error = from_rpc_error(exc)
            if error.reason == "BAD_INPUT":
                raise InvalidArgument(
                    "BAD_INPUT", error.message, details={"param": self._param}
                ) from None
            raise error from None
        found = strings(reply)
        text = found[0] if says == "label" and found else "\n".join(found)
        yield pb.GenerateResponse(
            text=text, model=f"{name}@{reply.model_version}", finish_reason=pb.FINISH_REASON_STOP
        )

    def _unfit(self, model: str) -> FailedPrecondition:
        return FailedPrecondition(
            "WRONG_TASK",
            f"{model} does not turn {self._medium.kind}s into words; ask a model that reads, "
            "transcribes or names what it is given (docs/models.md), or send text.",
        )


def strings(reply: oip.ModelInferResponse) -> list[str]:
    """Return the strings of a reply's first output."""
    if not reply.raw_output_contents:
        return [text.decode() for text in reply.outputs[0].contents.bytes_contents]
    found, data = [], memoryview(reply.raw_output_contents[0])
    while data:
        size = int.from_bytes(data[:4], "little")
        found.append(bytes(data[4 : 4 + size]).decode())
        data = data[4 + size :]
    return found
