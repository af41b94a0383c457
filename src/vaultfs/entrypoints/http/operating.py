"""What tells how the server is, and what it accepts."""

from bisect import bisect_left
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from itertools import accumulate
from typing import Final

import msgspec
from attrs import define, field
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from starlette.responses import Response

from vaultfs.domain.batches import KEPT_US, MAX_BYTES, MAX_ERRORS, MAX_STEP, MAX_STEPS
from vaultfs.domain.errors import VaultError
from vaultfs.domain.names import MAX_DEPTH, MAX_NAME, MAX_PATH
from vaultfs.domain.operations import MAX_COPY, MAX_METADATA
from vaultfs.domain.services.batches import LONGEST
from vaultfs.domain.services.browse import PAGE
from vaultfs.entrypoints.http.calls import MAX_JSON, Call, Route
from vaultfs.entrypoints.http.wire import Health, Limits
from vaultfs.entrypoints.vault import MARKER, Vault

READY_FOR: Final = 2.0
"""Seconds for which a look at the store and the catalog is good."""


UPKEEP: Final = {
    "gc_condemned_packs": "Packs that nothing needed any more.",
    "gc_freed_bytes": "Bytes of packs that went.",
    "scrubbed_bytes": "Stored bytes that were read again.",
    "upkeep_problems": "What scrubs found, and collections that were stopped.",
    "migration_copied_bytes": "Bytes that were copied to another store.",
    "shadow_differences": "Packs of which another store gave other bytes than were read.",
}
"""Counters of upkeep, with what they count."""
BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)
"""Seconds that requests are counted by."""


@define(eq=False)
class Figures:
    """What was counted of one method of one route.

    Plain numbers: the event loop alone changes them, and a lock for each would cost as
    much as all else that happens around a small request.
    """

    statuses: dict[int, int] = field(factory=dict[int, int])
    buckets: list[int] = field(factory=lambda: [0] * (len(BUCKETS) + 1))
    seconds: float = 0.0
    received: int = 0
    sent: int = 0

    def note(self, status: int, seconds: float) -> None:
        """Count a request."""
        self.statuses[status] = self.statuses.get(status, 0) + 1
        self.buckets[bisect_left(BUCKETS, seconds)] += 1
        self.seconds += seconds


class Metrics(Collector):
    """What `/metrics` tells, of one server; labels are routes, never paths."""

    def __init__(self, vault: Vault) -> None:
        self.vault = vault
        self.active = 0
        self.upkeep = dict.fromkeys(UPKEEP, 0)
        """What upkeep has done since the start of the process."""
        self._figures: dict[tuple[str, str], Figures] = {}
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def figures(self, method: str, route: str) -> Figures:
        """Those of a method of a route, to be added to."""
        found = self._figures.get((method, route))
        if found is None:
            found = self._figures[method, route] = Figures()
        return found

    def collect(self) -> Iterator[Metric]:
        """For Prometheus' library."""
        counted = CounterMetricFamily(
            "vaultfs_http_requests", "Requests answered.", labels=("method", "route", "status")
        )
        took = HistogramMetricFamily(
            "vaultfs_http_request_seconds",
            "Seconds from a request to the end of its answer.",
            labels=("method", "route"),
        )
        for labels, each in self._figures.items():
            for status, count in each.statuses.items():
                counted.add_metric((*labels, str(status)), count)
            names = (*map(str, BUCKETS), "+Inf")
            buckets = list(zip(names, accumulate(each.buckets), strict=True))
            took.add_metric(labels, buckets, each.seconds)
        yield counted
        yield took
        all_ = self._figures.values()
        received, sent = sum(each.received for each in all_), sum(each.sent for each in all_)
        yield CounterMetricFamily("vaultfs_http_received_bytes", "Bytes of bodies.", received)
        yield CounterMetricFamily("vaultfs_http_sent_bytes", "Bytes of answers.", sent)
        yield GaugeMetricFamily("vaultfs_http_active_requests", "Requests under way.", self.active)
        for name, text in UPKEEP.items():
            yield CounterMetricFamily(f"vaultfs_{name}", text, self.upkeep[name])
        held = self.vault.budget.total - self.vault.budget.free
        yield GaugeMetricFamily("vaultfs_budget_bytes", "Bytes that transfers hold.", held)
        yield from self._placement()

    def _placement(self) -> Iterator[Metric]:
        """By which placement this server goes, where there is more than one store."""
        objects = self.vault.objects
        now = objects.placement
        epoch = GaugeMetricFamily(
            "vaultfs_placement_epoch",
            "The epoch that this server goes by.",
            labels=("phase", "primary"),
        )
        epoch.add_metric((str(now.phase), now.primary), now.epoch)
        yield epoch
        yield CounterMetricFamily(
            "vaultfs_store_fallbacks",
            "Reads that another store than the first one answered.",
            objects.fallbacks,
        )

    def text(self) -> bytes:
        """All of it, in Prometheus' format."""
        return generate_latest(self._registry)


async def healthz(call: Call) -> Response:
    """Whether the process answers."""
    return call.json(Health("ok"))


async def readyz(call: Call) -> Response:
    """Whether the catalog and the store answer."""
    checks = await call.server.ready()
    well = all(text == "ok" for text in checks.values())
    return call.json(Health("ok" if well else "failing", checks), 200 if well else 503)


async def look(vault: Vault) -> dict[str, str]:
    """How the parts of a vault are: `ok`, or the kind of what is wrong."""
    checks: dict[str, Callable[[], Awaitable[object]]] = {
        "catalog": vault.catalog.users,
        "store": partial(vault.objects.head, MARKER),
    }
    found: dict[str, str] = {}
    for name, check in checks.items():
        try:
            await check()
        except VaultError as error:
            found[name] = type(error).__name__
        else:
            found[name] = "ok"
    return found


async def metrics(call: Call) -> Response:
    """Prometheus' text format."""
    return Response(call.server.metrics.text(), media_type="text/plain; version=0.0.4")


async def limits(call: Call) -> Response:
    """What the server accepts."""
    rate = call.server.rate
    value = Limits(
        *(MAX_NAME, MAX_PATH, MAX_DEPTH, MAX_JSON, MAX_METADATA, PAGE, MAX_COPY),
        *(MAX_STEPS, MAX_BYTES, MAX_STEP, MAX_ERRORS, LONGEST, KEPT_US // 1_000_000),
        *(rate.per_second, rate.burst),
    )
    return call.json(value)


async def openapi(call: Call) -> Response:
    """The description of this API (OpenAPI 3.1)."""
    return Response(msgspec.json.encode(call.server.description), media_type="application/json")


ROUTES: Final = (
    Route(*("GET", "/healthz", healthz, "healthz", "Does the process answer?"), answer=Health),
    Route(
        *("GET", "/readyz", readyz, "readyz", "Do catalog and store answer?"),
        answer=Health,
        failures=(503,),
    ),
    Route(*("GET", "/metrics", metrics, "metrics", "Figures (Prometheus)."), answer="text/plain"),
    Route(*("GET", "/v1/limits", limits, "limits", "What the server accepts."), answer=Limits),
    Route(
        *("GET", "/openapi.json", openapi, "openapi", "This API (OpenAPI 3.1)."),
        answer="application/json",
    ),
)
