"""Prometheus text: the bytes that prometheus_client writes."""

from __future__ import annotations

import math

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from recloop.monitoring.exposition import Sample, family

SAMPLES: list[Sample] = [
    ({"window": "day", "variant": "live", "placement": 'a "quoted"\\name'}, 0.25),
    ({"window": "hour", "variant": "née", "placement": "two\nlines"}, 12),
    ({"window": "hour", "variant": "", "placement": "home"}, 1e-7),
    ({"window": "week", "variant": "live", "placement": "home"}, math.nan),
    ({"window": "week", "variant": "live", "placement": "cart"}, math.inf),
    ({"window": "week", "variant": "live", "placement": "item"}, -math.inf),
]


class OneFamily:
    def __init__(self, metric: Metric) -> None:
        self.metric = metric

    def collect(self) -> list[Metric]:
        return [self.metric]


@pytest.mark.parametrize(("kind", "library"), [("gauge", GaugeMetricFamily), ("counter", CounterMetricFamily)])
@pytest.mark.parametrize("samples", [SAMPLES, [({}, 3)], []])
def test_family_equals_the_text_of_prometheus_client(
    kind: str, library: type[GaugeMetricFamily | CounterMetricFamily], samples: list[Sample]
) -> None:
    labels = list(samples[0][0]) if samples else []
    metric = library("recloop_shares", "Share of slots", labels=labels)
    for names, value in samples:
        metric.add_metric([names[label] for label in labels], value)
    registry = CollectorRegistry()
    registry.register(OneFamily(metric))
    name = "recloop_shares_total" if kind == "counter" else "recloop_shares"
    assert family(name, "Share of slots", kind, samples).encode() == generate_latest(registry)
