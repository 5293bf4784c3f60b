"""Messages as JSON values and back."""

from __future__ import annotations

import pytest

from llmos.api.execution.v1 import execution_pb2, predict_pb2
from llmos.api.kernel.v1 import admin_pb2
from llmos.api.optimizer.v1 import jobs_pb2
from llmos.api.storage.v1 import registry_pb2
from llmos.lib.errors import InvalidArgument
from llmos.lib.values import as_value, from_text, from_value


def test_numbers_that_json_lacks_are_null() -> None:
    metric = registry_pb2.Metric(name="loss", value=float("nan"))
    assert as_value(metric) == {"name": "loss", "value": None, "unit": ""}


def test_from_value_reads_numbers_nested_messages_and_base64() -> None:
    limits = from_value(
        admin_pb2.UpdateLimitsRequest, {"tenants": [{"tenant": "a", "weight": 2.5, "max_calls": 3}]}
    )
    assert as_value(limits)["tenants"][0]["weight"] == 2.5
    classify = from_value(predict_pb2.ClassifyRequest, {"items": [{"file": "AAEC"}]})
    assert classify.items[0].file == b"\x00\x01\x02"


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"modle": "x"}, "modle"),
        ({"model": 7}, "model"),
        ({"pin": "perhaps"}, "pin"),
    ],
)
def test_from_value_names_what_is_wrong(members: dict[str, object], said: str) -> None:
    with pytest.raises(InvalidArgument, match=said) as caught:
        from_value(execution_pb2.LoadModelRequest, members)
    assert caught.value.reason == "BAD_FIELD"
    assert "\n" not in caught.value.message and "LoadModelRequest has: model" in str(caught.value)


def test_from_text_takes_enums_booleans_numbers_and_lists() -> None:
    request = from_text(
        registry_pb2.ListVersionsRequest, {"task": ["embed"], "page_size": ["7"], "name": ["x"]}
    )
    assert (request.task, request.page_size) == (registry_pb2.TASK_EMBED, 7)
    lineage = from_text(registry_pb2.GetLineageRequest, {"ref": ["m"], "descendants": ["True"]})
    assert lineage.descendants
    blobs = from_text(registry_pb2.StatBlobsRequest, {"sha256": ["a", "b"]})
    assert list(blobs.sha256) == ["a", "b"]


@pytest.mark.parametrize("pairs", [{"nope": ["1"]}, {"state": ["x"]}, {"progress": ["much"]}])
def test_from_text_refuses(pairs: dict[str, list[str]]) -> None:
    with pytest.raises(InvalidArgument) as caught:
        from_text(jobs_pb2.Job, pairs)
    assert caught.value.reason == "BAD_FIELD"
