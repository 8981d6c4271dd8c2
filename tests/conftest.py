"""Settings shared by all tests, and the count of what the op table was put through."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share the cores, and a thread that spins at a barrier keeps another worker from its core. Read by OpenMP
    # when torch loads it.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

# On a busy machine a deadline fails for no fault of the code. CI always draws the same examples.
hypothesis.settings.register_profile("default", deadline=None, max_examples=60)
hypothesis.settings.register_profile("ci", deadline=None, max_examples=60, derandomize=True, database=None)
hypothesis.settings.register_profile("short", deadline=None, max_examples=15, derandomize=True, database=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "default"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """As many workers as `-n auto` starts: each holds torch and a thread for every core."""
    return min(8, len(os.sched_getaffinity(0)))


@pytest.fixture(autouse=True)
def torch_as_found() -> Iterator[None]:
    """Seeds torch; gives back the thread count and default dtype that a test has changed."""
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="no CUDA device")
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(skip)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = (yield).get_result()
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    if hasattr(parameters.get("op"), "differentiable"):
        report.every_op = (parameters["op"].name, item.originalname)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """How many pairs of op and check ran, and how they ended."""
    outcomes: dict[tuple[str, str], str] = {}
    for outcome in ("passed", "skipped", "failed", "error"):
        for report in terminalreporter.stats.get(outcome, []):
            if hasattr(report, "every_op"):
                outcomes[report.every_op] = outcome
    if outcomes:
        ops, checks = (len({pair[i] for pair in outcomes}) for i in (0, 1))
        counts = ", ".join(f"{count} {outcome}" for outcome, count in Counter(outcomes.values()).items())
        terminalreporter.write_line(f"op table: {ops} ops x {checks} checks: {counts}")
