"""Rates: how many requests somebody may make, by a bucket that fills while time passes.

The generic cell rate algorithm (ITU-T I.371, appendix A): one number a caller, the
moment at which the bucket will be full again.
"""

from typing import Final, NamedTuple

from attrs import frozen

TOLERANCE: Final = 1e-6
"""Seconds: sums of fractions are not exact, and nobody is to wait for that."""


@frozen
class Rate:
    """`burst` requests at once, and `per_second` in the long run."""

    per_second: float
    burst: int


class Verdict(NamedTuple):
    """What became of a request."""

    allowed: bool
    full_at: float
    """Seconds: when the bucket is full again; to be kept for the next request."""
    remaining: int
    """Requests that could be made at once now."""
    retry_after: float
    """Seconds to wait; 0 if it was allowed."""


def take(rate: Rate, full_at: float, now: float, cost: int = 1) -> Verdict:
    """One request at `now` of somebody whose bucket is full again at `full_at`.

    It counts as `cost` requests, but as no more than a full bucket has.
    """
    interval = 1 / rate.per_second
    capacity = rate.burst * interval
    filled = max(full_at, now) + min(cost, rate.burst) * interval
    wait = filled - capacity - now
    if wait > TOLERANCE:
        return Verdict(allowed=False, full_at=full_at, remaining=0, retry_after=wait)
    remaining = int((capacity - (filled - now)) / interval + 1e-9)
    return Verdict(allowed=True, full_at=filled, remaining=remaining, retry_after=0.0)
