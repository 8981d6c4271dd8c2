"""Threads and processes: the same bits for any number of threads, for callers side by side, and in a forked child."""

from __future__ import annotations

import os
import select
import signal
import threading
import time
import traceback
from collections.abc import Callable

import numpy as np
import pytest
import torch

from op_row import Arguments, Op, Results, Sample, leaves, same, same_results, value_and_gradients
from op_table import OPS, every_op

SECONDS = 60  # a child that has not answered by then hangs


def small_and_large(op: Op, dtype: torch.dtype = torch.float32) -> list[Sample]:
    return [*op.samples(dtype), *op.large(dtype)]


def results(op: Op, samples: list[Sample]) -> list[Results]:
    return [value_and_gradients(op, leaves(op, sample)) for sample in samples]


def assert_same(op: Op, samples: list[Sample], expected: list[Results]) -> None:
    for sample, result in zip(samples, expected, strict=True):
        same_results(op, sample, value_and_gradients(op, leaves(op, sample)), result)


@every_op
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_any_number_of_threads_gives_the_same_bits(op: Op, dtype: torch.dtype) -> None:
    samples = small_and_large(op, dtype)
    torch.set_num_threads(1)
    alone = results(op, samples)
    for threads in (2, 3, 8):
        torch.set_num_threads(threads)
        assert_same(op, samples, alone)


@every_op
def test_python_threads_side_by_side(op: Op) -> None:
    """Four callers at once, each on its own data, with OpenMP threads of their own."""
    torch.set_num_threads(2)
    work = [
        (samples, results(op, samples)) for samples in (small_and_large(op, d) for d in (torch.float32, torch.float64))
    ]
    start = threading.Barrier(4)
    failures: list[str] = []

    def caller(samples: list[Sample], expected: list[Results]) -> None:
        try:
            start.wait()
            for _ in range(3):
                assert_same(op, samples, expected)
        except BaseException:
            failures.append(traceback.format_exc())

    callers = [threading.Thread(target=caller, args=part) for part in work * 2]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join()
    assert not failures, failures[0]


@every_op
def test_python_runs_while_a_kernel_does(op: Op) -> None:
    """The interpreter lock is released: another Python thread gets on during one call."""
    torch.set_num_threads(1)
    sample = max(
        op.large(torch.float64), key=lambda s: max(s.arguments[a].numel() for a in op.array_names(s.arguments))
    )
    arguments = op.change(sample.arguments, lambda t: t.repeat(4, *(1,) * (t.ndim - 1)) if t.ndim > 2 else t)
    for _ in range(20):
        interval: list[float] = []

        def caller(interval: list[float] = interval) -> None:
            interval.append(time.perf_counter())
            op(arguments)
            interval.append(time.perf_counter())

        thread = threading.Thread(target=caller)
        ticks = []
        thread.start()
        while thread.is_alive():
            ticks.append(time.perf_counter())
            time.sleep(0)
        begin, end = interval
        margin = (end - begin) / 4  # beside the call itself the caller holds the lock only at its ends
        if any(begin + margin < tick < end - margin for tick in ticks):
            return
    pytest.fail("no Python thread ran in the middle of any of 20 calls")


# --- processes ---


def in_forked_child(function: Callable[[], None]) -> None:
    """Runs function in a fork of this process; fails on an exception, a crash, or no answer in time."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        message = b""
        try:
            function()
        except BaseException:
            message = traceback.format_exc().encode()
        finally:
            os.write(writer, message or b"ok")
            os._exit(0)
    os.close(writer)
    try:
        ready, _, _ = select.select([reader], [], [], SECONDS)
        if not ready:
            os.kill(child, signal.SIGKILL)
        answer = os.read(reader, 1 << 16) if ready else b""
    finally:
        os.close(reader)
        _, status = os.waitpid(child, 0)
    assert ready, f"the forked child gave no answer within {SECONDS} s"
    assert answer == b"ok", answer.decode() or f"the child ended with status {status}"


fork = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def forward_alone(op: Op, arguments: Arguments, expected: list[np.ndarray]) -> None:
    """Nothing here but the op computes in parallel: torch's own operations hang in a child as well."""
    for output, value in zip(op(arguments), expected, strict=True):
        np.testing.assert_array_equal(output.numpy(), value)


@every_op
@fork
@pytest.mark.no_sanitizer
def test_forked_child_computes(op: Op) -> None:
    """After parallel regions in the parent, whose OpenMP threads the child does not have."""
    torch.set_num_threads(2)
    cases = [sample.arguments for sample in small_and_large(op)]
    expected = [[output.numpy() for output in op(arguments)] for arguments in cases]

    def compute() -> None:
        assert torch.get_num_threads() == 2
        for arguments, values in zip(cases, expected, strict=True):
            forward_alone(op, arguments, values)

    def child() -> None:
        compute()
        in_forked_child(compute)
        failures: list[BaseException] = []
        thread = threading.Thread(target=lambda: failures.extend(raised(compute)))
        torch.set_num_threads(2)
        thread.start()
        thread.join()
        assert not failures, failures

    in_forked_child(child)
    compute()


def raised(function: Callable[[], None]) -> list[BaseException]:
    try:
        function()
    except BaseException as error:
        return [error]
    return []


@every_op
@fork
@pytest.mark.no_sanitizer
def test_forked_child_differentiates(op: Op) -> None:
    """As a worker of a data loader does, with torch on one thread."""
    torch.set_num_threads(2)
    samples = small_and_large(op)
    expected = results(op, samples)

    def child() -> None:
        torch.set_num_threads(1)
        assert_same(op, samples, expected)

    in_forked_child(child)
    assert_same(op, samples, expected)


class Rates(torch.utils.data.Dataset):
    """Computes with every op in the worker process."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        results = [op(op.large(torch.float32)[0].arguments)[0] for op in OPS]
        return torch.tensor([result.double().numpy().sum() for result in results])  # torch's sum depends on threads


@fork
@pytest.mark.no_sanitizer
def test_data_loader_workers_compute() -> None:
    expected = Rates()[0]
    loader = torch.utils.data.DataLoader(Rates(), num_workers=2, timeout=SECONDS, multiprocessing_context="fork")
    batches = list(loader)
    assert len(batches) == 4
    for batch in batches:
        same(batch[0], expected, "in a worker")
