"""What models and the kernel's queues say of themselves, by Triton's and vLLM's metric names.

Asked at every scrape; who does not answer in time is left out.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

import grpc
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import CollectorRegistry

from llmos.api.inference import open_inference_pb2 as oip
from llmos.api.inference import open_inference_pb2_grpc
from llmos.api.kernel.v1 import admin_pb2, admin_pb2_grpc
from llmos.lib.errors import LLMOSError
from llmos.lib.rpc import from_rpc_error
from llmos.servers.gateway.counts import Given

_TIMEOUT_S = 1.0
_EXECUTION = ("llmos.api.execution.v1.Execution", "inference.GRPCInferenceService")
Channels = Callable[[str], grpc.aio.Channel]
log = logging.getLogger(__name__)


async def text(channels: Channels) -> bytes:
    """Return the metrics in Prometheus' text format."""
    found = await asyncio.gather(_statistics(channels), _queues(channels))
    registry = CollectorRegistry()
    registry.register(Given([metric for metrics in found for metric in metrics]))
    return generate_latest(registry)


async def _statistics(channels: Channels) -> list[Metric]:
    try:
        stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(channels("execution"))
        reply = await stub.ModelStatistics(oip.ModelStatisticsRequest(), timeout=_TIMEOUT_S)
    except (grpc.RpcError, LLMOSError) as exc:
        _say("models", exc)
        return []
    return triton_metrics(reply.model_stats)


def triton_metrics(statistics: Iterable[oip.ModelStatistics]) -> list[Metric]:
    """Return what models have done by Triton's names."""
    labels = ["model", "version"]
    # name -> how it is read; durations are in microseconds
    table: dict[str, Callable[[oip.ModelStatistics], float]] = {
        "nv_inference_request_success": lambda m: m.inference_stats.success.count,
        "nv_inference_request_failure": lambda m: m.inference_stats.fail.count,
        "nv_inference_count": lambda m: m.inference_count,
        "nv_inference_exec_count": lambda m: m.execution_count,
        "nv_inference_request_duration_us": lambda m: m.inference_stats.success.ns / 1e3,
        "nv_inference_queue_duration_us": lambda m: m.inference_stats.queue.ns / 1e3,
        "nv_inference_compute_input_duration_us": lambda m: (
            m.inference_stats.compute_input.ns / 1e3
        ),
        "nv_inference_compute_infer_duration_us": lambda m: (
            m.inference_stats.compute_infer.ns / 1e3
        ),
        "nv_inference_compute_output_duration_us": lambda m: (
            m.inference_stats.compute_output.ns / 1e3
        ),
        "nv_cache_num_hits_per_model": lambda m: m.inference_stats.cache_hit.count,
        "nv_cache_num_misses_per_model": lambda m: m.inference_stats.cache_miss.count,
    }
    rows = list(statistics)
    metrics: list[Metric] = []
    for name, read in table.items():
        # Triton's names have no `_total`, so they are untyped here: a counter would get one.
        metric = Metric(name, "As Triton's, of the model's worker", "untyped")
        for row in rows:
            labels_of = dict(zip(labels, (row.name, row.version), strict=True))
            metric.add_sample(name, labels_of, read(row))
        metrics.append(metric)
    return metrics


async def _queues(channels: Channels) -> list[Metric]:
    try:
        stub = admin_pb2_grpc.AdminStub(channels("kernel"))
        services, tenants = await asyncio.gather(
            stub.ListServices(admin_pb2.ListServicesRequest(), timeout=_TIMEOUT_S),
            stub.ListTenants(admin_pb2.ListTenantsRequest(), timeout=_TIMEOUT_S),
        )
    except (grpc.RpcError, LLMOSError) as exc:
        _say("the kernel", exc)
        return []
    queued = GaugeMetricFamily(
        "llmos_kernel_queued", "Calls waiting in the kernel", labels=["service", "key"]
    )
    waiting = GaugeMetricFamily(
        "vllm:num_requests_waiting", "Calls of models waiting in the kernel", labels=["model_name"]
    )
    models: dict[str, int] = {}
    for service in services.services:
        for queue in service.queues:
            queued.add_metric([service.service, queue.key], queue.queued)
            if service.service in _EXECUTION and queue.key:
                models[queue.key] = models.get(queue.key, 0) + queue.queued
    for model, count in models.items():
        waiting.add_metric([model], count)
    cost = CounterMetricFamily(
        "llmos_tenant_cost", "What tenants' calls have cost, as servers say", labels=["tenant"]
    )
    running = GaugeMetricFamily("llmos_tenant_calls", "Calls in progress", labels=["tenant"])
    for tenant in tenants.tenants:
        cost.add_metric([tenant.limits.tenant], tenant.cost)
        running.add_metric([tenant.limits.tenant], tenant.open)
    return [queued, waiting, cost, running]


def _say(who: str, exc: Exception) -> None:
    error = from_rpc_error(exc) if isinstance(exc, grpc.RpcError) else exc
    log.debug("no metrics of %s: %s", who, error)
