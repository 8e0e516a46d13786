"""Prometheus text: equal to that of the client library."""

from __future__ import annotations

import random

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from recloop.monitoring.exposition import metrics_text

TEXTS = ["home", "", 'a "quoted" text', "two\nlines", "back\\slash", "née", "{}", ","]
VALUES = [0, 1, -1.5, 1e6, 123_456_789, 1e-9, float("inf"), float("-inf"), float("nan")]


def random_families(seed: int) -> list[Metric]:
    draw = random.Random(seed)
    families: list[Metric] = []
    for number, family in enumerate(draw.choices([CounterMetricFamily, GaugeMetricFamily], k=6)):
        labels = draw.sample(["window", "variant", "placement"], draw.randrange(4))
        metric = family(f"recloop_m{number}", draw.choice(TEXTS), labels=labels)
        for _ in range(draw.randrange(4)):
            metric.add_metric([draw.choice(TEXTS) for _ in labels], draw.choice(VALUES))
        families.append(metric)
    seconds = HistogramMetricFamily("recloop_seconds", "Seconds", labels=["route"])
    seconds.add_metric([draw.choice(TEXTS)], [("0.1", 2), ("+Inf", 3)], sum_value=draw.random())
    return [*families, seconds]


class Families:
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


def test_metrics_text_equals_that_of_the_client_library() -> None:
    for seed in range(20):
        families = random_families(seed)
        registry = CollectorRegistry()
        registry.register(Families(families))
        assert metrics_text(families) == generate_latest(registry)
