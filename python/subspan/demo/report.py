"""Tables, picture and progress line of the studies."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from subspan.demo.training import Run, largest_difference

BEFORE_COLOUR, SUBSPAN_COLOUR, REST_COLOUR = "#e69f00", "#0072b2", "#b8b8b8"  # apart for colour-blind readers too
PANELS = 3


@dataclass
class Outcome:
    """What a study found: its part of the printed report, and one drawing for each panel of its row of the picture."""

    title: str
    setting: str
    text: str
    panels: tuple[Callable[[Axes], None], ...]

    def __str__(self) -> str:
        return f"{self.title}\n{self.setting}\n\n{self.text}\n"


class Table:
    """A column for each name and, where a row has one, the ratio of the last two, before / after.

    A ratio below 1 is printed like any other.
    """

    def __init__(self, *names: str) -> None:
        self.names = names
        self.widths = [max(12, len(name) + 2) for name in names]
        self.lines: list[str] = []
        self.has_ratios = False

    def row(self, label: str, values: Iterable[float | None], form: str, ratio: bool = False) -> None:
        """A value of None leaves its place empty."""
        values = list(values)
        texts = ["" if value is None else format(value, form) for value in values]
        before, after = values[-2:]
        self.has_ratios = self.has_ratios or ratio
        quotient = f"{before / after:>9.1f}x" if ratio and before is not None and after is not None else ""
        self.lines.append(f"{label:<34}{self._columns(texts)}{quotient}".rstrip())

    def times(self, *runs: Run, part: str | None = None) -> None:
        """Rows of times; those of the loss and of the rest of a step where what the loss contains has a name."""

        def milliseconds(label: str, seconds: Callable[[Run], list[float]]) -> None:
            self.row(f"{label} [ms]", (1e3 * median(seconds(run)) for run in runs), ".2f", ratio=True)

        if part is not None:
            milliseconds(part, lambda run: run.loss_seconds)
            milliseconds("network and optimiser", rest_seconds)
        milliseconds("whole step", lambda run: run.step_seconds)
        self.row("whole training [s]", (sum(run.step_seconds) for run in runs), ".1f", ratio=True)

    def text(self) -> str:
        heading = f"{'':<34}{self._columns(self.names)}{'ratio' if self.has_ratios else '':>10}"
        return "\n".join([heading.rstrip(), *self.lines])

    def _columns(self, texts: Iterable[str]) -> str:
        return "".join(text.rjust(width) for text, width in zip(texts, self.widths, strict=True))


def rest_seconds(run: Run) -> list[float]:
    """What each step took besides its loss."""
    return [step - loss for step, loss in zip(run.step_seconds, run.loss_seconds, strict=True)]


def agreement(copied: Run, ours: Run) -> str:
    """How far the loss curves are apart, and the time saved."""
    absolute, relative = largest_difference(copied, ours)
    total = sum(copied.step_seconds)
    saved = total - sum(ours.step_seconds)
    return (
        f"loss curves: largest difference {absolute:.1e}, relative {relative:.1e}\n"
        f"time saved: {saved:.1f} s of {total:.1f} s ({saved / total:.0%})"
    )


def picture(path: Path, outcomes: list[Outcome]) -> None:
    """One image, one row for each study."""
    figure = Figure(figsize=(13, 4 * len(outcomes)), layout="constrained")
    rows = figure.subplots(len(outcomes), PANELS, squeeze=False, width_ratios=(1.2, 0.9, 1.0))
    for row, outcome in zip(rows, outcomes, strict=True):
        for axes, draw in zip(row, outcome.panels, strict=True):
            draw(axes)
    figure.savefig(path, dpi=150)


def draw_losses(axes: Axes, before: Run, after: Run, title: str, quantity: str, width: float = 6) -> None:
    """`width` is that of the first curve: wide, so that one of equal values leaves it visible."""
    steps = range(1, len(before.losses) + 1)
    axes.plot(steps, before.losses, color=BEFORE_COLOUR, linewidth=width, alpha=0.6, label=before.name)
    axes.plot(steps, after.losses, color=SUBSPAN_COLOUR, linewidth=1.5, label=after.name)
    axes.set(title=title, xlabel="step", ylabel=quantity)
    axes.legend(frameon=False)


def draw_step_times(axes: Axes, before: Run, after: Run) -> None:
    """Stacked bars: the loss below, the rest of the step on top."""
    runs = (before, after)
    losses = [1e3 * median(run.loss_seconds) for run in runs]
    steps = [1e3 * median(run.step_seconds) for run in runs]
    rests = [step - loss for step, loss in zip(steps, losses, strict=True)]
    names = [run.name for run in runs]
    axes.bar(names, losses, color=[BEFORE_COLOUR, SUBSPAN_COLOUR], width=0.6)
    axes.bar(names, rests, bottom=losses, color=REST_COLOUR, width=0.6, label="network and optimiser")
    for place, (loss, step) in enumerate(zip(losses, steps, strict=True)):
        label = f"loss {loss:.1f} ms\nstep {step:.1f} ms"
        axes.annotate(label, (place, step), ha="center", va="bottom", xytext=(0, 3), textcoords="offset points")
    axes.set(title="Time of a step (median)", ylabel="ms", ylim=(0, 1.35 * max(steps)))
    axes.legend(frameon=False, loc="upper right")


def draw_blocks(axes: Axes, matrix: Tensor, largest: float, title: str, smallest: float = 0.0) -> None:
    image = axes.imshow(matrix.numpy(), vmin=smallest, vmax=largest, cmap="magma", interpolation="antialiased")
    axes.set(title=title, xticks=[], yticks=[])
    axes.figure.colorbar(image, ax=axes, shrink=0.85)


@contextmanager
def progress(study: str, total: int) -> Iterator[Callable[[], object]]:
    """Yields a callback for each step done: tqdm's bar if installed, a line on a terminal, else silence."""
    try:
        from tqdm import tqdm
    except ImportError:
        tqdm = None
    if tqdm is not None:
        with tqdm(total=total, desc=f"{study}, training", unit="step", leave=False) as bar:
            yield bar.update
    elif sys.stderr.isatty():
        done = 0

        def count() -> None:
            nonlocal done
            done += 1
            print(f"\r{study}, training: step {done}/{total}", end="", file=sys.stderr, flush=True)

        yield count
        print(file=sys.stderr)
    else:
        yield lambda: None
