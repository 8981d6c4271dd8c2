"""Writes the README's measured table from the JSON files of a machine's results.

python bench/readme_table.py bench/results/zen5           # rewrites README.md between its "measured" marks
python bench/readme_table.py bench/results/zen5 --check   # says whether README.md is what would be written
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from harness.case import PEER, PLAIN, SUBSPAN
from harness.report import percent, seconds, times

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- measured -->\n", "<!-- /measured -->\n"
FAMILIES = ("coding_rate", "angles", "orthogonal", "phm", "sparse")

# What stands for its family in the README: the calls people make most, whether or not their bar is met.
SHOWN = (
    "spd_logdet 256×32², forward",
    "rate_reduction n=1000 d=128 k=10, forward + backward",
    "rate_reduction n=10000 d=512 k=1000, forward + backward",
    "coding_rate 96×(197×64), forward + backward",
    "soft rate_reduction n=512 d=128 k=512, forward + backward",
    "SubspaceAttention 4×(197×768), forward + backward",
    "small_svdvals 1024×32², forward",
    "principal_angles 4096×(256×8), general bases, forward",
    "subspace_logits 64×768, 200 classes of dimension 8, forward + backward",
    "GrassmannSGD 5 steps 100×(2048×8), forward",
    "SVCCA of all layers, 4 × 3 of 1024×768 and 1024×1024, forward",
    "householder_product 8×(512×512), forward + backward",
    "householder_apply 1×(512×32) on 256 columns, forward + backward",
    "orthonormalize qr 64×(512×64), forward",
    "orthonormalize polar 64×(512×64), forward",
    "cayley 2867×(32×32), forward + backward",
    "newton_schulz 126 mixed matrices, muon 5, forward",
    "orthogonal 512×512, forward + backward",
    "HouseholderLinear 512→512 of rank 10 on 64 rows, forward + backward",
    "StiefelAdam 5 steps 100×(2048×8), forward",
    "Muon step 126 mixed matrices, forward",
    "phm_linear 1024² n=4, learned rule, batch 1, cold weights, forward",
    "phm_linear 1024² n=4, frozen rule, batch 64, forward",
    "phm_linear 512² n=4, batch 256, forward + backward",
    "phm_adapter 768 → 24 → 768, n=4, rank 1, batch 1280, forward + backward",
    "topk_rows 512×8192, k = 8, forward",
    "flops_loss 256×30522, forward + backward",
)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="folder with <family>.json")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args(arguments)

    readme = README.read_text()
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    expected = before + BEGIN + section(options.results) + END + after
    if not options.check:
        README.write_text(expected)
    elif expected != readme:
        print(f"README.md differs from {options.results}: run python bench/readme_table.py {options.results}")
        return 1
    return 0


def section(results: Path) -> str:
    files = [json.loads((results / f"{family}.json").read_text()) for family in FAMILIES]
    cases = [case for file in files for case in file["cases"]]
    return f"{_introduction(files[0]['machine'], cases, results)}\n\n{_table(cases)}\n"


def _introduction(machine: dict[str, str], cases: list[dict], results: Path) -> str:
    barred = [case for case in cases if case["bars"]]
    met = sum(case["verdict"].startswith("met") for case in barred)
    folder = results.resolve().relative_to(README.parent)
    text = (
        f"Measured by `bench/run.py` on an {machine['CPU']}, {machine['cores']}, {machine['BLAS'].split(';')[0]}, "
        "float32 unless a row says otherwise: one run of each family, on a shared machine whose speed varies. *Plain "
        "PyTorch* is the fastest of the ways in public operations, *copied* the published code; *floor* is the least "
        "work at the measured peak; the bars are the project's own. "
        f"{met} of {len(barred)} bars are met; a selection, met or not, is below. All rows, with accuracy and memory, "
        f"are in [{folder}]({folder}), and what keeps a row from its bar, with tables of another processor, in "
        "[bench/results](bench/results/README.md)."
    )
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def _table(cases: list[dict]) -> str:
    lines = [
        "| case | subspan | best plain PyTorch | × plain | × copied | % of floor | bar |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    titled = {_title(case): case for case in cases}
    if missing := [title for title in SHOWN if title not in titled]:
        raise SystemExit(f"not measured: {missing}")
    return "\n".join([*lines, *(_row(titled[title]) for title in SHOWN)])


def _title(case: dict) -> str:
    return f"{case['name']}, {case['direction']}"


def _row(case: dict) -> str:
    ours = next(variant for variant in case["variants"] if variant["kind"] == SUBSPAN)
    plain = _fastest(case, PLAIN)
    copied = _fastest(case, PEER)
    cells = [
        _title(case),
        seconds(ours["median_s"]),
        f"{seconds(plain['median_s'])} ({plain['label']})" if plain else "–",
        times(case["ratio_plain"]) if plain else "–",
        ("≥ " if copied["scale"] != 1 else "") + times(case["ratio_copied"]) if copied else "–",
        percent(case["floor_fraction"]),
        case["verdict"] or "–",
    ]
    return "| " + " | ".join(cells) + " |"


def _fastest(case: dict, kind: str) -> dict | None:
    timed = [v for v in case["variants"] if v["kind"] == kind and v["median_s"] is not None and not v["problem"]]
    return min(timed, key=lambda variant: variant["median_s"], default=None)


if __name__ == "__main__":
    sys.exit(main())
