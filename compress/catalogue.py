"""What a pipeline file can name, one line each; the first word is the name."""

from pathlib import Path
from typing import Any

from compress.data import DATASETS
from compress.losses import LOSSES
from compress.models import MODELS
from compress.stages import STAGES


def catalogue() -> dict[str, list[str]]:
    """Lines of names and what they stand for, by kind."""
    tables: dict[str, Any] = {"models": MODELS, "data": DATASETS, "losses": LOSSES, "stages": STAGES}
    lines = {kind: [_line(name, member.__doc__) for name, member in table.items()] for kind, table in tables.items()}
    lines["pipelines"] = [_line(str(path), _header(path)) for path in sorted(Path("pipelines").rglob("*.yaml"))]
    return lines


def _line(name: str, text: str | None) -> str:
    first = (text or "").strip().split("\n\n")[0]
    return f"{name:24} {' '.join(first.split())}".rstrip()


def _header(path: Path) -> str:
    comment = path.read_text(encoding="utf-8", errors="replace").split("\n", 1)[0]
    return comment.lstrip("# ") if comment.startswith("#") else ""
