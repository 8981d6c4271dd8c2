"""Hypercomplex convolutions, adapters and recurrent layers at the sizes of PHNNs, Compacter and the PHM-LSTM.

Floors: a convolution multiplies three times what its weight would; an adapter reads x and dy and writes y and dx, and
reads x again in the backward pass; a recurrent layer multiplies three times in every step.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

import subspan
from baselines import phm_models as baseline
from harness.case import PEER, PLAIN, SUBSPAN, Bar, Case, Variant

from .coding_rate import FLOAT
from .phm import _normal as normal


def convolution(channels: int, n: int, pixels: int, items: int, bars: tuple[Bar, ...]) -> Case:
    k = channels // n

    def ours(x: Tensor, A: Tensor, S: Tensor) -> Tensor:
        return subspan.phm_conv2d(x, A, S, padding=1)

    return Case(
        name=f"phm_conv2d {channels} → {channels} 3×3, n={n}, {pixels}×{pixels} pixels, batch {items}",
        op="phm_conv2d",
        make_inputs=lambda seed, device: normal(
            seed, device, (items, channels, pixels, pixels), (n, n, n), (n, k, k, 3, 3)
        ),
        variants=(
            Variant(PEER, "sum of Kronecker products", baseline.kronecker_conv2d),
            Variant(PLAIN, "one product makes W", baseline.composed_conv2d),
            Variant(PLAIN, "einsum makes W", baseline.einsum_conv2d),
            Variant(SUBSPAN, "subspan", ours),
        ),
        reference=baseline.kronecker_conv2d,
        flops=3 * 2 * items * pixels**2 * 9 * channels**2,
        bytes=FLOAT * (9 * channels**2 * (2 + 2 / n) + 4 * items * channels * pixels**2),
        bars=bars,
        source="PHCResNet",
    )


def adapter(
    features: int, hidden: int, n: int, rank: int | None, rows: int, bars: tuple[Bar, ...], source: str
) -> Case:
    l, k = hidden // n, features // n  # noqa: E741
    if rank is None:
        shapes = [(n, n, n), (n, l, k), (hidden,), (n, n, n), (n, k, l), (features,)]
        flops = 6 * 2 * rows * hidden * features
    else:
        shapes = [(n, n, n), (n, l, rank), (n, rank, k), (hidden,), (n, n, n), (n, k, rank), (n, rank, l), (features,)]
        flops = 6 * 2 * rows * n * rank * (features + hidden + n * n)

    def ours(x: Tensor, *factors: Tensor) -> Tensor:
        half = len(factors) // 2
        return subspan.phm_adapter(x, factors[:half], factors[half:])

    plain = [Variant(PLAIN, "one product makes W", baseline.composed_adapter)]
    if rank is not None:
        plain.append(Variant(PLAIN, "factor after factor", baseline.adapter_steps))
    whole = "whole components" if rank is None else f"rank {rank}"
    return Case(
        name=f"phm_adapter {features} → {hidden} → {features}, n={n}, {whole}, batch {rows}",
        op="phm_adapter",
        make_inputs=lambda seed, device: normal(seed, device, (rows, features), *shapes),
        variants=(
            Variant(PEER, "sums of Kronecker products", baseline.kronecker_adapter),
            *plain,
            Variant(SUBSPAN, "subspan", ours),
        ),
        reference=baseline.kronecker_adapter,
        flops=flops,
        bytes=FLOAT * 5 * rows * features,
        bars=bars,
        source=source,
    )


def recurrent(hidden: int, n: int, steps: int, items: int, bars: tuple[Bar, ...]) -> Case:
    k = hidden // n
    layer = subspan.nn.PHMLSTM(hidden, hidden, n)

    def ours(x: Tensor, A: Tensor, S_x: Tensor, S_h: Tensor, b: Tensor) -> Tensor:
        parameters = {"A_l0": A, "S_ih_l0": S_x, "S_hh_l0": S_h, "bias_ih_l0": b, "bias_hh_l0": torch.zeros_like(b)}
        result: Tensor = torch.func.functional_call(layer, parameters, (x,))[0]
        return result

    def shapes(seed: int, device: str) -> tuple[Tensor, ...]:
        return normal(seed, device, (steps, items, hidden), (n, n, n), (4, n, k, k), (4, n, k, k), (4 * hidden,))

    rebuilt = partial(baseline.rebuilding_lstm, baseline.kronecker_weights)
    return Case(
        name=f"PHMLSTM hidden {hidden}, n={n}, {steps} steps, batch {items}",
        op="nn.PHMLSTM",
        make_inputs=shapes,
        variants=(
            Variant(PEER, "Kronecker products in every step", rebuilt),
            Variant(PEER, "one product in every step", partial(baseline.rebuilding_lstm, baseline.composed_weights)),
            Variant(PLAIN, "weights once", baseline.composed_lstm),
            Variant(SUBSPAN, "subspan", ours),
        ),
        reference=rebuilt,
        flops=3 * 2 * steps * items * 8 * hidden**2,
        bytes=FLOAT * (16 * hidden**2 + 4 * steps * items * hidden),
        bars=bars,
        source="PHM-LSTM",
    )


CASES = (
    convolution(512, 4, 4, 8, (Bar(PLAIN, 1.2), Bar(PEER, 1.2))),
    convolution(64, 4, 32, 8, ()),
    adapter(768, 24, 4, 1, 1280, (Bar(PLAIN, 4), Bar(PEER, 4)), "Compacter, T5-base"),
    adapter(768, 24, 4, 1, 12800, (), "Compacter, T5-base"),
    adapter(768, 48, 12, None, 1280, (), "PHM-adapter"),
    recurrent(256, 4, 50, 16, (Bar(PEER, 3),)),
)
