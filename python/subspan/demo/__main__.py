"""Learns handwritten digits and texts in several ways, and compares times and results with the code in use today."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

EXTRAS = {"torch": "torch", "sklearn": "scikit-learn", "matplotlib": "matplotlib"}
STUDIES = ("mcr2", "mlc", "crate", "grassmann", "similarity", "householder", "orthogonal", "phm", "sparse", "search")
PICTURE_TYPES = (".png", ".pdf", ".svg")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m subspan.demo", description=__doc__)
    parser.add_argument(
        "--study",
        choices=STUDIES,
        help="mcr2: a representation from labels; mlc: clusters without labels; crate: a white-box transformer; "
        "grassmann: classes as subspaces; similarity: the layers of two networks; householder: a projector with "
        "orthonormal factors; orthogonal: a network of orthogonal layers; phm: a transformer of hypercomplex layers; "
        "sparse: a text encoder that is cheap to search; search: texts by their summaries (default: all ten)",
    )
    parser.add_argument("--steps", type=int, help="optimiser steps of each training (default: the study's own)")
    parser.add_argument("--seed", type=int, default=0, help="of split, weights and batches (default: 0)")
    parser.add_argument(
        "--out", type=Path, default=Path("subspan-demo.png"), metavar="FILE.png", help="picture (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=None, help="CPU threads (default: torch's choice)")
    options = parser.parse_args(arguments)
    if options.steps is not None and options.steps < 1:
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
    from subspan.demo import (
        crate,
        digits,
        grassmann,
        householder,
        mcr2,
        mlc,
        orthogonal,
        phm,
        report,
        search,
        similarity,
        sparse,
    )

    studies = (mcr2, mlc, crate, grassmann, similarity, householder, orthogonal, phm, sparse, search)
    modules = dict(zip(STUDIES, studies, strict=True))
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    print(f"{info.one_line()}, {torch.get_num_threads()} threads\n")
    data = digits.load(options.seed)
    outcomes = []
    for name in STUDIES if options.study is None else [options.study]:
        steps = modules[name].STEPS if options.steps is None else options.steps
        outcomes.append(modules[name].study(data, steps, options.seed))
        print(outcomes[-1], flush=True)
    report.picture(options.out, outcomes)
    print(f"picture: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
