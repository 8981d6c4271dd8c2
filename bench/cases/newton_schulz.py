"""Newton-Schulz iterations: the matrices of a small detector in one call; layers of transformers, alone and as a batch.

Floor: on the shorter side s, 4 k - 3 products of symmetric matrices for k steps, of s^3 flops since only a triangle has
to be computed, the Gram matrix for s^2 l and one product with X for 2 s^2 l; G is read and the result written.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

import subspan
from baselines import newton_schulz as baseline
from harness.case import PEER, PLAIN, SUBSPAN, Bar, Case, Variant
from subspan.ops.newton_schulz import polynomials

from .coding_rate import FLOAT


def _block(width: int, inputs: int, outputs: int) -> list[tuple[int, int]]:
    """A C3k2 block whose inner block has two bottlenecks of two 3 x 3 convolutions."""
    half, quarter = width // 2, width // 4
    inner = [(quarter, half)] * 2 + [(quarter, 9 * quarter)] * 4 + [(half, half)]
    return [(width, inputs), *inner, (outputs, width + half)]


def _head() -> list[tuple[int, int]]:
    """Boxes and classes at three scales, the latter by depthwise and pointwise convolutions."""
    shapes = []
    for channels in (64, 128, 256):
        shapes += [(16, 9 * channels), (16, 144), (4, 16)]
        shapes += [(channels, 9), (80, channels), (80, 9), (80, 80), (80, 80)]
    return shapes


#: The 126 weights (outputs, inputs * kernel) of a detector as small as YOLO26n: stem and backbone with pooling and
#: attention, neck, and two heads.
DETECTOR: tuple[tuple[int, int], ...] = (
    *[(16, 27), (32, 144), (32, 32), (8, 144), (16, 72), (64, 48)],
    *[(64, 576), (64, 64), (16, 288), (32, 144), (128, 96)],
    *[(128, 1152), *_block(128, 128, 128)],
    *[(256, 1152), *_block(256, 256, 256)],
    *[(128, 256), (256, 512)],
    *[(256, 256), (256, 128), (128, 128), (128, 9), (256, 128), (128, 256), (256, 256)],
    *[*_block(128, 384, 128), *_block(64, 256, 64)],
    *[(64, 576), *_block(128, 192, 128)],
    *[(128, 1152), *_block(256, 384, 256)],
    *[*_head(), *_head()],
)


def _flops(shape: tuple[int, ...], steps: int) -> float:
    s, l = sorted(shape[-2:])  # noqa: E741
    batch = shape[0] if len(shape) == 3 else 1
    return float(batch * s**2 * ((4 * steps - 3) * s + 3 * l))


def _entries(shapes: tuple[tuple[int, ...], ...]) -> int:
    return sum(torch.Size(shape).numel() for shape in shapes)


def quality(value: Any) -> str:
    """The range of singular values and ||Q^T Q - I|| of what was computed, of all matrices of a list."""
    ends, distance = [], 0.0
    for Q in value if isinstance(value, list) else [value]:
        values = torch.linalg.svdvals(Q.double())
        ends += [values.min().item(), values.max().item()]
        distance = max(distance, (values.square() - 1).abs().max().item())
    return f"singular values {min(ends):.3g} … {max(ends):.3g}, orthogonal to {distance:.1e}"


def _gaussian(seed: int, device: str, shapes: tuple[tuple[int, ...], ...]) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(shape, generator=generator).to(device) for shape in shapes)


def iteration(name: str, shape: tuple[int, ...], bars: tuple[Bar, ...], steps: int = 5, which: str = "muon") -> Case:
    given = partial(partial, polynomials=polynomials(steps, which))
    return Case(
        name=f"newton_schulz {name}, {which} {steps}",
        op="newton_schulz",
        make_inputs=lambda seed, device: _gaussian(seed, device, (shape,)),
        variants=(
            Variant(PEER, "Muon", given(baseline.muon)),
            Variant(PLAIN, "on the shorter side", given(baseline.on_shorter_side)),
            Variant(SUBSPAN, "subspan", partial(subspan.newton_schulz, steps=steps, coefficients=which)),
        ),
        reference=given(baseline.by_svd),
        flops=_flops(shape, steps),
        bytes=2 * FLOAT * _entries((shape,)),
        bars=bars,
        backward=False,
        quality=quality,
        source="Muon",
    )


def mixed(name: str, shapes: tuple[tuple[int, ...], ...], bars: tuple[Bar, ...]) -> Case:
    steps = 5
    looped = partial(baseline.looped, polynomials=polynomials(steps, "muon"))
    stacked = partial(baseline.stacked, polynomials=polynomials(steps, "muon"))
    return Case(
        name=f"newton_schulz {name}, muon {steps}",
        op="newton_schulz",
        make_inputs=lambda seed, device: _gaussian(seed, device, shapes),
        variants=(
            Variant(PEER, "Muon", partial(looped, function=baseline.muon)),
            Variant(
                PLAIN, "on the shorter side, stacked by shape", partial(stacked, function=baseline.on_shorter_side)
            ),
            Variant(PLAIN, "Muon, stacked by shape", partial(stacked, function=baseline.muon)),
            Variant(SUBSPAN, "subspan", lambda *matrices: subspan.newton_schulz(list(matrices), steps)),
        ),
        reference=partial(looped, function=baseline.by_svd),
        flops=sum(_flops(shape, steps) for shape in shapes),
        bytes=2 * FLOAT * _entries(shapes),
        bars=bars,
        backward=False,
        quality=quality,
        source="ultralytics, YOLO26n with Muon",
    )


CASES = (
    mixed(f"{len(DETECTOR)} mixed matrices", DETECTOR, (Bar(PEER, 5),)),
    iteration("768×3072", (768, 3072), (Bar(PLAIN, 1.5),)),
    iteration("768×3072", (768, 3072), (), 8, "polar_express"),
    iteration("256²", (256, 256), ()),
    iteration("1024²", (1024, 1024), ()),
)
