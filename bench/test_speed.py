"""Speed over time with pytest-benchmark, one test per case of bench/run.py, and a check of what it compares with.

pytest bench/test_speed.py --benchmark-save=before
pytest bench/test_speed.py --benchmark-compare=0001 --benchmark-compare-fail=median:10%
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from baselines import coding_rate as baseline
from cases import FAMILIES
from harness.accuracy import exact, relative_errors
from harness.case import Case
from harness.measure import subspan_step
from harness.result import Settings

CASES = [case for family in FAMILIES.values() for case in family]


@pytest.fixture
def threads():
    """torch's thread count is global: what a test sets is put back."""
    previous = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(previous)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.key)
def test_speed(benchmark, case: Case, threads):
    settings = Settings()
    threads(case.threads or settings.threads)
    with torch.set_grad_enabled(case.backward):
        benchmark(subspan_step(case, settings))


N, D, CLASSES, EPS2 = 60, 24, 3, 0.5
SHAPE = {"eps2": EPS2, "num_classes": CLASSES}


def empssl_in_slices(features, labels):
    """The parts that a large case times, put together: they must be parts of the same loss."""
    parts = [baseline.empssl_compression(features, labels, EPS2, range(j, j + 1)) for j in range(CLASSES)]
    return baseline.rate(features, EPS2) - sum(parts)


@pytest.mark.parametrize("dim", [D, 3 * N], ids=["d<n", "d>n"])
@pytest.mark.parametrize(
    "function",
    [
        *(partial(baseline.rate_reduction, **SHAPE, logdet=logdet) for logdet in baseline.LOGDETS.values()),
        *(
            partial(function, **SHAPE)
            for function in (
                baseline.rate_reduction_closed_form,
                baseline.mcr2_rate_reduction,
                baseline.empssl_rate_reduction,
            )
        ),
        empssl_in_slices,
    ],
    ids=["Cholesky", "LU", "closed form", "MCR2", "EMP-SSL", "EMP-SSL in slices"],
)
def test_rate_reductions_agree(function, dim: int):
    generator = torch.Generator().manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(N, dim, generator=generator), dim=1)
    labels = torch.randint(CLASSES, (N,), generator=generator)
    _check(function, partial(baseline.reference_rate_reduction, **SHAPE), features, labels)


@pytest.mark.parametrize("shape", [(2, 40, 24), (2, 24, 40)], ids=["d<n", "d>n"])
@pytest.mark.parametrize(
    "function",
    [
        *(partial(baseline.rate, logdet=logdet) for logdet in baseline.LOGDETS.values()),
        baseline.rate_closed_form,
        baseline.empssl_total_rate,
        baseline.simdino_expansion,
        baseline.crate_rate,
    ],
    ids=["Cholesky", "LU", "closed form", "EMP-SSL", "SimDINO", "CRATE"],
)
def test_rates_agree(function, shape):
    features = torch.nn.functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(0)), dim=-1)
    _check(partial(function, eps2=EPS2), partial(baseline.reference_rate, eps2=EPS2), features)


def _check(function, reference, *inputs):
    errors = relative_errors(function, inputs, exact(reference, inputs, backward=True), backward=True)
    assert max(errors) < 1e-5
