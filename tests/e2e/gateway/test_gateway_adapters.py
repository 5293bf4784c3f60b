"""A LoRA adapter asked for by its own name, as OpenAI's clients of vLLM do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from model_files import random_adapter
from openai import BadRequestError, NotFoundError, OpenAI
from whole_os import WholeOS


def test_an_adapter_is_asked_for_as_a_model(os_up: WholeOS, tmp_path: Path) -> None:
    os_up.ok("model", "import", random_adapter(tmp_path / "pirate"), "--name", "pirate")
    params: Any = {"prompt": "Once upon a time", "temperature": 0, "max_tokens": 12}
    try:
        with OpenAI(base_url=os_up.gateway() + "/v1", api_key="x", max_retries=0) as client:
            with pytest.raises(BadRequestError, match="pirate@1 is a LoRA adapter"):
                client.completions.create(model="pirate", **params)
            os_up.ok("model", "tag", "pirate@1", "base=smollm2")
            plain = client.completions.create(model="smollm2", **params)
            for name in ("pirate", "pirate@1", "pirate"):  # the last one from what is known
                adapted = client.completions.create(model=name, **params)
                assert adapted.model == name
                assert adapted.choices[0].text != plain.choices[0].text
            streamed = client.completions.create(model="pirate", stream=True, **params)
            assert "".join(c.choices[0].text for c in streamed) == adapted.choices[0].text
            listed = {m.id: m.model_dump() for m in client.models.list()}
            assert listed["pirate"]["parent"] == "smollm2" and "parent" not in listed["smollm2"]
            with pytest.raises(NotFoundError):
                client.completions.create(model="nobody", **params)
    finally:
        os_up.ok("model", "rm", "pirate@1")
