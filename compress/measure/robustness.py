"""How often files are right on corrupted test images, in ONNX Runtime."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import onnxruntime as ort
import torch
from pydantic import Field, field_validator
from torch import Tensor

from compress.config import Config, fingerprint
from compress.data.base import Data
from compress.errors import ArtifactError
from compress.events import Listener, ignore
from compress.files import checksums
from compress.measure.corruptions import CORRUPTIONS, SEVERITIES, Corruption, corrupted
from compress.measure.file import outputs, session

BATCH = 64
FILE = "robustness.json"


class Robustness(Config):
    """Which corruptions the test images of a run are put under, and how badly: severity 1 (mild) to 5."""

    corruptions: Annotated[tuple[Corruption, ...], Field(min_length=1)] = CORRUPTIONS
    severity: Annotated[int, Field(ge=1, le=SEVERITIES)] = 3

    @field_validator("corruptions")
    @classmethod
    def _once(cls, names: tuple[Corruption, ...]) -> tuple[Corruption, ...]:
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise ValueError(f"{twice} stands here twice")
        return names


@dataclass
class Corrupter:
    """Measures the top-1 accuracy of files on a data set's corrupted test images.

    `form` is what the files are fed, see `Export.input`. Noise is drawn from `seed`, the same for all files.
    """

    data: Data
    settings: Robustness
    form: Literal["float32_nchw", "uint8_nhwc"]
    seed: int
    threads: int
    tell: Listener = field(default=ignore)

    def __call__(self, files: Mapping[str, Path], kept: Mapping[str, Path]) -> dict[str, dict[Corruption, float]]:
        """Top-1 in per cent of each file under each corruption, by the file's name.

        What is found for a file is kept in its folder of `kept`, and taken over while settings, data and the file's
        bytes are the same. Raises ExportError where the runtime refuses a file.
        """
        made_of = {name: self.made_of(path) for name, path in files.items()}
        known = {name: self.known(kept[name] / FILE, made_of[name]) for name in files}
        missing = [name for name, found in known.items() if found is None]
        measured = self.measure({name: files[name] for name in missing}) if missing else {}
        for name, found in measured.items():
            checksums.write(kept[name] / FILE, {"made_of": made_of[name], "top1": found})
        return {name: found if found is not None else measured[name] for name, found in known.items()}

    def measure(self, files: Mapping[str, Path]) -> dict[str, dict[Corruption, float]]:
        """The same, measured; a batch is loaded and corrupted once for all files."""
        running = {name: session(path, self.threads) for name, path in files.items()}
        right = {name: dict.fromkeys(self.settings.corruptions, 0) for name in files}
        total, done = len(self.data.test), 0
        for labels, views in self.batches():
            for corruption, images in views.items():
                fed = as_fed(self.data, torch.from_numpy(images), self.form)
                for name, net in running.items():
                    right[name][corruption] += int((outputs(net, fed)[0].argmax(1) == labels).sum())
            done += len(labels)
            said = f"severity {self.settings.severity}"
            self.tell({
                "event": "progress", "stage": "robustness", "doing": "corrupted images", "done": done, "of": total,
                "figures": said,
            })  # fmt: skip
        return {name: {key: 100 * hits / total for key, hits in found.items()} for name, found in right.items()}

    def batches(self) -> Iterator[tuple[np.ndarray, dict[Corruption, np.ndarray]]]:
        """Labels and uint8 test images (n, C, H, W) under each corruption, batch by batch, in order."""
        test, settings = self.data.test, self.settings
        # A stream of its own: made-up data are drawn from the same seed.
        random = np.random.default_rng([self.seed, *b"noise"])
        for begin in range(0, len(test), BATCH):
            indices = np.arange(begin, min(begin + BATCH, len(test)))
            images = test.images[indices].numpy()
            yield (
                test.labels[indices],
                {each: corrupted(images, each, settings.severity, random) for each in settings.corruptions},
            )

    def made_of(self, file: Path) -> str:
        """Changes with all that a figure depends on."""
        versions = np.__version__, ort.__version__
        return fingerprint(
            checksums.sha256(file), self.data.fingerprint, self.settings.model_dump(), self.form, self.seed, versions
        )

    def known(self, path: Path, made_of: str) -> dict[Corruption, float] | None:
        """What was kept for a file, None where there is nothing that can be trusted; what is damaged is said."""
        if not path.exists():
            return None
        try:
            found = checksums.read(path)
        except ArtifactError as error:
            self.tell({"event": "warning", "text": f"{error}; it is measured again"})
            return None
        same = found.get("made_of") == made_of
        return {name: float(found["top1"][name]) for name in self.settings.corruptions} if same else None


def as_fed(data: Data, images: Tensor, form: Literal["float32_nchw", "uint8_nhwc"]) -> np.ndarray:
    """uint8 images (n, C, H, W) as a file is fed: float32 NCHW and normalised, or uint8 NHWC."""
    if form == "uint8_nhwc":
        return images.permute(0, 2, 3, 1).contiguous().numpy()
    return data.inputs(images).numpy()


def mean_top1(found: Mapping[Corruption, float]) -> float:
    """The mean over the corruptions that were measured."""
    values: Sequence[float] = tuple(found.values())
    return sum(values) / len(values)
