"""Trains one representation of handwritten digits with two implementations of its loss, and compares them."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

EXTRAS = {"torch": "torch", "sklearn": "scikit-learn", "matplotlib": "matplotlib"}
PICTURE_TYPES = (".png", ".pdf", ".svg")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m subspan.demo", description=__doc__)
    parser.add_argument("--steps", type=int, default=300, help="optimiser steps of each training (default: 300)")
    parser.add_argument("--seed", type=int, default=0, help="of split, weights and batches (default: 0)")
    parser.add_argument(
        "--out", type=Path, default=Path("subspan-demo.png"), metavar="FILE.png", help="picture (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=None, help="CPU threads (default: torch's choice)")
    options = parser.parse_args(arguments)
    if options.steps < 1:
        parser.error(f"--steps: expected at least 1, got {options.steps}")
    if options.threads is not None and options.threads < 1:
        parser.error(f"--threads: expected at least 1, got {options.threads}")
    if options.out.suffix.lower() not in PICTURE_TYPES:
        parser.error(f"--out: expected a name ending in {', '.join(PICTURE_TYPES)}, got {options.out}")
    if not options.out.absolute().parent.is_dir():
        parser.error(f"--out: no such directory: {options.out.absolute().parent}")
    return options


def missing_extras() -> dict[str, str]:
    """Distribution name of each extra that cannot be imported, with the reason."""
    missing = {}
    for module, distribution in EXTRAS.items():
        try:
            importlib.import_module(module)
        except ImportError as error:
            missing[distribution] = str(error)
    return missing


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    missing = missing_extras()
    if missing:
        for distribution, reason in missing.items():
            print(f"subspan.demo needs {distribution}: {reason}", file=sys.stderr)
        print('to install: pip install "subspan[demo]" (in a clone: pip install ".[demo]")', file=sys.stderr)
        return 1

    import torch

    from subspan import info
    from subspan.demo import digits, report

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    data = digits.load(options.seed)
    copied, ours = digits.prepare(options.steps, options.seed)
    print(
        f"maximal coding rate reduction on {len(data.train_labels)} handwritten digits: batch {digits.BATCH}, "
        f"{digits.FEATURES} features, {digits.CLASSES} classes, eps {digits.EPS2}, {options.steps} steps\n"
        f"{info.one_line()}, {torch.get_num_threads()} threads\n"
    )
    with report.progress_line(options.steps) as progress:
        digits.train(data, (copied, ours), options.seed, progress)
    summaries = (
        report.summarise(copied, digits.nearest_subspace_accuracy(copied.network, data)),
        report.summarise(ours, digits.nearest_subspace_accuracy(ours.network, data)),
    )
    print(report.table(*summaries, report.largest_difference(copied, ours)))
    report.picture(options.out, (copied, ours), summaries, digits.sorted_similarity(ours.network, data))
    print(f"picture: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
