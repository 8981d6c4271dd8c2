"""The report: a header, a summary of one line per case, then every variant with accuracy and memory beside its time."""

from __future__ import annotations

import math

from .case import ACCURATE, CLOSED_FORM, COMPILED, FLOOR_FRACTION, PEER, PLAIN, SUBSPAN, YARDSTICK
from .result import IMPOSSIBLE, Measurement, Result

ORDER = (PEER, PLAIN, COMPILED, CLOSED_FORM, ACCURATE, YARDSTICK, SUBSPAN)


def markdown(header: dict[str, str], results: list[Result]) -> str:
    parts = [_header(header), _summary(results), _details(results), _notes()]
    return "\n\n".join(parts) + "\n"


def as_json(header: dict[str, str], results: list[Result]) -> dict:
    """Everything measured, in seconds, bytes and plain ratios."""
    return {"machine": header, "cases": [_json_case(result) for result in results]}


# --- Markdown ---------------------------------------------------------------------------------------------------


def _header(header: dict[str, str]) -> str:
    return "\n".join(f"- {name}: {text}" for name, text in header.items())


def _summary(results: list[Result]) -> str:
    columns = ["case", "subspan", f"best {PLAIN}", "× plain", PEER, "× copied", "% of floor", "bar", "verdict"]
    return _table(columns, [_summary_row(result) for result in results], numbers=range(1, 7))


def _summary_row(result: Result) -> list[str]:
    bars = ", ".join(map(str, result.case.bars)) or "–"
    name = result.case.title
    if result.failure:
        return [name, "–", "–", "–", "–", "–", "–", bars, f"**check failed**: {result.failure}"]
    return [
        name,
        seconds(result.subspan.median),
        _time_and_label(result.fastest(PLAIN)),
        _ratio(result, PLAIN),
        _time_and_label(result.fastest(PEER)),
        _ratio(result, PEER),
        percent(result.floor_fraction),
        bars,
        result.verdict + (", disturbed" if result.disturbed else ""),
    ]


def _time_and_label(m: Measurement | None) -> str:
    return "–" if m is None else f"{_bound(m)}{seconds(m.median)} ({m.variant.label})"


def _ratio(result: Result, kind: str) -> str:
    ratio = result.ratio(kind)
    return "–" if ratio is None else f"{_bound(result.fastest(kind))}{times(ratio)}"


def _bound(m: Measurement) -> str:
    """A time scaled up from a part of the work leaves out what the parts share."""
    return "≥ " if m.variant.scale != 1 else ""


def _details(results: list[Result]) -> str:
    columns = [
        "variant",
        "median",
        "minimum",
        "/ subspan",
        "value error",
        "gradient error",
        "peak extra memory",
        "note",
    ]
    parts = []
    for result in results:
        ordered = sorted(result.measurements, key=lambda m: ORDER.index(m.variant.kind))
        table = _table(columns, [_detail_row(result, m) for m in ordered], numbers=range(1, 7))
        parts.append(f"### {result.case.title}\n\n{_limits(result)}\n\n{table}")
    return "\n\n".join(parts)


def _detail_row(result: Result, m: Measurement) -> list[str]:
    variant = m.variant
    name = variant.label if variant.kind == SUBSPAN else f"{variant.kind}: {variant.label}"
    if not m.seconds:
        return [name, "–", "–", "–", _error(m.value_error), _error(m.gradient_error), "–", m.problem]
    ratio = "–"
    if variant.kind != SUBSPAN and not result.failure:
        ratio = f"{_bound(m)}{times(result.ratio_to(m))}"
    taken = [_bound(m) + seconds(m.median), _bound(m) + seconds(m.minimum)]
    errors = [_error(m.value_error), _error(m.gradient_error)]
    remarks = "; ".join(filter(None, (m.quality, variant.note)))
    return [name, *taken, ratio, *errors, _megabytes(m.extra_bytes), remarks]


def _limits(result: Result) -> str:
    case = result.case
    compute, traffic = case.flops / result.peak, case.bytes / result.bandwidth
    bound = "computing" if compute >= traffic else "memory"
    text = (
        f"Floor {seconds(result.floor)} ({bound}): {_si(case.flops)}FLOP at {result.peak / 1e9:.0f} GF/s = "
        f"{seconds(compute)}, {_si(case.bytes)}B at {result.bandwidth / 1e9:.0f} GB/s = {seconds(traffic)}; "
        f"reached {percent(result.floor_fraction)}. {_plural(result.threads, 'thread')}, "
        f"{_plural(max(len(m.seconds) for m in result.measurements), 'round')}."
    )
    if case.source:
        text += f" Configuration: {case.source}."
    if (result.floor_fraction or 0) > IMPOSSIBLE:
        text += " **Limits misread**: no case is faster than the machine."
    if result.disturbed:
        text += f" **Disturbed**: other processes used {result.others:.2f} cores meanwhile."
    return text


def _notes() -> str:
    return (
        "Times are medians of interleaved rounds; ratios are medians of the ratios of each round, against the fastest "
        "of its kind. ≥ marks a time scaled up from a part of the work, a lower bound. Errors are relative, against "
        "float64: largest value error by largest value, gradients in the Frobenius norm. Memory is the growth of "
        "resident memory during one warm call. A bar is met at its ratio, or at "
        f"{100 * FLOOR_FRACTION:.0f} % of the floor max(FLOPs / FMA peak, bytes / copy bandwidth at that footprint), "
        "both measured beside the case."
    )


def _table(columns: list[str], rows: list[list[str]], numbers: range) -> str:
    """A Markdown table that also reads well as plain text."""
    cells = [columns, *([cell.replace("|", "/") for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    lines = [_line(row, widths, numbers) for row in cells]
    rule = [("-" * (w - 1) + ":" if i in numbers else "-" * w) if w > 1 else "-" for i, w in enumerate(widths)]
    return "\n".join([lines[0], "| " + " | ".join(rule) + " |", *lines[1:]])


def _line(row: list[str], widths: list[int], numbers: range) -> str:
    cells = [cell.rjust(widths[i]) if i in numbers else cell.ljust(widths[i]) for i, cell in enumerate(row)]
    return "| " + " | ".join(cells) + " |"


# --- numbers as text --------------------------------------------------------------------------------------------


def seconds(value: float) -> str:
    units = {"s": 1.0, "ms": 1e-3, "µs": 1e-6, "ns": 1e-9}
    unit = next((unit for unit, size in units.items() if value >= size), "ns")
    return f"{_three_digits(value / units[unit])} {unit}"


def _three_digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def times(ratio: float) -> str:
    return f"{_three_digits(ratio)}×"


def percent(fraction: float | None) -> str:
    return "–" if fraction is None else f"{100 * fraction:.0f} %" if fraction >= 0.01 else "< 1 %"


def _error(value: float | None) -> str:
    return "–" if value is None else f"{value:.1e}"


def _megabytes(value: float | None) -> str:
    return "–" if value is None else f"{value / 1e6:.1f} MB" if value >= 5e4 else "< 0.1 MB"


def _si(value: float) -> str:
    for prefix, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{_three_digits(value / size)} {prefix}"
    return f"{value:.0f} "


def _plural(count: int, word: str) -> str:
    return f"{count} {word}" + ("" if count == 1 else "s")


# --- JSON -------------------------------------------------------------------------------------------------------


def _json_case(result: Result) -> dict:
    case = result.case
    return {
        "name": case.name,
        "op": case.op,
        "direction": case.direction,
        "threads": result.threads,
        "source": case.source,
        "flops": case.flops,
        "bytes": case.bytes,
        "peak_flops_per_s": result.peak,
        "bandwidth_bytes_per_s": result.bandwidth,
        "floor_s": result.floor,
        "floor_fraction": result.floor_fraction,
        "ratio_plain": result.ratio(PLAIN),
        "ratio_copied": result.ratio(PEER),
        "bars": [{"against": bar.label or bar.against, "ratio": bar.ratio} for bar in case.bars],
        "verdict": result.verdict,
        "check_failure": result.failure,
        "cores_used_by_others": result.others,
        "variants": [_json_variant(m) for m in result.measurements],
    }


def _json_variant(m: Measurement) -> dict:
    return {
        "kind": m.variant.kind,
        "label": m.variant.label,
        "note": m.variant.note,
        "quality": m.quality,
        "scale": m.variant.scale,
        "problem": m.problem,
        "median_s": m.median if m.seconds else None,
        "minimum_s": m.minimum if m.seconds else None,
        "rounds_s": m.seconds,
        "value_error": _finite(m.value_error),
        "gradient_error": _finite(m.gradient_error),
        "peak_extra_bytes": m.extra_bytes,
    }


def _finite(error: float | None) -> float | str | None:
    """JSON has no infinity."""
    return "infinite" if error == math.inf else error
