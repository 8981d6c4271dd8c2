"""A benchmark case as data: the op, its inputs, what it is timed against, its floor and its bar."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# The kinds of a variant, in the order in which a report shows them.
PEER = "copied code"
PLAIN = "plain PyTorch"
COMPILED = "torch.compile"
CLOSED_FORM = "closed form"
ACCURATE = "plain PyTorch at equal accuracy"
YARDSTICK = "yardstick"
SUBSPAN = "subspan"

# Design rule of the whole suite: a bar is met at its ratio, or at this fraction of the machine's floor.
FLOOR_FRACTION = 0.65


@dataclass(frozen=True)
class Variant:
    """One way to compute a case: `function(*inputs)` returns the value that is differentiated.

    Args:
        kind: one of the names above. Of several PEER or PLAIN variants the fastest counts.
        label: what the report calls it.
        function: the computation on the inputs of the case.
        scale: the function does 1/scale of the work and its time is multiplied by this. Such a time is a lower bound,
            because what is shared by all parts is left out; its value is not compared.
        self_timed: the function returns the seconds of one repetition instead of a value.
        note: said in the row, for instance which part of the work was timed.
        skip: why this cannot run at all; shown instead of a time.
    """

    kind: str
    label: str
    function: Callable[..., Any] | None = None
    scale: float = 1.0
    self_timed: bool = False
    note: str = ""
    skip: str = ""

    @property
    def has_value(self) -> bool:
        """Whether the function returns the whole value of the case, to be compared with the reference."""
        return self.scale == 1.0 and not self.self_timed and self.kind != YARDSTICK and not self.skip


@dataclass(frozen=True)
class Bar:
    """What is asked of a case: `against` a kind of variant, at least `ratio` times faster; or a fraction of the floor.

    Of several variants of a kind the fastest counts, or the one whose label starts with `label`.

    A ratio below 1 states an allowance: Bar(YARDSTICK, 1 / 4) is "at most 4 times the time of the yardstick".
    """

    against: str
    ratio: float
    label: str = ""

    def __str__(self) -> str:
        if self.against == "floor":
            return f"≥ {100 * self.ratio:.0f} % of floor"
        if self.ratio < 1:
            return f"≤ {1 / self.ratio:.3g}× the time of the {self.against}"
        return f"≥ {self.ratio:.3g}× {self.label or self.against}"


@dataclass(frozen=True)
class Case:
    """One row of the report.

    Args:
        name: op and shape as a reader would say them.
        op: the public name that is timed.
        make_inputs: (seed, device) -> the tensors every variant receives; with `backward`, gradients flow to the
            floating-point ones.
        variants: everything that is timed, exactly one of kind SUBSPAN.
        reference: the value in float64 from float64 inputs, differentiable by autograd; None where variants return
            no value.
        flops, bytes: the least work and the least traffic of this case, whatever the algorithm: the floor.
        bars: what is asked; empty for a row that only informs.
        backward: time forward and backward, otherwise forward under no_grad.
        threads: overrides the number of threads of the run.
        quality: what the report says of each variant's value beside its error.
        source: the repository or paper whose configuration this is.
    """

    name: str
    op: str
    make_inputs: Callable[[int, str], tuple[Any, ...]]
    variants: tuple[Variant, ...]
    reference: Callable[..., Any] | None
    flops: float
    bytes: float
    bars: tuple[Bar, ...] = ()
    backward: bool = True
    threads: int | None = None
    quality: Callable[[Any], str] | None = None
    source: str = ""

    def __post_init__(self) -> None:
        if sum(variant.kind == SUBSPAN for variant in self.variants) != 1:
            raise ValueError(f"{self.name}: expected exactly one {SUBSPAN} variant")

    @property
    def subspan(self) -> Variant:
        return next(variant for variant in self.variants if variant.kind == SUBSPAN)

    @property
    def direction(self) -> str:
        return "forward + backward" if self.backward else "forward"

    @property
    def key(self) -> str:
        """The name as a keyboard writes it, to select a case by."""
        return self.name.replace("×", "x").replace("²", "^2").lower()

    @property
    def title(self) -> str:
        return self.name if self.subspan.self_timed else f"{self.name}, {self.direction}"
