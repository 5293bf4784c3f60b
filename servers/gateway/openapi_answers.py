"""JSON schemas of the answers of OpenAI's API and of the Open Inference Protocol, by name."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]
TEXT: Json = {"type": "string"}
WHOLE: Json = {"type": "integer"}
NUMBER: Json = {"type": "number"}
YES_NO: Json = {"type": "boolean"}


def const(value: str) -> Json:
    """Return the schema of one word."""
    return {"type": "string", "const": value}


def some(schema: Json) -> Json:
    """Return the schema of a list."""
    return {"type": "array", "items": schema}


def maybe(schema: Json) -> Json:
    """Return the schema of a value that may be null."""
    return {"anyOf": [schema, {"type": "null"}]}


def shaped(**members: Json) -> Json:
    """Return the schema of an object that has these members, and perhaps others."""
    return {"type": "object", "required": list(members), "properties": members}


def ref(name: str) -> Json:
    """Return a reference to a schema."""
    return {"$ref": f"#/components/schemas/{name}"}


def listed(name: str) -> Json:
    """Return the schema of a list object of OpenAI's API."""
    return shaped(object=const("list"), data=some(ref(name)))


_USAGE = shaped(prompt_tokens=WHOLE, completion_tokens=WHOLE, total_tokens=WHOLE)
_FINISH = {"type": "string", "enum": ["stop", "length", "tool_calls"]}
_MESSAGE = shaped(role=const("assistant"), content=maybe(TEXT))
_LIKELY: Json = {"type": ["object", "null"]}
_CALL = shaped(id=TEXT, type=const("function"), function=shaped(name=TEXT, arguments=TEXT))
_MESSAGE["properties"]["tool_calls"] = some(_CALL)
_TENSOR = shaped(name=TEXT, datatype=TEXT, shape=some(WHOLE))

ANSWERS: Json = {
    "Error": shaped(
        error=shaped(message=TEXT, type=TEXT, param=maybe(TEXT), code=TEXT),
    ),
    "InferenceError": shaped(error=TEXT),
    "Model": shaped(id=TEXT, object=const("model"), created=WHOLE, owned_by=TEXT),
    "ModelList": listed("Model"),
    "ChatCompletion": shaped(
        id=TEXT,
        object=const("chat.completion"),
        created=WHOLE,
        model=TEXT,
        choices=some(
            shaped(index=WHOLE, message=_MESSAGE, logprobs=_LIKELY, finish_reason=_FINISH)
        ),
        usage=_USAGE,
    ),
    "Completion": shaped(
        id=TEXT,
        object=const("text_completion"),
        created=WHOLE,
        model=TEXT,
        choices=some(shaped(index=WHOLE, text=TEXT, logprobs=_LIKELY, finish_reason=_FINISH)),
        usage=_USAGE,
    ),
    "Embeddings": shaped(
        object=const("list"),
        data=some(
            shaped(
                object=const("embedding"),
                index=WHOLE,
                embedding={"anyOf": [some(NUMBER), TEXT]},
            )
        ),
        model=TEXT,
        usage=shaped(prompt_tokens=WHOLE, total_tokens=WHOLE),
    ),
    "Transcription": shaped(text=TEXT),
    "File": shaped(
        id=TEXT,
        object=const("file"),
        bytes=WHOLE,
        created_at=WHOLE,
        filename=TEXT,
        purpose=TEXT,
        status=TEXT,
    ),
    "FileList": listed("File"),
    "Deleted": shaped(id=TEXT, object=TEXT, deleted=YES_NO),
    "Batch": shaped(
        id=TEXT,
        object=const("batch"),
        endpoint=TEXT,
        input_file_id=TEXT,
        completion_window=TEXT,
        status=TEXT,
        output_file_id=maybe(TEXT),
        error_file_id=maybe(TEXT),
        created_at=WHOLE,
        request_counts=shaped(total=WHOLE, completed=WHOLE, failed=WHOLE),
    ),
    "BatchList": listed("Batch"),
    "Job": shaped(
        id=TEXT,
        object=const("fine_tuning.job"),
        created_at=WHOLE,
        finished_at=maybe(WHOLE),
        model=TEXT,
        fine_tuned_model=maybe(TEXT),
        status=TEXT,
        training_file=TEXT,
    ),
    "JobList": listed("Job"),
    "JobEvent": shaped(
        id=TEXT, object=const("fine_tuning.job.event"), created_at=WHOLE, level=TEXT, message=TEXT
    ),
    "JobEventList": listed("JobEvent"),
    "ServerMetadata": shaped(name=TEXT, version=TEXT, extensions=some(TEXT)),
    "ModelMetadata": shaped(
        name=TEXT, versions=some(TEXT), platform=TEXT, inputs=some(_TENSOR), outputs=some(_TENSOR)
    ),
    "ModelConfig": shaped(name=TEXT, input=some({"type": "object"})),
    "ModelStats": shaped(model_stats=some({"type": "object"})),
    "Inference": shaped(model_name=TEXT, model_version=TEXT, outputs=some(_TENSOR)),
    "RepositoryIndex": some(shaped(name=TEXT, version=TEXT, state=TEXT)),
    "Regions": some(shaped(name=TEXT, key=TEXT, byte_size=WHOLE)),
    "Status": shaped(status=TEXT),
    "About": shaped(name=TEXT, version=TEXT),
    "Endpoints": shaped(endpoints=some(shaped(path=TEXT, rpc=TEXT))),
    "System": shaped(errors={"type": "object"}),
}
