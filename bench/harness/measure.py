"""Times the variants of a case in turn, beside their accuracy, their memory and the machine's limits."""

from __future__ import annotations

import contextlib
import gc
import math
import os
import signal
import statistics
import sys
import time
import warnings
from dataclasses import replace

import torch
from torch import Tensor

from . import machine
from .accuracy import Exact, exact, relative_errors
from .case import COMPILED, PLAIN, SUBSPAN, Case, Variant
from .result import Measurement, Result, Settings
from .upstream import upstream_of

SAMPLE_SECONDS = 1e-3  # a sample repeats the step until it lasts at least this long
STEPS_BEFORE = 3  # of a short step, not timed
COMPILE_LIMIT = 60.0  # seconds after which torch.compile is given up
WRONG_ANSWER = 1e-2  # relative error of a baseline that is no rounding error: it computes something else
CUDA_CACHE_BYTES = 2**28  # written before each timed call on a GPU, so that its L2 cache is cold


def run_case(case: Case, settings: Settings) -> Result:
    """All variants of one case on the same inputs, in one process, round-robin."""
    threads = case.threads or settings.threads
    previous = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.set_grad_enabled(case.backward):
            inputs = _inputs(case, settings)
            measurements = _prepare(case, inputs, settings)
            running = [m for m in measurements if not m.problem]
            interference = machine.Interference()
            with interference:
                before = _limits(case, settings.device, threads)
                _time_in_turn(running, settings)
                after = _limits(case, settings.device, threads)
            for m in running:
                if not m.variant.self_timed:
                    _clear_gradients(inputs)
                    gc.collect()
                    m.extra_bytes = machine.peak_extra_bytes(m.step, settings.device)
    finally:
        torch.set_num_threads(previous)
    eps = next((torch.finfo(x.dtype).eps for x in inputs if x.is_floating_point()), torch.finfo(torch.float32).eps)
    # The clock of a shared machine drifts: of two readings, the one that makes the floor harder to reach.
    peak, bandwidth = map(max, before, after)
    return Result(case, measurements, threads, peak, bandwidth, interference.cores, eps)


def _limits(case: Case, device: str, threads: int) -> tuple[float, float]:
    return machine.fma_peak(device, threads), machine.copy_bandwidth(device, threads, case.bytes)


# --- preparing: inputs, accuracy, compilation -------------------------------------------------------------------


def _inputs(case: Case, settings: Settings) -> tuple[Tensor, ...]:
    inputs = case.make_inputs(settings.seed, settings.device)
    for x in inputs:
        x.requires_grad_(case.backward and x.is_floating_point())
    return inputs


def _prepare(case: Case, inputs: tuple[Tensor, ...], settings: Settings) -> list[Measurement]:
    """Runs every variant once, compares it with the float64 reference, estimates its time; adds the compiled one."""
    expected = None if case.reference is None else exact(case.reference, inputs, case.backward)
    measurements = [_first_run(case, variant, inputs, expected, settings) for variant in case.variants]
    plain = [m for m in measurements if m.variant.kind == PLAIN and not m.problem]
    if plain and not plain[0].variant.self_timed:
        fastest = min(plain, key=lambda m: m.estimate)
        compiled = Variant(COMPILED, f"of {fastest.variant.label}")
        if settings.quick:
            measurements.append(Measurement(compiled, problem="n/a: left out of a quick run"))
        else:
            measurements.append(_compile(case, replace(compiled, function=fastest.variant.function), inputs, expected))
    return measurements


def _first_run(case: Case, variant: Variant, inputs, expected: Exact | None, settings: Settings) -> Measurement:
    if variant.skip:
        return Measurement(variant, problem=variant.skip)
    m = Measurement(variant, step=_step(case, variant, inputs))
    try:
        if variant.has_value and expected is not None:
            with _quiet():
                m.value_error, m.gradient_error = relative_errors(variant.function, inputs, expected, case.backward)
            if variant.kind != SUBSPAN and not m.worst_error < WRONG_ANSWER:
                m.problem = f"wrong answer: relative error {m.worst_error:.1e}"
                return m
        if variant.has_value and case.quality is not None:
            with torch.no_grad():
                m.quality = case.quality(variant.function(*inputs))
        m.step()
        m.estimate = _sample(m, 1, settings.device)
    except (RuntimeError, ValueError, TypeError, MemoryError) as error:
        m.problem = f"raised {type(error).__name__}: {_first_line(error)}"
    return m


@contextlib.contextmanager
def _quiet():
    """Keeps what a failing LAPACK prints, thousands of lines past Python's streams, out of the report."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(stream) for stream in (1, 2)]
    with open(os.devnull, "wb") as nothing:
        for stream in (1, 2):
            os.dup2(nothing.fileno(), stream)
    try:
        yield
    finally:
        for stream, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, stream)
            os.close(copy)


def _compile(case: Case, variant: Variant, inputs, expected: Exact) -> Measurement:
    torch.compiler.reset()
    variant = replace(variant, function=torch.compile(variant.function, dynamic=False))
    m = Measurement(variant, step=_step(case, variant, inputs))
    started = time.perf_counter()
    try:
        with _time_limit(COMPILE_LIMIT), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the compiler's deprecations are not ours
            m.step()
            m.step()
        m.variant = replace(variant, note=f"compiled in {time.perf_counter() - started:.0f} s")
        m.value_error, m.gradient_error = relative_errors(variant.function, inputs, expected, case.backward)
        m.estimate = _sample(m, 1, inputs[0].device.type)
    except Exception as error:  # the compiler raises many kinds, and none of them is ours to judge
        m.problem = f"n/a: {_first_line(error)}"
    return m


@contextlib.contextmanager
def _time_limit(seconds: float):
    def give_up(*_):
        raise TimeoutError(f"compilation takes more than {seconds:.0f} s")

    previous = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:100]


# --- time -------------------------------------------------------------------------------------------------------


def subspan_step(case: Case, settings: Settings):
    """The timed call of subspan alone, for other clocks."""
    return _step(case, case.subspan, _inputs(case, settings))


def _step(case: Case, variant: Variant, inputs):
    """The timed call: forward, or forward and backward with gradients cleared first."""
    function = variant.function
    if not case.backward or variant.self_timed:

        def forward():
            return function(*inputs)

        return forward

    def forward_and_backward():
        _clear_gradients(inputs)
        value = function(*inputs)
        value.backward(upstream_of(value))

    return forward_and_backward


def _clear_gradients(inputs) -> None:
    for x in inputs:
        x.grad = None


def _time_in_turn(running: list[Measurement], settings: Settings) -> None:
    """One sample of each variant per round; the order rotates, so that none always follows the same neighbour."""
    repeats = [max(1, math.ceil(SAMPLE_SECONDS / m.estimate)) for m in running]
    gc.collect()
    gc.disable()
    try:
        started, rounds = time.perf_counter(), 0
        while rounds < settings.min_rounds or (
            rounds < settings.max_rounds and time.perf_counter() - started < settings.budget
        ):
            for i in range(len(running)):
                j = (i + rounds) % len(running)
                seconds = _sample(running[j], repeats[j], settings.device)
                running[j].seconds.append(running[j].variant.scale * seconds)
            rounds += 1
    finally:
        gc.enable()


def _sample(m: Measurement, repeats: int, device: str) -> float:
    """Seconds of one step, averaged over the repeats; short steps are run before, to be timed as in a loop."""
    step = m.step
    if m.variant.self_timed:
        return step()
    if device == "cuda":
        return _cuda_sample(step, repeats)
    if m.estimate < 10 * SAMPLE_SECONDS:
        for _ in range(STEPS_BEFORE):
            step()
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    return (time.perf_counter() - start) / repeats


def _cuda_sample(step, repeats: int) -> float:
    flush = torch.empty(CUDA_CACHE_BYTES, dtype=torch.uint8, device="cuda")
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for start, end in events:
        flush.zero_()
        start.record()
        step()
        end.record()
    torch.cuda.synchronize()
    return statistics.fmean(start.elapsed_time(end) for start, end in events) / 1e3
