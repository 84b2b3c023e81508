"""What all charts of plotly.js here have in common: font, margins, axes that stay put, and texts that are no markup."""

from html import escape
from typing import Any

Figure = dict[str, Any]

# Text and rules get their colours from the style sheet, so that dark mode and print need no second drawing.
FONT = {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 12}


def layout(height: int) -> Figure:
    """The layout of a chart so many pixels high."""
    axis = {"fixedrange": True, "automargin": True, "zeroline": False, "showline": False}
    return {
        "height": height,
        "margin": {"l": 10, "r": 12, "t": 10, "b": 10},
        "font": FONT,
        "showlegend": False,
        "dragmode": False,
        "hovermode": "closest",
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "xaxis": dict(axis),
        "yaxis": dict(axis),
    }


def named_rows(names: list[str]) -> Figure:
    """The y axis of a chart whose rows, at 0, 1, …, have these names, the first at the top."""
    return {
        "range": [len(names) - 0.4, -0.6],
        "tickvals": list(range(len(names))),
        "ticktext": [safe(name) for name in names],
        "showgrid": False,
        "ticklabelstandoff": 4,
    }


def safe(text: str) -> str:
    """Plotly reads a subset of HTML in its texts, and formulas between dollar signs."""
    return escape(text, quote=False).replace("$", "&#36;")
