"""Shows metrics a second time by the names of vLLM, where they mean the same.

So dashboards, autoscalers and the Gateway API Inference Extension that read vLLM's read ours.
Triton's names are made from what models say of themselves; see `model_metrics`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.registry import Collector


class _Alias(NamedTuple):
    family: str  # of ours
    name: str  # of vLLM's
    kind: str = ""  # only samples with this `kind`


_ALIASES = (
    _Alias("llmos_gateway_time_to_first_token_seconds", "vllm:time_to_first_token_seconds"),
    _Alias("llmos_gateway_time_per_output_token_seconds", "vllm:time_per_output_token_seconds"),
    _Alias("llmos_gateway_generation_seconds", "vllm:e2e_request_latency_seconds"),
    _Alias("llmos_gateway_queue_seconds", "vllm:request_queue_time_seconds"),
    _Alias("llmos_gateway_prefill_seconds", "vllm:request_prefill_time_seconds"),
    _Alias("llmos_gateway_decode_seconds", "vllm:request_decode_time_seconds"),
    _Alias("llmos_gateway_tokens", "vllm:prompt_tokens", "prompt"),
    _Alias("llmos_gateway_tokens", "vllm:generation_tokens", "completion"),
    _Alias("llmos_gateway_tokens", "vllm:prefix_cache_hits", "cached"),
    _Alias("llmos_gateway_tokens", "vllm:prefix_cache_queries", "prompt"),
    _Alias("llmos_gateway_generations", "vllm:request_success"),
    _Alias("llmos_gateway_generations_running", "vllm:num_requests_running"),
)
_LABELS = {"model": "model_name", "reason": "finished_reason"}


class Aliases(Collector):
    """Collects what a registry has, and those of it that have another name once more."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Read `registry`."""
        self._registry = registry

    def collect(self) -> Iterable[Metric]:
        """Return all metrics."""
        found = {metric.name: metric for metric in self._registry.collect()}
        yield from found.values()
        for alias in _ALIASES:
            if (ours := found.get(alias.family)) is not None:
                yield _renamed(ours, alias)

    def describe(self) -> Iterable[Metric]:
        """Return nothing: names are not checked against others."""
        return ()


def _renamed(ours: Metric, alias: _Alias) -> Metric:
    metric = Metric(alias.name, f"As {ours.name}", ours.type)
    for sample in ours.samples:
        if alias.kind and sample.labels.get("kind") != alias.kind:
            continue
        labels = {_LABELS.get(k, k): v for k, v in sample.labels.items() if k != "kind"}
        name = alias.name + sample.name.removeprefix(ours.name)
        metric.add_sample(name, labels, sample.value, sample.timestamp, sample.exemplar)
    return metric
