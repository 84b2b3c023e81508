"""What a pipeline file can name, one line each; the first word is the name."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compress.config import Config
from compress.data import DATASETS
from compress.errors import ConfigError
from compress.export.targets import TARGETS
from compress.losses import LOSSES
from compress.models import MODELS
from compress.pruning.importance import IMPORTANCES, Importance
from compress.stages import STAGES

TABLES: dict[str, Mapping[str, Any]] = {
    "models": MODELS, "data": DATASETS, "losses": LOSSES, "stages": STAGES, "importances": IMPORTANCES,
}  # fmt: skip
# What the program reads of a member besides calling it.
WORD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
GIVEN = frozenset(IMPORTANCES)  # those that ship; some of them have no `scores`
NEEDED = {"models": (), "data": ("size", "channels"), "losses": ("needs_teacher",), "stages": ("training", "losses")}


def catalogue() -> dict[str, list[str]]:
    """Lines of names and what they stand for, by kind."""
    lines = {kind: [_line(name, _said(member)) for name, member in table.items()] for kind, table in TABLES.items()}
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
    if kind == "importances":
        fit = isinstance(member, Importance) and (callable(member.scores) or name in GIVEN)
        return None if fit else "should be an Importance(summary, scores) of compress.pruning.importance"
    if not isinstance(member, type) or not issubclass(member, Config):
        return "should be a class derived from compress.config.Config"
    if getattr(member, "name", None) != name:
        return f"should have `name: ClassVar[str] = {name!r}`"
    if not WORD.fullmatch(name):
        return "should be called by one word, of letters, digits and _, since folders and files are"
    if "__call__" not in dir(member):
        return "should have a method __call__"
    lacking = [key for key in NEEDED[kind] if key not in member.model_fields and not hasattr(member, key)]
    return f"lacks {' and '.join(lacking)}" if lacking else None


def _said(member: Any) -> str | None:
    return member.summary if isinstance(member, Importance) else member.__doc__


def _line(name: str, text: str | None) -> str:
    first = (text or "").strip().split("\n\n")[0]
    return f"{name:24} {' '.join(first.split())}".rstrip()


def _header(path: Path) -> str:
    if not path.is_file():  # a pipe would be waited for
        return ""
    with path.open("rb") as file:
        comment = file.readline(1000).decode(errors="replace").strip()
    return comment.lstrip("# ") if comment.startswith("#") else ""
