"""Pages that open offline: one file each, with plotly.js inside and nothing fetched from anywhere."""

import base64
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

FOLDER = Path(__file__).parent
# The space between a figure and its unit.
UNIT = re.compile(r"(?<=\d) (?=(?:%|ms|s|min|h|dB|[kMGT]?B|[kMGT]|points)(?!\w))")


def render(template: str, figures: Mapping[str, Any], **values: Any) -> str:
    """The text of a page, some 4.8 MB of which are plotly.js; `figures` are drawn into the elements of their ids.

    Only the two scripts of the page itself may run: the page names their digests.
    """
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_unbroken,
    )
    plotly, drawing = get_plotlyjs(), (FOLDER / "drawing.js").read_text()
    return environment.get_template(template).render(
        figures=figures, plotly=plotly, drawing=drawing, digests=[_digest(plotly), _digest(drawing)], **values
    )


def _unbroken(value: Any) -> Any:
    """Text whose figures stay with their units; what is markup already stays as it is."""
    return UNIT.sub("\u00a0", value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _digest(script: str) -> str:
    """A script's SHA-256 as a content security policy wants it."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
