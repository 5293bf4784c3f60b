"""Metrics of all processes on the port as one: whoever is scraped asks the others.

Each process gives its own text over `<run_dir>/gateway-<number>.metrics`, a Unix socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import AsyncGenerator, Callable, Iterable
from pathlib import Path

from prometheus_client.core import Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector, CollectorRegistry

_TIMEOUT_S = 1.0
_NAME = re.compile(r"gateway-\d+\.metrics")
# Of these the first one counts; all others add up.
_FIRST = re.compile(r".*_created|process_(start_time_seconds|max_fds)")
log = logging.getLogger(__name__)


class Counts:
    """This process's text and how to get the others'."""

    def __init__(self, run_dir: Path, number: int, own: Callable[[], bytes]) -> None:
        """Be process `number` of those in `run_dir`; `own` returns its text."""
        self._folder, self._own = run_dir, own
        self._path = run_dir / f"gateway-{number}.metrics"

    @contextlib.asynccontextmanager
    async def shared(self) -> AsyncGenerator[None, None]:
        """Let the other processes read this one's text while the body runs."""

        async def give(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError):
                writer.write(self._own())
                await writer.drain()
            writer.close()

        self._path.unlink(missing_ok=True)
        server = await asyncio.start_unix_server(give, self._path)
        try:
            yield
        finally:
            server.close()
            self._path.unlink(missing_ok=True)

    async def text(self) -> bytes:
        """Return the text of all processes; who does not answer in time is left out."""
        others = [
            path
            for path in self._folder.glob("gateway-*.metrics")
            if _NAME.fullmatch(path.name) and path != self._path
        ]
        found = await asyncio.gather(*(_read(path) for path in others))
        return added([self._own(), *(text for text in found if text)])


async def _read(path: Path) -> bytes:
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            reader, writer = await asyncio.open_unix_connection(path)
            try:
                return await reader.read()
            finally:
                writer.close()
    except (OSError, TimeoutError) as exc:  # one that has died left its socket behind
        log.debug("no metrics of %s: %s", path.name, exc)
        return b""


def added(texts: Iterable[bytes]) -> bytes:
    """Return texts of the same program in Prometheus' format as one, series added up."""
    first, *rest = [list(text_string_to_metric_families(text.decode())) for text in texts]
    metrics = {metric.name: metric for metric in first}
    for metric in (metric for metrics in rest for metric in metrics):
        mine = metrics.setdefault(metric.name, metric)
        if mine is not metric:
            _add(mine, metric)
    registry = CollectorRegistry()
    registry.register(Given(metrics.values()))
    return generate_latest(registry)


def _add(mine: Metric, other: Metric) -> None:
    places = {(s.name, *sorted(s.labels.items())): i for i, s in enumerate(mine.samples)}
    for sample in other.samples:
        place = places.get((sample.name, *sorted(sample.labels.items())))
        if place is None:
            mine.samples.append(sample)
        elif not _FIRST.fullmatch(sample.name):
            total = mine.samples[place].value + sample.value
            mine.samples[place] = mine.samples[place]._replace(value=total)


class Given(Collector):
    """Collects metrics that are there already."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        """Have these."""
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        """Return them."""
        return self._metrics

    def describe(self) -> Iterable[Metric]:
        """Return nothing: names are not checked against others."""
        return ()
