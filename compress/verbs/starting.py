"""`compress init`: a pipeline file from three answers, about the images, the device and the limit."""

import json
import math
import platform
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from statistics import median

import yaml
from jinja2 import Environment, StrictUndefined

from compress.config import near
from compress.console import one_line
from compress.environment import cpu_flags, has_vnni
from compress.errors import ConfigError, DataError
from compress.export.targets import TARGETS
from compress.spelling import nearest_file

DEMO = "digits"
PLACEHOLDER = Path("images")
SIZES = (32, 48, 64, 96)  # pixels; from 96 on time counts for more than what is gained
LOOKED_AT = 25  # images, for their size
IMAGE = re.compile(r"\.(jpe?g|png|webp|bmp|tiff?|gif|ppm)$", re.IGNORECASE)
UNITS = {"": 1, "b": 1, "kb": 1000, "mb": 1_000_000, "kib": 1024, "mib": 1024**2}
# What `prune` is asked for, so that the limit is kept, and why.
LIMITS = ("max_accuracy_drop", "max_bytes", "max_bytes_ratio", "max_macs_ratio", "max_latency_ratio")
DEFAULT_LIMIT = "max_accuracy_drop=1"


@dataclass(frozen=True)
class Limit:
    """One key of the budget and its value."""

    key: str
    value: float

    @property
    def written(self) -> str:
        """As it stands in a file."""
        return f"{self.key}: {self.value:.12g}"

    def prune(self, quantizes: bool) -> tuple[str, str]:
        """What `prune` is asked for, and why."""
        if self.key == "max_bytes":
            return f"max_bytes: {self.value:.0f}", "as small as it has to be, recover"
        if self.key == "max_macs_ratio":
            return f"keep_macs: {self.value:g}", "as little work as it may be, recover"
        if self.key == "max_latency_ratio":
            return f"latency_ratio: {self.value:g}", "as quick as it has to be in ONNX Runtime here, recover"
        if self.key == "max_bytes_ratio":
            # An int8 file has about a quarter of the bytes, and some that are not weights.
            share = min(0.9 * self.value * (4 if quantizes else 1), 0.95)
            return f"keep_params: {share:.3g}", "as small as it has to be, recover"
        return "keep_macs: 0.5", "halve its work, recover"


@dataclass(frozen=True)
class Answers:
    """What a pipeline is written from: a folder of images or None for the demo, a target's name, limits."""

    images: Path | None
    target: str
    limits: tuple[Limit, ...]
    published: bool = True


def limit_of(text: str) -> Limit:
    """A limit from `max_accuracy_drop=1`, `max_bytes=500kB` and the like; raises ConfigError."""
    key, _, value = (part.strip() for part in text.partition("="))
    if key not in LIMITS:
        raise ConfigError(f"--limit {text}: should read {DEFAULT_LIMIT}, with one of {', '.join(LIMITS)}.{_near(key)}")
    found = re.fullmatch(r"([0-9.]+(?:e-?[0-9]+)?)\s*([a-z]*)", value, re.IGNORECASE)
    unit = UNITS.get(found[2].lower()) if found else None
    try:
        number = float(found[1]) * (unit or 0) if found else math.nan
    except ValueError:
        number = math.nan
    if unit is None or not math.isfinite(number) or (unit != 1 and key != "max_bytes"):
        raise ConfigError(f"--limit {text}: {value!r} is no number; such as {DEFAULT_LIMIT} or max_bytes=500kB")
    if number <= 0 and key != "max_accuracy_drop":
        raise ConfigError(f"--limit {text}: should be above 0")
    if key.endswith("_ratio") and number >= 1:
        raise ConfigError(f"--limit {text}: a ratio to the unpruned student should be below 1, such as {key}=0.5")
    if key == "max_bytes" and number < 1:
        raise ConfigError(f"--limit {text}: a file has at least a byte; such as max_bytes=500kB")
    return Limit(key, number)


def _near(key: str) -> str:
    found = near(key, LIMITS)
    return found if found.startswith(" Did") else ""


def target_of(text: str) -> str:
    """A target's name; raises ConfigError."""
    if text not in TARGETS:
        raise ConfigError(f"--target {text}: no such target.{near(text, TARGETS)}")
    return text


def images_of(text: str) -> Path | None:
    """A folder of class folders, None for the demo; raises DataError."""
    if text == DEMO and not Path(text).is_dir():
        return None
    root = Path(text)
    if not root.expanduser().exists():
        raise DataError(f"there is no folder {root}; give one with a folder of images for each class"
                        f"{(hint := nearest_file(root, folder=True)) and '.'}{hint}")  # fmt: skip
    if not root.expanduser().is_dir():
        raise DataError(f"{root} is a file; give a folder with a folder of images for each class")
    if not classes(root):
        raise DataError(
            f"{root} has no class folders with images; put each class's images into its own, {root}/cat/1.jpg"
        )
    return root


def classes(root: Path) -> list[Path]:
    """The class folders of a folder, of its training images where they stand apart; none where there are none."""
    inside = _folders(root.expanduser())
    train = next((folder for folder in inside if folder.name.lower() in ("train", "training")), None)
    return [folder for folder in (_folders(train) if train else inside) if next(_images(folder), None) is not None]


def size_for(root: Path) -> int:
    """Pixels to bring images to: no more than most of them have."""
    from PIL import Image, UnidentifiedImageError

    sides = []
    for folder in classes(root):
        for path, _ in zip(_images(folder), range(max(LOOKED_AT // len(classes(root)), 1)), strict=False):
            try:
                with Image.open(path) as image:
                    sides.append(min(image.size))
            except (OSError, UnidentifiedImageError, Image.DecompressionBombError):
                continue  # `validate` says what is wrong with it
            if len(sides) >= LOOKED_AT:
                break
    return max((size for size in SIZES if sides and size <= median(sides)), default=SIZES[0] if sides else SIZES[-1])


def folder_here() -> Path | None:
    """The first folder here that holds at least two class folders with images."""
    return next((path for path in _folders(Path()) if len(classes(path)) > 1), None)


def target_here() -> str:
    """What this machine's own ONNX Runtime wants."""
    if platform.machine().lower() in ("arm64", "aarch64"):
        return "arm"
    flags = cpu_flags()
    return "onnxruntime-avx2" if "avx2" in flags and not has_vnni(flags) else "onnxruntime"


def text(name: str, answers: Answers) -> str:
    """The pipeline file."""
    target = TARGETS[answers.target]
    images, limits = answers.images, answers.limits
    prune, why = next(
        (limit.prune(target.quantizes) for limit in limits if limit.key != LIMITS[0]), limits[0].prune(True)
    )
    size = size_for(images) if images is not None and images.expanduser().is_dir() else SIZES[-1]
    # The file is YAML, which nobody's browser reads; what a user gave is quoted as JSON, which YAML is.
    template = Environment(undefined=StrictUndefined, autoescape=False, keep_trailing_newline=True).from_string(  # noqa: S701
        files("compress").joinpath("starters/starter.yaml.j2").read_text(encoding="utf-8")
    )
    return template.render(
        name=one_line(name), demo=images is None, quantizes=target.quantizes,
        published=answers.published and images is not None, path=_quoted(images), size=size, prune=prune, why=why,
        target=target.name, summary=target.summary, budget=", ".join(limit.written for limit in limits),
    )  # fmt: skip


def said(answers: Answers) -> str | None:
    """What was found of the images."""
    if answers.images is None or not answers.images.expanduser().is_dir():
        return None
    names = [folder.name for folder in classes(answers.images)]
    count = sum(1 for folder in classes(answers.images) for _ in _images(folder))
    shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
    return f"{answers.images}: {len(names)} classes ({shown}), {count:,} images to learn from"


def limits_of(texts: Sequence[str]) -> tuple[Limit, ...]:
    """Limits, each key once; raises ConfigError."""
    found = tuple(limit_of(each) for each in texts or [DEFAULT_LIMIT])
    keys = [limit.key for limit in found]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice:
        raise ConfigError(f"--limit {twice} is given twice; give it once")
    return found


def _quoted(path: Path | None) -> str:
    words = str(path or "")
    plain = re.fullmatch(r"[A-Za-z_][A-Za-z0-9_./-]*", words) and yaml.safe_load(words) == words  # `on` is none
    return words if plain else json.dumps(words)


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__")))
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}") from error


def _images(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if IMAGE.search(path.name))
