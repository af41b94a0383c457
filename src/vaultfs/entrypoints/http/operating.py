"""What tells how the server is, and what it accepts."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.responses import HTMLResponse, Response

from vaultfs.domain.errors import VaultError
from vaultfs.domain.names import MAX_DEPTH, MAX_NAME, MAX_PATH
from vaultfs.domain.operations import MAX_COPY, MAX_METADATA
from vaultfs.domain.services.browse import PAGE
from vaultfs.entrypoints.http.calls import MAX_JSON, Call, Route
from vaultfs.entrypoints.http.wire import Health, Limits
from vaultfs.entrypoints.vault import MARKER, Vault

READY_FOR: Final = 2.0
"""Seconds for which a look at the store and the catalog is good."""


class Metrics:
    """What `/metrics` tells, of one server; labels are routes, never paths."""

    def __init__(self, vault: Vault) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "vaultfs_http_requests",
            "Requests answered.",
            ("method", "route", "status"),
            registry=self.registry,
        )
        self.seconds = Histogram(
            "vaultfs_http_request_seconds",
            "Seconds from a request to the end of its answer.",
            ("method", "route"),
            registry=self.registry,
        )
        self.received = Counter(
            "vaultfs_http_received_bytes", "Bytes of bodies.", registry=self.registry
        )
        self.sent = Counter("vaultfs_http_sent_bytes", "Bytes of answers.", registry=self.registry)
        self.active = Gauge(
            "vaultfs_http_active_requests", "Requests under way.", registry=self.registry
        )
        budget = Gauge("vaultfs_budget_bytes", "Bytes that transfers hold.", registry=self.registry)
        budget.set_function(lambda: vault.budget.total - vault.budget.free)

        self._noted: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}

    def note(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        key = (method, route, status)
        if key not in self._noted:
            counter = self.requests.labels(method, route, str(status))
            self._noted[key] = (counter, self.seconds.labels(method, route))
        counter, histogram = self._noted[key]
        counter.inc()
        histogram.observe(seconds)

    def text(self) -> bytes:
        """All of it, in Prometheus' format."""
        return generate_latest(self.registry)


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
        *(rate.per_second, rate.burst),
    )
    return call.json(value)


async def openapi(call: Call) -> Response:
    """The description of this API (OpenAPI 3.1)."""
    return Response(msgspec.json.encode(call.server.description), media_type="application/json")


async def docs(call: Call) -> Response:
    """The same for people."""
    from vaultfs.entrypoints.http.description import page

    return HTMLResponse(
        page(call.server.description),
        headers={"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"},
    )


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
    Route(*("GET", "/docs", docs, "docs", "This API, for people."), answer="text/html"),
)
