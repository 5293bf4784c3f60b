"""Files, batches and fine-tuning jobs by the `openai` client, on a whole OS."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from whole_os import WholeOS

MODEL = "smollm2"


@pytest.fixture
def client(os_up: WholeOS) -> Iterator[OpenAI]:
    with OpenAI(base_url=os_up.gateway() + "/v1", api_key="x", max_retries=0) as client:
        yield client


def until(condition: Callable[[], bool], timeout_s: float = 90) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_files_life(client: OpenAI) -> None:
    content = bytes(range(256)) * 9000  # several documents
    file = client.files.create(file=("a b.bin", content), purpose="user_data")
    assert (file.bytes, file.filename) == (len(content), "a b.bin")
    assert client.files.content(file.id).read() == content
    assert file.id in [f.id for f in client.files.list(purpose="user_data")]
    assert file.id not in [f.id for f in client.files.list(purpose="batch")]
    assert client.files.retrieve(file.id).purpose == "user_data"
    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.content(file.id)


def line(number: int, **body: Any) -> str:
    request = {"model": MODEL, "prompt": f"{number} and", "max_tokens": 3, "seed": number, **body}
    url = "/v1/completions"
    return json.dumps({"custom_id": f"r{number}", "method": "POST", "url": url, "body": request})


def test_a_batch(client: OpenAI) -> None:
    lines = [*(line(i) for i in range(6)), line(6, model="nope"), ""]
    file = client.files.create(file=("in.jsonl", "\n".join(lines).encode()), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/completions", completion_window="24h"
    )
    until(lambda: client.batches.retrieve(batch.id).status == "completed")
    done = client.batches.retrieve(batch.id)
    counts = done.request_counts
    assert counts is not None
    assert (counts.total, counts.completed, counts.failed) == (7, 6, 1)
    assert done.output_file_id and done.error_file_id
    answers = [json.loads(row) for row in client.files.content(done.output_file_id).iter_lines()]
    assert [a["custom_id"] for a in answers] == [f"r{i}" for i in range(6)]
    assert all(a["response"]["body"]["choices"][0]["text"] for a in answers)
    (error,) = [json.loads(row) for row in client.files.content(done.error_file_id).iter_lines()]
    assert error["response"]["status_code"] == 404
    assert error["error"]["code"] == "model_not_found"
    assert batch.id in [b.id for b in client.batches.list()]


@pytest.mark.parametrize(
    "text", ["", "oops", line(1) + "\n" + line(1), line(1, stream=True), '{"custom_id": "a"}']
)
def test_bad_batches_are_refused_at_once(client: OpenAI, text: str) -> None:
    file = client.files.create(file=("in.jsonl", text.encode()), purpose="batch")
    with pytest.raises(openai.BadRequestError) as caught:
        client.batches.create(
            input_file_id=file.id, endpoint="/v1/completions", completion_window="24h"
        )
    assert caught.value.code == "bad_batch"


def test_a_batch_is_cancelled(client: OpenAI) -> None:
    lines = [line(i, max_tokens=400) for i in range(60)]
    file = client.files.create(file=("in.jsonl", "\n".join(lines).encode()), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/completions", completion_window="24h"
    )
    assert client.batches.cancel(batch.id).status == "cancelling"
    until(lambda: client.batches.retrieve(batch.id).status == "cancelled")
    counts = client.batches.retrieve(batch.id).request_counts
    assert counts is not None
    assert counts.completed < 60


def test_a_fine_tuning_job_is_the_optimizers(client: OpenAI, os_up: WholeOS) -> None:
    said = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "LLM OS"}]
    rows = [json.dumps({"messages": said})] * 4
    file = client.files.create(file=("t.jsonl", "\n".join(rows).encode()), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(
        model=MODEL, training_file=file.id, suffix="mine", hyperparameters={"n_epochs": 1}
    )
    try:
        assert job.status in ("queued", "running")
        assert job.training_file == file.id
        assert job.id in [j.id for j in client.fine_tuning.jobs.list()]
        jobs = httpx.get(os_up.gateway() + "/llmos/v1/jobs", timeout=30).json()["jobs"]
        assert job.id in [j["id"] for j in jobs]
        assert client.fine_tuning.jobs.list_events(job.id).data[0].message
    finally:
        client.fine_tuning.jobs.cancel(job.id)
    until(lambda: client.fine_tuning.jobs.retrieve(job.id).status == "cancelled")
    bad = client.files.create(file=("t.jsonl", b"oops"), purpose="fine-tune")
    with pytest.raises(openai.BadRequestError) as caught:
        client.fine_tuning.jobs.create(model=MODEL, training_file=bad.id)
    assert caught.value.code == "bad_training_file"
    with pytest.raises(openai.NotFoundError):
        client.fine_tuning.jobs.retrieve("nope")
