"""What a service counts: requests, their time, the batches that they were joined into."""

import os

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest, multiprocess

__all__ = ["MANY_PROCESSES", "Metrics"]

MANY_PROCESSES = "PROMETHEUS_MULTIPROC_DIR"  # of the environment: the folder where several processes count together


class Metrics:
    "Counters of one service, in Prometheus' text format."

    def __init__(self):
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "fastai_heads_requests", "Requests, by route and status.", ["route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "fastai_heads_request_seconds", "Time from request to answer.", ["route"], registry=self.registry
        )
        self.batch = Histogram(
            "fastai_heads_batch_items",
            "Items of one call of the network.",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128),
            registry=self.registry,
        )

    def text(self) -> bytes:
        "Write all of them."
        if MANY_PROCESSES not in os.environ:
            return generate_latest(self.registry)
        together = CollectorRegistry()
        multiprocess.MultiProcessCollector(together)
        return generate_latest(together)
