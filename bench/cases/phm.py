"""Hypercomplex layers at the sizes of PHM transformers, PHC-GNN and Compacter.

Floors: 2 in out flops a row, three times as many with gradients; a decomposed rule takes rank / n^2 of them. S, x and y
pass memory once. "Cold" weights are other ones in every call, of more memory than the caches hold, as in a network of
many layers; all ways then read theirs from there. A cached dense weight has forgotten the rule and is no PHM layer: it
is what inference could keep instead, at n times the memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import lru_cache, partial

import torch
from torch import Tensor
from torch.nn.functional import linear

import subspan
from baselines import phm as baseline
from harness.case import PEER, PLAIN, SUBSPAN, YARDSTICK, Bar, Case, Variant

from .coding_rate import FLOAT

COLD_BYTES = 2**27  # beyond every cache


def _normal(seed: int, device: str, *shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple((torch.randn(*shape, generator=generator) * shape[-1] ** -0.5).to(device) for shape in shapes)


def _taking_turns() -> Callable[[Tensor], Tensor]:
    """The next of several equal weights in every call. Compiled code, which would be another for each, has one of them:
    its weights are always warm."""
    turn = itertools.count()

    def choose(weights: Tensor) -> Tensor:
        return weights[0 if torch.compiler.is_compiling() else next(turn) % len(weights)]

    return choose


def in_turn(function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    choose = _taking_turns()

    def call(x: Tensor, A: Tensor, S: Tensor, W: Tensor) -> Tensor:
        return function(x, A, choose(S))

    return call


def dense_in_turn(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    choose = _taking_turns()

    def call(x: Tensor, A: Tensor, S: Tensor, W: Tensor) -> Tensor:
        return function(x, choose(W))

    return call


def _copies(elements: int, cold: bool) -> int:
    return -(-COLD_BYTES // (FLOAT * elements)) + 1 if cold else 1


@lru_cache
def _frozen(n: int) -> Tensor:
    """A rule as it was learned, and is changed no more. One for all seeds: its products are searched for."""
    return _normal(0, "cpu", (n, n, n))[0].double()


def inference(
    width: int,
    n: int,
    rows: int,
    bars: tuple[Bar, ...],
    rule: str = "learned",
    cold: bool = False,
    source: str = "spec",
) -> Case:
    def make(seed: int, device: str) -> tuple[Tensor, ...]:
        x, A, S = _normal(seed, device, (rows, width), (n, n, n), (n, width // n, width // n))
        if rule == "rank one":
            A = A[:, :, :1] @ A[:, :1, :]
        elif rule == "frozen":
            A = _frozen(n).float().to(device)
        elif rule != "learned":
            A = torch.from_numpy(subspan.algebra(rule, n)).float().to(device)
        W = baseline.weight(A, S)
        return (
            x,
            A,
            S.repeat(_copies(S.numel(), cold), 1, 1, 1),
            W.repeat(_copies(W.numel(), cold), 1, 1),
        )

    def rank_one(x: Tensor, A: Tensor, S: Tensor) -> Tensor:
        return subspan.phm_linear_rank1(x, A[:, :, :1], A[:, :1, :] / A[:, :1, :1], S)

    ours, part = subspan.phm_linear, 1.0
    if rule == "rank one":
        ours, part = rank_one, 1 / n
    elif rule != "learned":
        ours = partial(subspan.phm_linear, method="rank")
        constant = _frozen(n) if rule == "frozen" else subspan.algebra(rule, n)
        part = subspan.rank_decomposition(constant).rank / n**2
    warm = "" if rows > 1 else ", cold weights" if cold else ", warm weights"
    return Case(
        name=f"phm_linear {width}² n={n}, {rule} rule, batch {rows}{warm}",
        op="phm_linear_rank1" if rule == "rank one" else "phm_linear",
        make_inputs=make,
        variants=(
            Variant(PEER, "sum of Kronecker products", in_turn(baseline.kronecker_sum)),
            Variant(PLAIN, "one product makes W", in_turn(baseline.through_weight)),
            Variant(PLAIN, "einsum makes W", in_turn(baseline.einsum_weight)),
            Variant(PLAIN, "two products, no W", in_turn(baseline.mixed_after)),
            Variant(YARDSTICK, "dense, W cached", dense_in_turn(linear)),
            Variant(YARDSTICK, "oneDNN, W cached", dense_in_turn(baseline.Packed())),
            Variant(SUBSPAN, "subspan", in_turn(ours)),
        ),
        reference=in_turn(baseline.kronecker_sum),
        flops=2 * rows * width**2 * part,
        bytes=FLOAT * (width**2 / n + 2 * rows * width),
        bars=bars,
        backward=False,
        source=source,
    )


def training(width: int, n: int, rows: int, bars: tuple[Bar, ...], source: str) -> Case:
    dense = _normal(9, "cpu", (width, width))[0].requires_grad_()
    return Case(
        name=f"phm_linear {width}² n={n}, batch {rows}",
        op="phm_linear",
        make_inputs=lambda seed, device: _normal(seed, device, (rows, width), (n, n, n), (n, width // n, width // n)),
        variants=(
            Variant(PEER, "sum of Kronecker products", baseline.kronecker_sum),
            Variant(PLAIN, "one product makes W", baseline.through_weight),
            Variant(PLAIN, "einsum makes W", baseline.einsum_weight),
            Variant(PLAIN, "two products, no W", baseline.mixed_after),
            Variant(YARDSTICK, "dense layer", lambda x, A, S: linear(x, dense.to(x.device))),
            Variant(SUBSPAN, "subspan", subspan.phm_linear),
        ),
        reference=baseline.kronecker_sum,
        flops=6 * rows * width**2,
        bytes=FLOAT * (2 * width**2 / n + 4 * rows * width),
        bars=bars,
        source=source,
    )


def adapter(inputs: int, outputs: int, n: int, rank: int, rows: int, bars: tuple[Bar, ...], source: str) -> Case:
    return Case(
        name=f"phm_linear_lowrank {inputs} → {outputs}, n={n}, rank {rank}, batch {rows}",
        op="phm_linear_lowrank",
        make_inputs=lambda seed, device: _normal(
            seed, device, (rows, inputs), (n, n, n), (n, outputs // n, rank), (n, rank, inputs // n)
        ),
        variants=(
            Variant(PEER, "sum of Kronecker products", baseline.lowrank_kronecker_sum),
            Variant(PLAIN, "one product makes W", baseline.lowrank_through_weight),
            Variant(PLAIN, "factor after factor", baseline.lowrank_steps),
            Variant(SUBSPAN, "subspan", subspan.phm_linear_lowrank),
        ),
        reference=baseline.lowrank_kronecker_sum,
        flops=3 * 2 * rows * n * rank * (inputs + outputs + n * n),
        bytes=FLOAT * 4 * rows * (inputs + outputs),
        bars=bars,
        source=source,
    )


def weight(width: int, n: int, source: str) -> Case:
    return Case(
        name=f"phm_weight {width}² n={n}",
        op="phm_weight",
        make_inputs=lambda seed, device: _normal(seed, device, (n, n, n), (n, width // n, width // n)),
        variants=(
            Variant(PEER, "sum of Kronecker products", lambda A, S: baseline.kronecker_products(A, S).sum(0)),
            Variant(PLAIN, "one product", baseline.weight),
            Variant(SUBSPAN, "subspan", subspan.phm_weight),
        ),
        reference=lambda A, S: baseline.kronecker_products(A, S).sum(0),
        flops=2 * n * width**2,
        bytes=FLOAT * width**2 * (1 + 1 / n),
        backward=False,
        source=source,
    )


ONE = (Bar(PLAIN, 2), Bar(YARDSTICK, 2, "oneDNN"), Bar(YARDSTICK, 2.5, "dense"))
FEW = (Bar(PLAIN, 1.8), Bar(YARDSTICK, 1.8))
LEARNED = (Bar(YARDSTICK, 1.5, "dense"), Bar(YARDSTICK, 0.9, "oneDNN"))
FIXED = (Bar(YARDSTICK, 2.5, "dense"), Bar(YARDSTICK, 1.5, "oneDNN"))

CASES = (
    *(inference(width, n, 1, ONE, cold=cold) for width in (1024, 4096) for n in (4, 8) for cold in (True, False)),
    *(inference(width, n, 8, FEW) for width in (1024, 4096) for n in (4, 8)),
    *(inference(1024, n, rows, LEARNED) for n in (4, 8) for rows in (64, 512)),
    *(inference(1024, 4, rows, FIXED, rule) for rule in ("quaternion", "rank one", "frozen") for rows in (64, 512)),
    training(512, 4, 256, (Bar(PLAIN, 1.8),), "PHM transformer"),
    training(1024, 8, 64, (Bar(PLAIN, 1.8), Bar(PEER, 5)), "PHM transformer"),
    training(200, 4, 800, (Bar(PLAIN, 1.8),), "PHC-GNN, hiv"),
    training(180, 4, 32, (Bar(PLAIN, 1.8),), "PHC-GNN, zinc"),
    adapter(768, 24, 4, 1, 1280, (Bar(PLAIN, 1),), "Compacter, T5-base"),
    adapter(24, 768, 4, 1, 1280, (Bar(PLAIN, 1),), "Compacter, T5-base"),
    adapter(768, 768, 4, 8, 1280, (Bar(PLAIN, 1),), "spec"),
    adapter(512, 512, 8, 4, 1280, (Bar(PLAIN, 1),), "spec"),
    weight(4096, 4, "spec"),
)
