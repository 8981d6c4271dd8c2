"""Times subspan against the code people copy and the best plain PyTorch: `python bench/run.py --help`."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

# The compiler's worker processes would keep the cores busy while the next case is timed.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))

import torch

from cases import FAMILIES
from harness import machine, report
from harness.measure import run_case
from harness.result import BUSY_CORES, Result, Settings


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    cases = [
        (family, index)
        for family in options.family
        for index, case in enumerate(FAMILIES[family])
        if options.case.lower() in case.key
    ]
    if not cases:
        print(f"no case of {', '.join(options.family)} has {options.case!r} in its name", file=sys.stderr)
        return 2

    cores, busiest = machine.others_now()
    if cores is not None and cores > BUSY_CORES and not options.force:
        print(f"refusing to time: others use {_usage(cores, busiest)}; wait, or --force", file=sys.stderr)
        return 3

    header = machine.describe(options.device, options.threads)
    header["other processes"] = "unknown" if cores is None else _usage(cores, busiest)
    if cores is None or cores > BUSY_CORES:
        header["other processes"] += "; **timed all the same (--force)**" if options.force else ""
    settings = Settings(options.device, options.threads, options.seed, options.quick)
    results = [_run(family, index, settings) for family, index in cases]
    header["measured limits"] = _limits(results)
    if options.quick:
        header["quick run"] = "few rounds, nothing compiled: not for quoting"
    _write(options, header, results)
    return 1 if any(result.failure for result in results) else 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", action="append", choices=list(FAMILIES), help="may be repeated; default: all")
    parser.add_argument(
        "--case", default="", metavar="SUBSTRING", help="only cases with this in their name, × written x"
    )
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="JSON to FILE, or instead of the table")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--plot", metavar="FILE", help="picture of the speed-ups, .png or .svg")
    parser.add_argument("--quick", action="store_true", help="few rounds, no torch.compile")
    parser.add_argument("--force", action="store_true", help="run although other processes keep the cores busy")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    options.family = options.family or list(FAMILIES)
    if options.device == "cuda":
        options.family = [family for family in options.family if family != "core"]  # the micro-kernel of the CPU
    return options


def _run(family: str, index: int, settings: Settings) -> Result:
    """In a process of its own: the memory that one case leaves is not the next one's."""
    case = FAMILIES[family][index]
    print(f"{case.name} ...", end=" ", file=sys.stderr, flush=True)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        result = replace(pool.submit(_run_here, family, index, settings).result(), case=case)
    print(result.verdict, file=sys.stderr)
    return result


def _run_here(family: str, index: int, settings: Settings) -> Result:
    """Without its functions, which cannot be sent to another process."""
    torch.set_num_threads(settings.threads)
    torch.set_float32_matmul_precision("highest")
    result = run_case(FAMILIES[family][index], settings)
    for m in result.measurements:
        m.step, m.variant = None, replace(m.variant, function=None)
    return replace(result, case=None)


def _usage(cores: float, busiest: list[str]) -> str:
    return f"{cores:.2f} cores" + (f" ({', '.join(busiest)})" if busiest else "")


def _limits(results: list[Result]) -> str:
    """The range over the run: the clock of a shared machine is no constant, so each case has its own reading."""
    texts = []
    for threads in sorted({result.threads for result in results}):
        peaks = [result.peak / 1e9 for result in results if result.threads == threads]
        texts.append(f"float32 peak with {threads} thread{'s' * (threads > 1)} {min(peaks):.0f}–{max(peaks):.0f} GF/s")
    bandwidths = [result.bandwidth / 1e9 for result in results]
    texts.append(f"copy at the cases' footprints {min(bandwidths):.0f}–{max(bandwidths):.0f} GB/s")
    return ", ".join(texts)


def _write(options: argparse.Namespace, header: dict[str, str], results: list[Result]) -> None:
    if options.json:
        text = json.dumps(report.as_json(header, results), indent=1, ensure_ascii=False)
        if options.json == "-":
            print(text)
        else:
            Path(options.json).write_text(text + "\n")
    if options.json != "-":
        print(report.markdown(header, results))
    if options.plot:
        from harness.plot import plot

        plot(header, results, options.plot)


if __name__ == "__main__":
    sys.exit(main())
