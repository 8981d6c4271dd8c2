"""Where the time of a call goes: in compiled code, or around it.

    python bench/breakdown.py --family phm                # every case, with two threads and with one
    python bench/breakdown.py --case adapter --output phm_breakdown.md
    python bench/breakdown.py --missed bench/results/zen4/phm.json    # what misses its bar there

For each case the step that `bench/run.py` times, subspan's alone: how long it takes, how much of that is spent in the
compiled module, and in how many calls; the rest is Python, autograd, and the framework's own operations. Then the same
with one thread, what part of the floor the compiled code alone reaches, and how many pages of memory the system maps in
a step: half a microsecond each and more on virtual machines, they are those of results that the C library gave back to
the system after the step before.

With `--missed` the table also says what was asked and reached in those results, and what part of the floor a time that
meets the bar would be: near 100 % or beyond, the others are as fast as the machine.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import BuiltinFunctionType, ModuleType
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))


class Clock:
    """Seconds spent in the compiled module, whose functions it stands in for."""

    def __init__(self) -> None:
        self.seconds, self.calls = 0.0, 0

    def timed(self, function: Callable) -> Callable:
        def call(*arguments):
            start = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                self.seconds += time.perf_counter() - start
                self.calls += 1

        return call

    def install(self) -> None:
        """Before subspan is imported, since its operations take hold of the functions when they are registered."""
        package = importlib.util.find_spec("subspan")
        if package is None or not package.submodule_search_locations:
            raise ImportError("subspan is not installed")
        for folder in package.submodule_search_locations:
            for file in sorted(Path(folder).glob("_cpu_*.so")) + sorted(Path(folder).glob("_cpu_*.pyd")):
                name = f"subspan.{file.name.split('.')[0]}"
                sys.modules[name] = _Timed(name, file, self)


class _Timed(ModuleType):
    """The compiled module of a CPU level, loaded when it is first used: not every level runs on every machine."""

    def __init__(self, name: str, file: Path, clock: Clock) -> None:
        super().__init__(name)
        self.__spec__ = importlib.util.spec_from_file_location(name, file)
        self._clock = clock

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        if "_module" not in self.__dict__:
            self._module = importlib.util.module_from_spec(self.__spec__)
            self.__spec__.loader.exec_module(self._module)
        value = getattr(self._module, name)
        timed = self._clock.timed(value) if isinstance(value, BuiltinFunctionType) else value
        setattr(self, name, timed)
        return timed


CLOCK = Clock()
CLOCK.install()

import torch  # noqa: E402

from cases import FAMILIES  # noqa: E402
from harness import machine  # noqa: E402
from harness.case import SUBSPAN, Case  # noqa: E402
from harness.measure import subspan_step  # noqa: E402
from harness.report import percent, seconds, times  # noqa: E402
from harness.result import Settings  # noqa: E402

SECONDS = 0.4  # of steps for each number of threads


@dataclass
class Step:
    """Medians over the steps of a case."""

    whole: float
    compiled: float
    calls: float
    pages: float


def measure(case: Case, threads: int) -> Step:
    torch.set_num_threads(threads)
    with torch.set_grad_enabled(case.backward):
        step = subspan_step(case, Settings(threads=threads))
        step()
        whole, compiled, calls, pages = [], [], [], []
        begin = time.perf_counter()
        while len(whole) < 5 or (len(whole) < 500 and time.perf_counter() - begin < SECONDS):
            CLOCK.seconds, CLOCK.calls = 0.0, 0
            faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            start = time.perf_counter()
            step()
            whole.append(time.perf_counter() - start)
            pages.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults)
            compiled.append(CLOCK.seconds)
            calls.append(CLOCK.calls)
    return Step(*map(statistics.median, (whole, compiled, calls, pages)))


def row(case: Case, threads: int) -> list[str]:
    used = case.threads or threads
    peaks = [machine.fma_peak("cpu", used)]
    step, single = measure(case, used), measure(case, 1)
    peaks.append(machine.fma_peak("cpu", used))
    floor = max(case.flops / max(peaks), case.bytes / machine.copy_bandwidth("cpu", used, case.bytes))
    reached = percent(floor / step.compiled) if step.compiled else "–"
    return [
        case.title,
        seconds(step.whole),
        seconds(step.compiled),
        f"{step.calls:.0f}",
        seconds(max(step.whole - step.compiled, 0.0)),
        f"{step.pages:.0f}",
        reached,
        seconds(single.whole),
        seconds(single.compiled),
    ]


def asked(result: dict[str, Any]) -> list[str]:
    """Of a row of results: its bars, with what a time that meets them would be of the floor, and what was reached."""
    bars, reached = [], [f"{percent(result['floor_fraction'])} of floor"]
    for bar in result["bars"]:
        against, ratio = bar["against"], bar["ratio"]
        if against == "floor":
            bars.append(f"{percent(ratio)} of floor")
            continue
        timed = [v for v in result["variants"] if v["rounds_s"]]
        own = next(v for v in timed if v["kind"] == SUBSPAN)
        rivals = [v for v in timed if v["kind"] == against or (v is not own and v["label"].startswith(against))]
        best = min(rivals, key=lambda v: v["median_s"])
        ratios = [theirs / ours for theirs, ours in zip(best["rounds_s"], own["rounds_s"], strict=True)]
        bars.append(f"{ratio:.3g}× {against} ({percent(result['floor_s'] * ratio / best['median_s'])} of floor)")
        reached.append(f"{times(statistics.median(ratios))} {against}")
    return [", ".join(bars), ", ".join(reached)]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", action="append", choices=list(FAMILIES), help="may be repeated; default: all")
    parser.add_argument("--case", default="", metavar="SUBSTRING", help="only cases with this in their name")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, help="a file, instead of the terminal")
    parser.add_argument("--missed", type=Path, action="append", help="results in JSON: only what misses its bar there")
    options = parser.parse_args(arguments)
    cases = [case for family in options.family or FAMILIES for case in FAMILIES[family]]
    cases = [c for c in cases if options.case.lower() in c.key and not c.subspan.self_timed]
    found = [r for file in options.missed or () for r in json.loads(file.read_text())["cases"]]
    missed = {(r["name"], r["direction"]): r for r in found if r["verdict"] == "not met"}
    if options.missed:
        cases = [case for case in cases if (case.name, case.direction) in missed]
    lines = [f"- {name}: {text}" for name, text in machine.describe("cpu", options.threads).items()]
    columns: tuple[str, ...] = (
        "case",
        "step",
        "compiled",
        "calls",
        "around it",
        "pages",
        "% of floor",
        "step, 1 thread",
        "compiled, 1",
    )
    if options.missed:
        columns = (columns[0], "asked", "reached", *columns[1:])
    lines += ["", f"| {' | '.join(columns)} |", f"| {' | '.join('---' for _ in columns)} |"]
    for case in cases:
        print(case.name, file=sys.stderr)
        cells = row(case, options.threads)
        if options.missed:
            cells[1:1] = asked(missed[case.name, case.direction])
        lines.append(f"| {' | '.join(cells)} |")
    text = "\n".join(lines) + "\n"
    if options.output:
        options.output.write_text(text)
    else:
        print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
