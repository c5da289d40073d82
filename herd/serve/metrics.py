"""Counts of requests and tokens, and the engine's state, as Prometheus reads them at `/metrics`."""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)
ENGINE = {
    "running": "Requests that the engine generates for.",
    "waiting": "Requests that wait for the engine.",
    "preempted": "Requests that lost their pages to others, and began again.",
    "used_bytes": "Of the cache, held by running requests.",
    "shared_bytes": "Of the cache, kept for requests that begin alike.",
    "cache_bytes": "Of the whole cache.",
}
"""Of `Engine.stats`."""


class Metrics:
    """One server's."""

    def __init__(self, engine_stats: Callable[[], Mapping[str, Mapping[str, int]]]) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("herd_requests", "Requests by path and status.", ["path", "status"], registry=registry)
        self.seconds = Histogram(
            "herd_request_seconds", "From a request to the end of its answer.", ["path"], buckets=SECONDS,
            registry=registry,
        )  # fmt: skip
        self.first_token_seconds = Histogram(
            "herd_first_token_seconds", "From a request to its first token.", buckets=SECONDS, registry=registry
        )
        self.prompt_tokens = Counter("herd_prompt_tokens", "Tokens of prompts.", registry=registry)
        self.completion_tokens = Counter("herd_completion_tokens", "Tokens of answers.", registry=registry)
        self.blocked = Counter("herd_blocked", "Answers that a guard or a filter ended.", registry=registry)
        self.open = Gauge("herd_open_requests", "Requests that are being answered.", registry=registry)
        registry.register(_EngineCollector(engine_stats))

    def text(self) -> bytes:
        """In Prometheus's format."""
        return generate_latest(self.registry)


class _EngineCollector(Collector):
    """The engines are asked when somebody asks for the metrics."""

    def __init__(self, stats: Callable[[], Mapping[str, Mapping[str, int]]]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[GaugeMetricFamily]:
        stats = self._stats()
        for name, description in ENGINE.items():
            family = GaugeMetricFamily(f"herd_engine_{name}", description, labels=["model"])
            for model, counts in stats.items():
                family.add_metric([model], counts[name])
            yield family
