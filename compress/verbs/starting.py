"""`compress init`: a pipeline file from three answers, about the images, the device and the limit."""

import json
import math
import platform
import re
from collections.abc import Sequence
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
from compress.files.class_folders import class_folders, class_images
from compress.files.image_files import folders, formats, holds_images
from compress.spelling import nearest_file

DEMO = "digits"
PLACEHOLDER = Path("images")
SIZES = (32, 48, 64, 96)  # pixels; from 96 on time counts for more than what is gained
LOOKED_AT = 25  # images, for their size
UNITS = {"": 1, "b": 1, "kb": 1000, "mb": 1_000_000, "kib": 1024, "mib": 1024**2}
PERCENT = {"max_accuracy_drop": 1.0}  # points; of a ratio a hundredth
STUDENT_BYTES = 2_000_000  # of MobileNetV2 as int8 with few classes; who can afford more need not prune for it
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
        if self.key == "max_bytes" and self.value < STUDENT_BYTES * (1 if quantizes else 4):
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
        size = re.fullmatch(r"[0-9.]+ *[kmKM]i?[bB]", text.strip())
        hint = f" Did you mean 'max_bytes={text.strip()}'?" if size else _near(key)
        raise ConfigError(f"--limit {text}: should read {DEFAULT_LIMIT}, with one of {', '.join(LIMITS)}.{hint}")
    found = re.fullmatch(r"([0-9.]+(?:e-?[0-9]+)?)\s*([a-z]*|%)", value, re.IGNORECASE)
    units = UNITS if key == "max_bytes" else {"": 1, "%": PERCENT.get(key, 0.01)}
    unit = units.get(found[2].lower()) if found else None
    try:
        number = float(found[1]) * (unit or 0) if found else math.nan
    except ValueError:
        number = math.nan
    if unit is None or not math.isfinite(number):
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
        raise ConfigError(
            f"--target {text}: no such target (`compress ls targets` says what for).{near(text, TARGETS)}"
        )
    return text


def images_of(text: str) -> Path | None:
    """A folder of class folders, None for the demo; raises DataError."""
    if text == DEMO and not Path(text).is_dir():
        return None
    root = Path(text)
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" and not root.exists():
        root = Path(text[1:-1])  # as a terminal writes a folder that is dropped on it
    if not root.expanduser().exists():
        raise DataError(f"there is no folder {root}; give one with a folder of images for each class"
                        f"{(hint := nearest_file(root, folder=True)) and '.'}{hint}")  # fmt: skip
    look(root)
    return root


def look(root: Path) -> tuple[dict[str, dict[str, list[str]]], list[str]]:
    """A folder's images by split and by class, none of which is opened, and warnings of what is left out.

    Raises DataError where no run could learn from them.
    """
    images, warnings = class_images(class_folders(root.expanduser()))
    least = 4 - len(images)  # one to learn from, and one for each split that is missing
    if max(map(len, images["train"].values())) < least:
        raise DataError(
            f"{root} has too few images to split some off for validation and test; give {least} or more of each class"
        )
    return images, warnings


def size_for(root: Path) -> int:
    """Pixels to bring images to: no more than most of them have."""
    from PIL import Image

    sides = []
    classes = [*look(root)[0]["train"].values()]
    each = max(LOOKED_AT // len(classes), 1)
    for path in [path for images in classes for path in images[:each]][:LOOKED_AT]:
        try:
            with Image.open(path, formats=formats()) as image:
                sides.append(min(image.size))
        except (OSError, ValueError, Image.DecompressionBombError):
            continue  # `validate` says what is wrong with it
    return max((size for size in SIZES if sides and size <= median(sides)), default=SIZES[0] if sides else SIZES[-1])


def folder_here() -> Path | None:
    """The first folder here that holds at least two class folders with images."""
    return next((path for path in folders(Path()) if holds_classes(path)), None)


def holds_classes(folder: Path) -> bool:
    """Whether there are at least two class folders with images in a folder."""
    try:
        return folder.is_dir() and sum(map(holds_images, class_folders(folder).splits["train"].values())) > 1
    except DataError:
        return False


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
    images, warnings = look(answers.images)
    names = [one_line(name) for name in images["train"]]
    count = sum(map(len, images["train"].values()))
    shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
    missing = [word for split, word in {"val": "validation", "test": "test"}.items() if split not in images]
    less = f", less those split off for {' and '.join(missing)}" if missing else ""
    first = f"{answers.images}: {len(names)} classes ({shown}), {count:,} images to learn from{less}"
    return "\n".join([first, *warnings])


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
