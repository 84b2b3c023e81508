"""What a pipeline file can name, one line each; the first word is the name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compress.config import Config
from compress.data import DATASETS
from compress.errors import ConfigError
from compress.export.targets import TARGETS
from compress.losses import LOSSES
from compress.models import MODELS
from compress.stages import STAGES

TABLES: dict[str, Mapping[str, Any]] = {"models": MODELS, "data": DATASETS, "losses": LOSSES, "stages": STAGES}
# What the program reads of a member besides calling it.
NEEDED = {"models": (), "data": ("size", "channels"), "losses": ("needs_teacher",), "stages": ("training", "losses")}


def catalogue() -> dict[str, list[str]]:
    """Lines of names and what they stand for, by kind."""
    lines = {kind: [_line(name, member.__doc__) for name, member in table.items()] for kind, table in TABLES.items()}
    lines["targets"] = [_line(name, target.summary) for name, target in TARGETS.items()]
    lines["pipelines"] = [_line(str(path), _header(path)) for path in sorted(Path("pipelines").rglob("*.yaml"))]
    return lines


def check_members() -> None:
    """See that whatever plugins put into the tables can be used; raises ConfigError that lists all that cannot."""
    problems = [
        f"{kind}: {name!r} {problem}"
        for kind, table in TABLES.items()
        for name, member in table.items()
        if (problem := _unfit(kind, name, member))
    ]
    if problems:
        raise ConfigError("\n  ".join(["a plugin added what cannot be used:", *problems]))


def _unfit(kind: str, name: str, member: Any) -> str | None:
    if not isinstance(member, type) or not issubclass(member, Config):
        return "should be a class derived from compress.config.Config"
    if getattr(member, "name", None) != name:
        return f"should have `name: ClassVar[str] = {name!r}`"
    if "__call__" not in dir(member):
        return "should have a method __call__"
    lacking = [key for key in NEEDED[kind] if key not in member.model_fields and not hasattr(member, key)]
    return f"lacks {' and '.join(lacking)}" if lacking else None


def _line(name: str, text: str | None) -> str:
    first = (text or "").strip().split("\n\n")[0]
    return f"{name:24} {' '.join(first.split())}".rstrip()


def _header(path: Path) -> str:
    comment = path.read_text(encoding="utf-8", errors="replace").split("\n", 1)[0]
    return comment.lstrip("# ") if comment.startswith("#") else ""
