"""What a shell may complete: names that can be had in a fraction of a second, so none that need PyTorch."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

MOST = 200  # that anybody wants to see
KINDS = ("models", "data", "losses", "stages", "importances", "targets", "pipelines")


def pipelines(incomplete: str) -> Iterator[str]:
    """YAML files and folders from where the word stands."""
    yield from _files(incomplete, (".yaml", ".yml"))


def models(incomplete: str) -> Iterator[str]:
    """ONNX files and folders from where the word stands."""
    yield from _files(incomplete, (".onnx",))


def runs(incomplete: str) -> Iterator[str]:
    """Folders that have a report, and those on the way there; without a word those of `reports/`."""
    for path in _entries(incomplete or "reports/"):
        if path.is_dir():
            yield str(path) if (path / "report.json").is_file() else f"{path}/"


def stages(context: typer.Context, incomplete: str) -> Iterator[str]:
    """The nets that a pipeline file makes, which `--from` takes."""
    from compress.errors import ConfigError
    from compress.yamlfile import parse_yaml

    file = context.params.get("pipeline")
    try:
        raw = parse_yaml(Path(file)) if file else {}
    except ConfigError:
        return
    yield from (name for name in _nets(raw) if name.startswith(incomplete))


def kinds(incomplete: str) -> Iterator[str]:
    """What `ls` lists."""
    yield from (kind for kind in KINDS if kind.startswith(incomplete))


def targets(incomplete: str) -> Iterator[tuple[str, str]]:
    """What files are made for, each with what it is."""
    from compress.export.targets import TARGETS

    yield from ((name, target.summary) for name, target in TARGETS.items() if name.startswith(incomplete))


def _nets(raw: Any) -> list[str]:
    found = ["teacher"] if isinstance(raw, dict) and raw.get("teacher") else []
    listed = raw.get("stages") if isinstance(raw, dict) else None
    names = [next(iter(each), None) if isinstance(each, dict) else each for each in listed or [] if each]
    return [*found, "baseline", *dict.fromkeys(str(name) for name in names)]


def _files(incomplete: str, endings: tuple[str, ...]) -> Iterator[str]:
    for path in _entries(incomplete):
        if path.is_dir():
            yield f"{path}/"
        elif path.suffix in endings:
            yield str(path)


def _entries(incomplete: str) -> list[Path]:
    """What stands where a word is being typed, hidden things left out."""
    folder, _, start = incomplete.rpartition("/")
    place = Path(folder or ("/" if incomplete.startswith("/") else "."))
    try:
        found = sorted(path for path in place.iterdir() if path.name.startswith(start))
    except OSError:
        return []
    return [path for path in found if start or not path.name.startswith(".")][:MOST]
