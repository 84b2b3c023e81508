"""Figures as people read them: three digits, a unit, and the same form everywhere."""

import math

Figure = float | int | None

MISSING = "–"


def missing(value: Figure) -> bool:
    """True for None, NaN and infinities, all of which are shown as a dash."""
    return value is None or not math.isfinite(value)


def short(value: Figure) -> str:
    """Three significant digits and a comma every three: 0.0123, 1.23, 12.3, 123, 12,345."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    # The exponent after rounding to three digits: 0.9999 is 1.00.
    exponent = int(f"{value:.2e}".split("e")[1])
    decimals = max(0, 2 - exponent)
    return f"{value:,.{decimals}f}"


def scaled(value: Figure, unit: str = "") -> str:
    """With a decimal prefix (1 MB is a million bytes): 23.5 M, 8.94 MB, 640 B."""
    if value is None or not math.isfinite(value):
        return MISSING
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * factor:
            return f"{short(value / factor)} {prefix}{unit}"
    return f"{value:,.0f} {unit}".rstrip()


def percent(value: Figure) -> str:
    """A percentage with two decimals: 98.52 %."""
    return MISSING if missing(value) else f"{value:.2f} %"


def interval(low: Figure, high: Figure) -> str:
    """Both ends in per cent: 97.1 to 99.2 %."""
    return MISSING if missing(low) or missing(high) else f"{low:.1f} to {high:.1f} %"


def count(value: Figure) -> str:
    """Every digit: 1,130,412."""
    return MISSING if missing(value) else f"{value:,.0f}"


def milliseconds(value: Figure) -> str:
    """1.23 ms."""
    return MISSING if missing(value) else f"{short(value)} ms"


def duration(seconds: Figure) -> str:
    """4.2 s, 1 min 25 s, 2 h 03 min."""
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def times(ratio: float) -> str:
    """A ratio of one or more: 7.5×, 83×, 1,204×."""
    return f"{ratio:.1f}×" if ratio < 9.95 else f"{ratio:,.0f}×"


def points(value: float) -> str:
    """A signed difference of percentages: +0.2 points, −1.3 points, ±0.0 points."""
    rounded = round(value, 1)
    sign = "+" if rounded > 0 else "−" if rounded < 0 else "±"
    return f"{sign}{abs(rounded):.1f} points"


def uncertain(value: Figure, error: Figure, *, signed: bool = False) -> str:
    """A figure and its standard error: 96.10 ± 0.20, signed +0.83 ± 0.21."""
    if value is None or error is None or not math.isfinite(value) or not math.isfinite(error):
        return MISSING
    rounded = round(value, 2)
    sign = "−" if rounded < 0 else "+" if signed and rounded > 0 else ""
    return f"{sign}{abs(rounded):.2f} ± {error:.2f}"
