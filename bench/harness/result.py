"""What a run produces, and what follows from it: ratios, floor, verdict."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .case import FLOOR_FRACTION, PLAIN, SUBSPAN, Bar, Case, Variant

BUSY_CORES = 0.15  # more than this used by other processes, and a time is not to be trusted

# Above this fraction of its floor a case is faster than the machine, so its limits were misread.
IMPOSSIBLE = 1.1

# subspan passes its check within the larger of this many units of rounding and twice the error of plain PyTorch.
ROUNDING_UNITS = 30


@dataclass(frozen=True)
class Settings:
    device: str = "cpu"
    threads: int = 2
    seed: int = 0
    quick: bool = False

    @property
    def budget(self) -> float:
        """Seconds of interleaved rounds per case."""
        return 0.3 if self.quick else 1.5

    @property
    def min_rounds(self) -> int:
        return 3 if self.quick else 5

    @property
    def max_rounds(self) -> int:
        return 15 if self.quick else 60


@dataclass
class Measurement:
    """One variant of a case: seconds per step of each round, errors against the reference, memory."""

    variant: Variant
    step: Callable[[], Any] | None = field(default=None, repr=False)
    estimate: float = 0.0
    seconds: list[float] = field(default_factory=list)
    value_error: float | None = None
    gradient_error: float | None = None
    extra_bytes: float | None = None
    quality: str = ""
    problem: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def minimum(self) -> float:
        return min(self.seconds)

    @property
    def worst_error(self) -> float:
        return max(e for e in (self.value_error, self.gradient_error, 0.0) if e is not None)


@dataclass
class Result:
    case: Case
    measurements: list[Measurement]
    threads: int
    peak: float
    bandwidth: float
    others: float | None
    eps: float

    @property
    def subspan(self) -> Measurement:
        return next(m for m in self.measurements if m.variant.kind == SUBSPAN)

    @property
    def disturbed(self) -> bool:
        return self.others is not None and self.others > BUSY_CORES

    def fastest(self, kind: str) -> Measurement | None:
        timed = [m for m in self.measurements if m.variant.kind == kind and m.seconds]
        return min(timed, key=lambda m: m.median, default=None)

    def ratio(self, kind: str) -> float | None:
        """How many times faster subspan is than the fastest of a kind: the median of the ratios of each round."""
        other = self.fastest(kind)
        return None if other is None or self.failure else self.ratio_to(other)

    def ratio_to(self, other: Measurement) -> float:
        pairs = zip(other.seconds, self.subspan.seconds, strict=True)
        return statistics.median(theirs / ours for theirs, ours in pairs)

    @property
    def floor(self) -> float:
        """Seconds below which no algorithm can be on this machine."""
        return max(self.case.flops / self.peak, self.case.bytes / self.bandwidth)

    @property
    def floor_fraction(self) -> float | None:
        return None if self.failure else self.floor / self.subspan.median

    @property
    def failure(self) -> str:
        """Why subspan's numbers are wrong; empty when they are right."""
        if self.subspan.problem:
            return self.subspan.problem
        plain = self.fastest(PLAIN)
        for what in ("value", "gradient"):
            ours = getattr(self.subspan, f"{what}_error")
            theirs = getattr(plain, f"{what}_error", None) or 0.0
            bound = max(2 * theirs, ROUNDING_UNITS * self.eps)
            if ours is not None and not ours <= bound:
                return f"{what} error {ours:.1e} > {bound:.1e}"
        return ""

    @property
    def verdict(self) -> str:
        if self.failure:
            return "check failed"
        if not self.case.bars:
            return "–"
        if all(self._reached(bar) for bar in self.case.bars):
            return "met (floor)" if all(bar.against == "floor" for bar in self.case.bars) else "met (ratio)"
        own_fraction = any(bar.against == "floor" for bar in self.case.bars)  # is not met at a lower one
        return "met (floor)" if self._floor_reached(FLOOR_FRACTION) and not own_fraction else "not met"

    def _reached(self, bar: Bar) -> bool:
        if bar.against == "floor":
            return self._floor_reached(bar.ratio)
        ratio = self.ratio(bar.against)
        return ratio is not None and ratio >= bar.ratio

    def _floor_reached(self, fraction: float) -> bool:
        """Limits measured while others used the cores read low, and would flatter."""
        return not self.disturbed and fraction <= self.floor_fraction <= IMPOSSIBLE
