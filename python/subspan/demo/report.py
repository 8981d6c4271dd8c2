"""The demo's table, picture and progress line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from subspan.demo.digits import Run

COPIED_COLOUR, SUBSPAN_COLOUR, REST_COLOUR = "#e69f00", "#0072b2", "#b8b8b8"  # apart for colour-blind readers too


@dataclass
class Summary:
    """What is reported of one run; times in milliseconds are medians over its steps."""

    name: str
    loss_ms: float
    rest_ms: float
    step_ms: float
    total_s: float
    final_loss: float
    accuracy: float


def summarise(run: Run, accuracy: float) -> Summary:
    rest = [step - loss for step, loss in zip(run.step_seconds, run.loss_seconds, strict=True)]
    return Summary(
        name=run.name,
        loss_ms=1e3 * median(run.loss_seconds),
        rest_ms=1e3 * median(rest),
        step_ms=1e3 * median(run.step_seconds),
        total_s=sum(run.step_seconds),
        final_loss=run.losses[-1],
        accuracy=accuracy,
    )


def largest_difference(first: Run, second: Run) -> tuple[float, float]:
    """Largest distance of two loss curves, absolute and relative to the largest loss."""
    absolute = max(abs(a - b) for a, b in zip(first.losses, second.losses, strict=True))
    return absolute, absolute / max(abs(a) for a in first.losses)


def table(copied: Summary, ours: Summary, difference: tuple[float, float]) -> str:
    """The comparison as text; a ratio below 1 is printed like any other."""

    def timed(label: str, before: float, after: float, digits: int) -> str:
        return f"{label:<34}{before:>20.{digits}f}{after:>12.{digits}f}{before / after:>9.1f}x"

    saved = copied.total_s - ours.total_s
    return "\n".join(
        [
            f"{'':<34}{copied.name:>20}{ours.name:>12}{'ratio':>10}",
            timed("loss, forward + backward [ms]", copied.loss_ms, ours.loss_ms, 2),
            timed("network and optimiser [ms]", copied.rest_ms, ours.rest_ms, 2),
            timed("whole step [ms]", copied.step_ms, ours.step_ms, 2),
            timed("whole training [s]", copied.total_s, ours.total_s, 1),
            f"{'final loss':<34}{copied.final_loss:>20.5f}{ours.final_loss:>12.5f}",
            f"{'test accuracy, nearest subspace':<34}{copied.accuracy:>20.1%}{ours.accuracy:>12.1%}",
            "",
            f"loss curves: largest difference {difference[0]:.1e}, relative {difference[1]:.1e}",
            f"time saved: {saved:.1f} s of {copied.total_s:.1f} s ({saved / copied.total_s:.0%})",
            "",
            "Times of a step are medians; the trainings alternate step by step, same batches, same initial weights.",
            "'As copied' keeps the published code's dense n x n memberships and loop over classes, but not the second",
            "evaluation it makes for its log. In a clone, bench/run.py compares with the best plain PyTorch as well.",
        ]
    )


def picture(path: Path, runs: tuple[Run, Run], summaries: tuple[Summary, Summary], similarity: Tensor) -> None:
    """Loss curves, time of a step, and the learned subspaces, in one image."""
    figure = Figure(figsize=(13, 4), layout="constrained")
    curves, bars, blocks = figure.subplots(1, 3, width_ratios=(1.2, 0.9, 1.0))
    draw_losses(curves, runs)
    draw_step_times(bars, summaries)
    image = blocks.imshow(similarity.numpy(), vmin=0, vmax=1, cmap="magma", interpolation="antialiased")
    blocks.set(title=r"$|ZZ^\top|$ of the test digits, sorted by class", xticks=[], yticks=[])
    figure.colorbar(image, ax=blocks, shrink=0.85)
    figure.savefig(path, dpi=150)


def draw_losses(axes: Axes, runs: tuple[Run, Run]) -> None:
    copied, ours = runs
    steps = range(1, len(copied.losses) + 1)
    axes.plot(steps, copied.losses, color=COPIED_COLOUR, linewidth=6, alpha=0.6, label=copied.name)
    axes.plot(steps, ours.losses, color=SUBSPAN_COLOUR, linewidth=1.5, label=ours.name)
    axes.set(title="Same loss", xlabel="step", ylabel=r"$R_c - R$")
    axes.legend(frameon=False)


def draw_step_times(axes: Axes, summaries: tuple[Summary, Summary]) -> None:
    """Stacked bars: the loss below, the rest of the step on top."""
    names = [summary.name for summary in summaries]
    losses = [summary.loss_ms for summary in summaries]
    steps = [summary.step_ms for summary in summaries]
    rests = [step - loss for step, loss in zip(steps, losses, strict=True)]
    axes.bar(names, losses, color=[COPIED_COLOUR, SUBSPAN_COLOUR], width=0.6)
    axes.bar(names, rests, bottom=losses, color=REST_COLOUR, width=0.6, label="network and optimiser")
    for place, (loss, step) in enumerate(zip(losses, steps, strict=True)):
        label = f"loss {loss:.1f} ms\nstep {step:.1f} ms"
        axes.annotate(label, (place, step), ha="center", va="bottom", xytext=(0, 3), textcoords="offset points")
    axes.set(title="Time of a step (median)", ylabel="ms", ylim=(0, 1.35 * max(steps)))
    axes.legend(frameon=False, loc="upper right")


@contextmanager
def progress_line(total: int) -> Iterator[Callable[[int], None]]:
    """Yields a callback for the number of steps done: tqdm's bar if installed, a line on a terminal, else silence."""
    try:
        from tqdm import tqdm
    except ImportError:
        tqdm = None
    if tqdm is not None:
        with tqdm(total=total, desc="training both", unit="step", leave=False) as bar:
            yield lambda done: bar.update(done - bar.n)
    elif sys.stderr.isatty():
        yield lambda done: print(f"\rtraining both: step {done}/{total}", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
    else:
        yield lambda done: None
