"""The picture of a sensitivity analysis: accuracy against what was removed, one line a group and a layer."""

import io
import warnings
from collections.abc import Sequence
from typing import Any

from compress.pruning.sensitivity_table import Row, ranked

# Text stays text, and the same rows give the same bytes.
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "compress",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#e3e7ec",
    "legend.frameon": False,
    "figure.dpi": 72,
}
PANELS = {"group": "Coupled groups, least important channels removed", "layer": "Single layers, filters zeroed"}
MARKERS = "os^vDP"
NAMES_A_COLUMN = 26


def drawn(rows: Sequence[Row]) -> str:
    """SVG text; the lines of each panel are coloured and listed from the most sensitive to the least."""
    import matplotlib  # takes a quarter of a second to import, and few commands need it
    from matplotlib.figure import Figure

    kinds = [kind for kind in PANELS if any(row.kind == kind for row in rows)]
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=(11, 5.2 * len(kinds)), layout="constrained")
        for axes, kind in zip(figure.subplots(len(kinds), squeeze=False)[:, 0], kinds, strict=True):
            _panel(axes, rows, kind)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return "\n".join(text.rstrip() for text in buffer.getvalue().splitlines()) + "\n"


def _panel(axes: Any, rows: Sequence[Row], kind: str) -> None:
    from matplotlib import colormaps

    names = [name for name, _ in ranked(rows, kind)]
    whole = next(row.accuracy for row in rows if row.kind == "net")
    colours = colormaps["viridis"]
    for place, name in enumerate(names):
        line = sorted((row.ratio, row.accuracy) for row in rows if (row.kind, row.name) == (kind, name))
        axes.plot(
            [0, *(100 * ratio for ratio, _ in line)],
            [whole, *(accuracy for _, accuracy in line)],
            marker=MARKERS[place % len(MARKERS)],
            markersize=3.5,
            linewidth=1,
            color=colours(0.9 * place / max(len(names) - 1, 1)),
            label=name,
        )
    axes.set(title=PANELS[kind], xlabel="Removed (%)", ylabel="Top-1 (%)", xlim=(0, 100))
    columns = -(-len(names) // NAMES_A_COLUMN)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), ncols=columns, fontsize=6.5, borderaxespad=0.3)
