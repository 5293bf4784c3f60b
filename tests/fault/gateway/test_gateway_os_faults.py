"""What an HTTP client sees of deaths inside a whole OS: a pause, and nothing else."""

import asyncio
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI
from whole_os import WholeOS

PARAMS: Any = {
    "model": "smollm2",
    "prompt": "The history of the city began when",
    "max_tokens": 24,
    "temperature": 0.8,
    "seed": 5,
}


@pytest.mark.parametrize("name", ["worker/", "kernel", "execution"])
async def test_a_stream_survives(os_up: WholeOS, name: str) -> None:
    url = os_up.gateway() + "/v1"
    async with AsyncOpenAI(base_url=url, api_key="x", max_retries=0) as client:
        whole = (await client.completions.create(**PARAMS)).choices[0].text
        stream = await client.completions.create(**PARAMS, stream=True)
        text, finish, chunks = "", None, 0
        async for chunk in stream:
            text += chunk.choices[0].text
            finish = chunk.choices[0].finish_reason or finish
            chunks += 1
            if chunks == 5:
                old = await asyncio.to_thread(os_up.kill, name)
    assert text == whole
    assert finish == "length"
    await asyncio.to_thread(os_up.wait_new, name, old)


async def test_unready_while_the_kernel_is_gone(os_up: WholeOS) -> None:
    url = os_up.gateway()
    async with httpx.AsyncClient(base_url=url, timeout=30) as client:
        old = os_up.kill("kernel")
        assert (await client.get("/healthz")).status_code == 200
        await asyncio.to_thread(os_up.wait_new, "kernel", old)
        async with asyncio.timeout(20):
            while (await client.get("/readyz")).status_code != 200:
                await asyncio.sleep(0.05)
        assert (await client.get("/v1/models")).status_code == 200
