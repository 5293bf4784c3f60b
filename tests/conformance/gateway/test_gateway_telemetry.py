"""Traces and GenAI metrics arrive at a collector that speaks OTLP, as one trace per request."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from echo_execution import EchoBackend, EchoModel

from llmos.servers.gateway.app import build
from llmos.servers.gateway.config import GatewayConfig

pytest.importorskip("opentelemetry.sdk")
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics_pb2
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as trace_pb2

from llmos.servers.gateway.telemetry import Telemetry


class Collector:
    """Keeps what it is sent."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.metrics: dict[str, Any] = {}


@pytest.fixture
def collector() -> Iterator[tuple[Collector, str]]:
    kept = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                raw = gzip.decompress(raw)
            if self.path == "/v1/traces":
                traces = trace_pb2.ExportTraceServiceRequest.FromString(raw)
                for resource in traces.resource_spans:
                    for scope in resource.scope_spans:
                        kept.spans += scope.spans
            else:
                found = metrics_pb2.ExportMetricsServiceRequest.FromString(raw)
                for one in found.resource_metrics:
                    for part in one.scope_metrics:
                        kept.metrics |= {m.name: m for m in part.metrics}
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield kept, f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def attributes(span: Any) -> dict[str, Any]:
    return {a.key: a.value.string_value or a.value.int_value for a in span.attributes}


async def test_one_trace_from_the_client_to_the_engine(collector: tuple[Collector, str]) -> None:
    kept, url = collector
    model, telemetry = EchoModel(), Telemetry(url)
    app = build(EchoBackend(model), GatewayConfig(), telemetry=telemetry)
    transport = httpx.ASGITransport(app)
    trace_id, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    async with httpx.AsyncClient(base_url="http://test", transport=transport) as http:
        reply = await http.post(
            "/v1/completions",
            json={"model": "echo", "prompt": "a b c"},
            headers={"traceparent": f"00-{trace_id}-{parent}-01"},
        )
        assert reply.status_code == 200
        await http.post("/v1/completions", json={"model": "down", "prompt": "a"})
        await http.get("/healthz")
    telemetry.close()

    spans = {span.name: span for span in kept.spans if span.trace_id.hex() == trace_id}
    root = spans["POST /v1/completions"]
    assert root.parent_span_id.hex() == parent
    assert set(spans) == {root.name, "llmos.queue", "llmos.prefill", "llmos.decode"}
    for name, span in spans.items():
        assert span.end_time_unix_nano >= span.start_time_unix_nano
        if name != root.name:
            assert span.parent_span_id == root.span_id
    found = attributes(root)
    assert found["gen_ai.operation.name"] == "text_completion"
    assert found["gen_ai.response.model"] == "echo@2"
    assert (found["gen_ai.usage.input_tokens"], found["gen_ai.usage.output_tokens"]) == (3, 3)
    failed = [s for s in kept.spans if attributes(s).get("http.response.status_code") == 503]
    assert [attributes(s)["error.type"] for s in failed] == ["503"]
    assert not any("healthz" in s.name for s in kept.spans)
    assert {"gen_ai.server.request.duration", "gen_ai.client.token.usage"} <= set(kept.metrics)
    assert "gen_ai.server.time_to_first_token" in kept.metrics


async def test_the_os_sees_the_gateways_span_as_parent(collector: tuple[Collector, str]) -> None:
    kept, url = collector
    model, telemetry = EchoModel(), Telemetry(url)
    app = build(EchoBackend(model), GatewayConfig(), telemetry=telemetry)
    async with httpx.AsyncClient(
        base_url="http://test", transport=httpx.ASGITransport(app)
    ) as http:
        await http.post("/v1/completions", json={"model": "echo", "prompt": "a"})
    telemetry.close()
    (root,) = (span for span in kept.spans if span.name.startswith("POST"))
    _, trace_id, span_id, _ = model.metadata["traceparent"].split("-")
    assert (trace_id, span_id) == (root.trace_id.hex(), root.span_id.hex())
