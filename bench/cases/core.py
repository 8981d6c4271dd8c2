"""The micro-kernel that every op multiplies with, against the rate of fused multiply-adds in registers."""

from __future__ import annotations

import time

import torch

import subspan
from harness.case import PLAIN, SUBSPAN, Bar, Case, Variant


def micro_kernel(n: int) -> Case:
    def inputs(seed: int, device: str):
        generator = torch.Generator().manual_seed(seed)
        return tuple(torch.randn(n, n, generator=generator) for _ in range(2))

    repeats = max(2, round(4e8 / (2 * n**3)))

    def framework(a, b) -> float:
        """Best seconds of one product, measured as the micro-kernel measures itself."""
        product, best = torch.empty(n, n), float("inf")
        for _ in range(repeats):
            start = time.perf_counter()
            torch.matmul(a, b, out=product)
            best = min(best, time.perf_counter() - start)
        return best

    def kernel(a, b) -> float:
        return subspan._native.cpu.gemm_benchmark(n, repeats)

    return Case(
        name=f"micro-kernel, fp32 square {n}",
        op="gemm",
        make_inputs=inputs,
        variants=(
            Variant(PLAIN, "torch.matmul", framework, self_timed=True),
            Variant(SUBSPAN, "subspan", kernel, self_timed=True, note="value checked by the test-suite"),
        ),
        reference=None,
        flops=2 * n**3,
        bytes=3 * 4 * n**2,
        bars=(Bar("floor", 0.75),),
        backward=False,
        threads=1,
    )


CASES = tuple(micro_kernel(n) for n in (256, 512, 1024))
