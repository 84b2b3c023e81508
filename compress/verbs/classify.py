"""`compress predict`: the classes of pictures by an ONNX file, which says itself how they are to be brought to it."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import onnxruntime as ort
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from rich.cells import cell_len, set_cell_size

from compress.config import described
from compress.console import one_line
from compress.data.base import Preprocessing
from compress.data.files import decoded, listed
from compress.errors import DataError, ModelError
from compress.files.image_files import image_files, left_out
from compress.files.onnx_file import read_onnx
from compress.measure.file import metadata, outputs, session

BATCH = 64
LAYOUTS = {"tensor(float)": "NCHW", "tensor(uint8)": "NHWC"}

Number = Annotated[float, Field(allow_inf_nan=False)]


class About(BaseModel):
    """What a file's metadata say of its input and its classes; `mean` and `std` are in units of 0..1."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    class_names: tuple[str, ...]
    mean: tuple[Number, ...]
    std: tuple[Annotated[Number, Field(gt=0)], ...]
    resize: Literal["squash", "crop", "letterbox"] = "squash"
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear"

    @field_validator("class_names", "mean", "std", mode="before")
    @classmethod
    def _from_json(cls, text: str) -> Any:
        return json.loads(text)


@dataclass(frozen=True)
class Guess:
    """A class, by its number and name, and its probability (0 to 1)."""

    label: int
    name: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """The likeliest classes of a picture, best first."""

    image: str
    classes: tuple[Guess, ...]


@dataclass(frozen=True)
class Classifier:
    """A file opened, with what it says of itself."""

    file: Path
    running: ort.InferenceSession
    about: About

    @cached_property
    def prep(self) -> Preprocessing:
        """How a picture is brought to the file's input; raises ModelError where that is no picture's."""
        wanted = self.running.get_inputs()[0]
        layout = LAYOUTS.get(wanted.type)
        sizes = dict(zip(layout, wanted.shape, strict=True)) if layout and len(wanted.shape) == 4 else {}
        channels, side = sizes.get("C"), sizes.get("H")
        if len(self.running.get_inputs()) != 1 or channels not in (1, 3) or side != sizes.get("W"):
            raise ModelError(
                f"{self.file} takes {wanted.type} {wanted.shape}; pictures are given as float32 (n, channels, size, "
                "size) or uint8 (n, size, size, channels), of 1 or 3 channels"
            )
        try:
            how = {"resize": self.about.resize, "interpolation": self.about.interpolation}
            return Preprocessing(size=side, channels=channels, **how)
        except ValidationError as error:
            raise ModelError(f"{self.file}: {described(error)[0]}") from None

    def fed(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels, uint8 (n, C, H, W), as the file takes them."""
        if self.running.get_inputs()[0].type == "tensor(uint8)":
            return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
        mean, std = (np.array(each, np.float32).reshape(1, -1, 1, 1) for each in (self.about.mean, self.about.std))
        scaled: np.ndarray = (pixels.astype(np.float32) / np.float32(255) - mean) / std
        return scaled

    def logits(self, pixels: np.ndarray) -> np.ndarray:
        """What the file says of uint8 (n, C, H, W), as (n, classes); raises ModelError for what are no logits."""
        try:
            found = outputs(self.running, self.fed(pixels))[0]
        except Exception as error:  # the runtime's own exceptions share no base class but this
            raise ModelError(f"{self.file} cannot be run: {' '.join(str(error).split())}") from error
        names = len(self.about.class_names)
        if found.shape != (len(pixels), names) or not np.isfinite(found).all():
            raise ModelError(
                f"{self.file} names {names} classes and gives {found.shape} for {len(pixels)} pictures, or numbers "
                "that are not finite"
            )
        return found.astype(np.float64)


def opened(file: Path) -> Classifier:
    """A file as a classifier of pictures.

    Raises ModelError for what is never read from outside, and for one whose metadata do not say how pictures are fed to
    it; ExportError for one that the runtime refuses.
    """
    about = metadata(read_onnx(file))
    missing = [key for key in ("mean", "std", "class_names") if key not in about]
    if missing:
        raise ModelError(
            f"{file} does not say how pictures are fed to it: its metadata have no {', '.join(missing)}; files of "
            "`compress run` have them"
        )
    try:
        found = Classifier(file, session(file), About.model_validate(about))
    except ValidationError as error:
        raise ModelError(f"{file}: its metadata are damaged: {described(error)[0]}") from None
    channels = found.prep.channels
    if len(found.about.mean) != channels or len(found.about.std) != channels:
        raise ModelError(f"{file}: its metadata have {len(found.about.mean)} means for {channels} channels")
    return found


def predict(file: Path, images: Sequence[Path], top: int = 5) -> Iterator[Prediction]:
    """The likeliest `top` classes of each picture, in order; a folder stands for the pictures in it, at any depth.

    Errors are those of `opened`. Raises DataError for pictures that cannot be decoded, naming all of them, after those
    that can, and for a folder without pictures.
    """
    classifier = opened(file)
    paths = [path for image in images for path in pictures(image)]
    unread: list[str] = []
    for begin in range(0, len(paths), BATCH):
        part = paths[begin : begin + BATCH]
        pixels, problems = decoded(part, classifier.prep)
        unread += problems.values()
        readable = [i for i in range(len(part)) if i not in problems]
        if readable:
            yield from _guessed(classifier, [part[i] for i in readable], pixels.numpy()[readable], top)
    if unread:
        what = "1 picture" if len(unread) == 1 else f"{len(unread)} pictures"
        raise DataError(f"{what} cannot be read; repair or leave out:\n{listed(unread)}")


def pictures(image: Path) -> list[str]:
    """A file, there or not, or the pictures in a folder; raises DataError for a folder without any."""
    if not image.is_dir():
        return [str(image)]
    found, others = image_files(image)
    if not found:
        raise DataError("\n".join([f"{image} holds no pictures", *left_out(others)]))
    return found


def _guessed(classifier: Classifier, images: Sequence[str], pixels: np.ndarray, top: int) -> Iterator[Prediction]:
    names = classifier.about.class_names
    for image, logits in zip(images, classifier.logits(pixels), strict=True):
        shares = np.exp(logits - logits.max())
        shares /= shares.sum()
        # Of equals the first, as argmax has it, by which a run's predictions are made.
        best = np.argsort(-logits, kind="stable")[:top]
        yield Prediction(image, tuple(Guess(int(i), names[i], float(shares[i])) for i in best))


def render(file: Path, predictions: Sequence[Prediction], *, as_json: bool) -> str:
    """Predictions as a table, or as JSON."""
    if as_json:
        return json.dumps({"model": str(file), "images": [asdict(each) for each in predictions]}, indent=1)
    rows = [
        (one_line(each.image) if i == 0 else "", one_line(guess.name), f"{100 * guess.probability:6.2f} %")
        for each in predictions
        for i, guess in enumerate(each.classes)
    ]
    table = [("image", "class", "probability"), *rows]
    widths = [max(cell_len(row[i]) for row in table) for i in range(2)]  # an emoji is two cells wide
    lines = [f"{set_cell_size(a, widths[0])}  {set_cell_size(b, widths[1])}  {c}" for a, b, c in table]
    return "\n".join(line.rstrip() for line in lines)
