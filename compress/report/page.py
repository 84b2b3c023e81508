"""Pages that open offline: one file each, with plotly.js inside and nothing fetched from anywhere."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from plotly.offline import get_plotlyjs


def render(template: str, figures: Mapping[str, Any], **values: Any) -> str:
    """The text of a page, some 4.8 MB of which are plotly.js; `figures` are drawn into the elements of their ids."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(figures=figures, plotly=get_plotlyjs(), **values)
