"""Tensors of the Open Inference Protocol: both encodings, and what is refused."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest

from llmos.api.inference import open_inference_pb2 as pb
from llmos.lib.errors import InvalidArgument
from llmos.servers.execution.engine.base import SequenceCall, TensorSpec
from llmos.servers.execution.oip import parameters, tensors

ARRAYS: dict[str, Any] = {
    "BOOL": np.array([[True, False, True]]),
    "INT8": np.array([[-128, 0, 127]], np.int8),
    "INT16": np.array([[-(2**15), 0, 2**15 - 1]], np.int16),
    "INT32": np.array([[-(2**31), 0, 2**31 - 1]], np.int32),
    "INT64": np.array([[-(2**63), 0, 2**63 - 1]], np.int64),
    "UINT8": np.array([[0, 1, 255]], np.uint8),
    "UINT16": np.array([[0, 1, 2**16 - 1]], np.uint16),
    "UINT32": np.array([[0, 1, 2**32 - 1]], np.uint32),
    "UINT64": np.array([[0, 1, 2**64 - 1]], np.uint64),
    "FP16": np.array([[0.5, -1, np.inf]], np.float16),
    "BF16": np.array([[0.5, -1, np.inf]], np.float32),
    "FP32": np.array([[0.1, -1, np.nan]], np.float32),
    "FP64": np.array([[0.1, -1, np.nan]], np.float64),
    "BYTES": np.array([[b"", b"\xff\x00", "ä".encode()]], object),
}


def request(datatype: str, shape: list[int], raw: bytes | None = None, **contents: Any) -> Any:
    made = pb.ModelInferRequest()
    tensor = made.inputs.add(name="x", datatype=datatype, shape=shape)
    if raw is not None:
        made.raw_input_contents.append(raw)
    if contents:
        tensor.contents.CopyFrom(pb.InferTensorContents(**contents))
    return made


@pytest.mark.parametrize("datatype", ARRAYS)
def test_raw_there_and_back(datatype: str) -> None:
    array = ARRAYS[datatype]
    raw = tensors.encode(array, tensors.DATATYPES[datatype])
    back = tensors.decode(request(datatype, [1, 3], raw), {})["x"]
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


@pytest.mark.parametrize("datatype", [d for d in ARRAYS if d not in ("FP16", "BF16")])
def test_typed_contents(datatype: str) -> None:
    array = ARRAYS[datatype]
    contents = {tensors._CONTENTS[datatype]: array.reshape(-1).tolist()}
    back = tensors.decode(request(datatype, [1, 3], **contents), {})["x"]
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


def test_bytes_have_their_length_before_them() -> None:
    raw = tensors.encode(np.array(["ab", b"c"], object), "object")
    assert raw == struct.pack("<I2sI1s", 2, b"ab", 1, b"c")


def test_strings_are_decoded_where_the_model_takes_strings() -> None:
    specs = {"x": TensorSpec("x", "object", [-1])}
    given = request("BYTES", [1], bytes_contents=["ä".encode()])
    assert tensors.decode(given, specs)["x"].tolist() == ["ä"]
    with pytest.raises(InvalidArgument, match="not UTF-8"):
        tensors.decode(request("BYTES", [1], bytes_contents=[b"\xff"]), specs)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (request("FP8", [1], b"a"), "'FP8'; it must be one of BOOL"),
        (request("FP32", [2], b"1234"), r"1 elements; its shape \[2\] needs 2"),
        (request("FP32", [1], b"12345"), "5 bytes; elements of FP32 have 4"),
        (request("FP32", [-1, -1], b"1234"), "sizes are 0 or more"),
        (request("FP32", [2**62, 2**62], b"1234"), "needs 2126764793255865"),
        (request("FP32", [1], b"1234", fp32_contents=[1]), "beside raw_input_contents"),
        (request("FP32", [1], fp64_contents=[1]), "elements of FP32 are in fp32_contents"),
        (request("FP16", [1], fp32_contents=[1]), "FP16 goes in raw_input_contents only"),
        (request("INT8", [1], int_contents=[128]), "does not fit INT8"),
        (request("UINT16", [1], uint_contents=[1 << 16]), "does not fit UINT16"),
        (request("BYTES", [1], b"\x05\x00\x00\x00ab"), "ends within an element"),
        (request("BYTES", [1], b"\x05\x00"), "ends within an element"),
        (request("INT64", [1], b"12345678"), r"INT64; expected FP32 of shape \[-1, 2\]"),
    ],
)
def test_bad_tensors(given: Any, says: str) -> None:
    wants_fp32 = {"x": TensorSpec("x", "float32", [-1, 2])} if "expected FP32" in says else {}
    with pytest.raises(InvalidArgument, match=says) as caught:
        tensors.decode(given, wants_fp32)
    assert caught.value.reason == "BAD_TENSOR" and "'x'" in caught.value.message


def test_counts_and_names_must_agree() -> None:
    given = request("FP32", [1], b"1234")
    given.raw_input_contents.append(b"5678")
    with pytest.raises(InvalidArgument, match="2 entries for 1 inputs"):
        tensors.decode(given, {})
    given.inputs.add(name="x", datatype="FP32", shape=[1])
    with pytest.raises(InvalidArgument, match="comes twice"):
        tensors.decode(given, {})


def test_parameters() -> None:
    given = request("FP32", [1], b"1234")
    assert parameters.read(given).timeout_s is None
    given.parameters["timeout"].int64_param = 1_500_000
    given.parameters["priority"].uint64_param = 3
    assert parameters.read(given).timeout_s == 1.5
    assert parameters.read(given).sequence is None
    given.parameters["sequence_id"].int64_param = 7
    given.parameters["sequence_start"].bool_param = True
    assert parameters.read(given).sequence == SequenceCall(7, start=True)
    given.parameters["sequence_id"].string_param = "seven"
    named = parameters.read(given).sequence
    assert named is not None and named.id > 7 and named == parameters.read(given).sequence
    given.parameters["sequence_id"].int64_param = 0
    with pytest.raises(InvalidArgument, match="sequence_start"):
        parameters.read(given)
    given.parameters["sequence_start"].bool_param = False
    given.parameters["dance"].bool_param = True
    with pytest.raises(InvalidArgument, match="'dance' is not known") as caught:
        parameters.read(given)
    assert caught.value.reason == "BAD_PARAMETER"


def test_parameters_of_tensors() -> None:
    given = request("FP32", [1], b"1234")
    wanted = given.outputs.add(name="y")
    wanted.parameters["classification"].int64_param = 3
    parameters.check_tensors(given)
    assert parameters.classification("y", wanted.parameters) == 3
    assert parameters.place("y", wanted.parameters) is None
    wanted.parameters["shared_memory_region"].string_param = "r"
    wanted.parameters["shared_memory_byte_size"].int64_param = 64
    assert parameters.place("y", wanted.parameters) == parameters.Place("r", 64, 0)
    wanted.parameters["shared_memory_offset"].int64_param = -1
    with pytest.raises(InvalidArgument, match="'y' needs shared_memory_region"):
        parameters.place("y", wanted.parameters)
    wanted.parameters["classification"].int64_param = 0
    with pytest.raises(InvalidArgument, match="give 1 or more"):
        parameters.classification("y", wanted.parameters)
    given.inputs[0].parameters["classification"].int64_param = 3
    with pytest.raises(InvalidArgument, match="'x' has parameter 'classification'"):
        parameters.check_tensors(given)


@pytest.mark.parametrize("value", [-1, True, "soon"])
def test_bad_timeouts(value: Any) -> None:
    given = pb.ModelInferRequest()
    kind = {int: "int64_param", bool: "bool_param", str: "string_param"}[type(value)]
    setattr(given.parameters["timeout"], kind, value)
    with pytest.raises(InvalidArgument, match="microseconds"):
        parameters.read(given)
