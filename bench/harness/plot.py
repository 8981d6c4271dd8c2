"""One picture: how many times faster than the best plain PyTorch each case is, with its bar marked."""

from __future__ import annotations

from .case import FLOOR_FRACTION, PLAIN
from .report import percent, seconds
from .result import Result

REACHED, MISSED, BAR, TEXT, QUIET = "#1b6ca8", "#aab2ba", "#d1495b", "#22272e", "#656d76"
TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)


def plot(header: dict[str, str], results: list[Result], path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = [result for result in results if any(m.variant.kind == PLAIN for m in result.measurements)][::-1]
    if not shown:
        raise ValueError("plot: expected at least one case with a plain PyTorch variant")
    style = {"font.size": 11, "text.color": TEXT, "axes.labelcolor": TEXT, "xtick.color": QUIET, "ytick.color": TEXT}
    with plt.rc_context(style):
        figure, axes = plt.subplots(figsize=(9, 1.7 + 0.4 * len(shown)), layout="constrained")
        low, high = _range(shown)
        for y, result in enumerate(shown):
            _draw(axes, y, result, low)
        _decorate(axes, shown, low, high)
        figure.suptitle("Times faster than the best plain PyTorch", x=0.01, ha="left", weight="bold", fontsize=14)
        machine = f"{header.get('GPU', header['CPU'])}: {header['cores']}. {header['versions']}"
        figure.supxlabel(machine, x=0.01, ha="left", fontsize=8.5, color=QUIET)
        figure.savefig(path, dpi=200)
        plt.close(figure)


def _range(shown: list[Result]) -> tuple[float, float]:
    """The axis covers the ratios and the bars, from at most 0.8 and at least 0.1, where a longer bar says no more."""
    ratios = [result.ratio(PLAIN) or 1 for result in shown]
    bars = [_asked(result) or 1 for result in shown]
    return max(0.1, min(0.8, 0.8 * min(ratios))), 2.2 * max(5, *ratios, *bars)


def _asked(result: Result) -> float | None:
    return next((bar.ratio for bar in result.case.bars if bar.against == PLAIN), None)


def _draw(axes, y: int, result: Result, low: float) -> None:
    ratio, asked = result.ratio(PLAIN), _asked(result)
    beside = axes.get_yaxis_transform()  # x in parts of the axes, y in rows
    if ratio is None:
        axes.text(1.07, y, "check failed", va="center", color=BAR)
        return
    color = MISSED if result.verdict == "not met" else REACHED
    axes.barh(y, max(ratio, low) - 1, left=1, height=0.6, color=color, zorder=2)
    right = max(ratio, 1)
    if asked is not None:
        axes.plot([asked, asked], [y - 0.4, y + 0.4], color=BAR, linewidth=2.5, zorder=3, solid_capstyle="butt")
        right = max(right, asked) if right > 0.4 * asked else right  # the label keeps off the mark
    label = f"{ratio:.2g}×" if ratio < 10 else f"{ratio:.0f}×"
    axes.text(1.07 * right, y, label, va="center", weight="bold", zorder=5)
    _columns(axes, y, beside, seconds(result.subspan.median), percent(result.floor_fraction), fontsize=10)


def _columns(axes, y: float, transform, time: str, fraction: str, **style) -> None:
    """Two columns of text right of the axes, in points, so that the layout can make room for them."""
    for points, text in ((66, time), (112, fraction)):
        at = {"xy": (1, y), "xycoords": transform, "xytext": (points, 0), "textcoords": "offset points"}
        axes.annotate(text, ha="right", va="center", annotation_clip=False, **at, **style)


def _decorate(axes, shown: list[Result], low: float, high: float) -> None:
    from matplotlib.lines import Line2D

    axes.set_xscale("log")
    axes.set_xlim(low, high)
    ticks = [tick for tick in TICKS if low <= tick <= high]
    axes.set_xticks(ticks, [f"{tick:g}×" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.axvline(1, color=TEXT, linewidth=1, zorder=4)
    axes.set_yticks(range(len(shown)), [_name(result) for result in shown])
    axes.set_ylim(-0.6, len(shown) - 0.4)
    axes.tick_params(length=0)
    axes.grid(axis="x", color="#e3e6e9", linewidth=0.8, zorder=0)
    axes.spines[:].set_visible(False)
    _columns(axes, 1.015, axes.transAxes, "time", "of limit", fontsize=9, color=QUIET)
    if any(_asked(result) for result in shown):
        text = f"asked for, or {100 * FLOOR_FRACTION:.0f} % of the machine's limit"
        mark = Line2D([], [], color=BAR, linewidth=2.5, label=text)
        axes.legend(handles=[mark], loc="lower left", bbox_to_anchor=(-0.01, 1.0), frameon=False, fontsize=9)


def _name(result: Result) -> str:
    return result.case.title.replace("forward", "fwd").replace("backward", "bwd")
