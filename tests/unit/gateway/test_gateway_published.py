"""The published schemas say what the checks do."""

import json
from typing import Any

import pytest

from llmos.api.optimizer.v1 import jobs_pb2
from llmos.lib.errors import InvalidArgument
from llmos.lib.values import as_value
from llmos.servers.gateway import openapi
from llmos.servers.gateway.schema import ChatBody, CompletionBody, EmbeddingBody, parse

jsonschema_rs = pytest.importorskip("jsonschema_rs", reason="comes with schemathesis")
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
DATA = {"url": "data:image/png;base64,AAAA"}
PARTS = [{"type": "image_url", "image_url": DATA}]


def allows(name: str, value: Any) -> bool:
    components = {"components": openapi.document()["components"]}
    schema = {"$ref": f"#/components/schemas/{name}", **components}
    return bool(jsonschema_rs.validator_for(schema).is_valid(value))


@pytest.mark.parametrize(
    ("cls", "body", "taken"),
    [
        (ChatBody, CHAT, True),
        (ChatBody, {**CHAT, "user": "ann", "store": False, "n": 2, "stop": "x"}, True),
        (ChatBody, {**CHAT, "messages": [{"role": "user", "content": PARTS}]}, True),
        (ChatBody, {**CHAT, "messages": [{"role": "robot", "content": "x"}]}, False),
        (ChatBody, {**CHAT, "messages": [{"role": "user", "content": "x", "nom": 1}]}, False),
        (ChatBody, {**CHAT, "store": True}, False),
        (ChatBody, {**CHAT, "n": 17}, False),
        (ChatBody, {**CHAT, "none_such": 1}, False),
        (CompletionBody, {"model": "m", "prompt": [[1, 2], [3]]}, True),
        (CompletionBody, {"model": "m", "prompt": [1, 2]}, True),
        (CompletionBody, {"model": "m", "prompt": []}, False),
        (CompletionBody, {"model": "m", "prompt": [1, "a"]}, False),
        (EmbeddingBody, {"model": "m", "input": "a"}, True),
        (EmbeddingBody, {"model": "m", "input": ["a"] * 2049}, False),
    ],
)
def test_what_is_published_is_what_is_taken(cls: Any, body: Any, taken: bool) -> None:
    assert allows(cls.__name__, body) == taken
    if taken:
        assert parse(cls, json.dumps(body).encode())
    else:
        with pytest.raises(InvalidArgument):
            parse(cls, json.dumps(body).encode())


def test_messages_are_published_as_they_are_read_and_written() -> None:
    spec = {"fine_tune": {"model": "m", "lora": {"merge": True}}}
    asked = {"spec": spec, "request_id": "one"}
    assert allows("llmos.api.optimizer.v1.SubmitJobRequest", asked)
    assert not allows("llmos.api.optimizer.v1.SubmitJobRequest", {"spec": {"none_such": {}}})
    job = jobs_pb2.Job(id="one", state=jobs_pb2.JOB_STATE_RUNNING)
    job.spec.fine_tune.lora.merge = True
    assert allows("llmos.api.optimizer.v1.Job.answer", as_value(job))
