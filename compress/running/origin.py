"""Where an ONNX file came from: the run folder that it lies in, and the kept net that it was made of."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compress import net as nets
from compress.data.npz import arrays
from compress.errors import ArtifactError, ConfigError, DataError, ModelError
from compress.files import checksums
from compress.net import Net
from compress.running import kept

INPUTS, LABELS = "inputs", "labels"


@dataclass(frozen=True)
class Origin:
    """A file's run folder and what is kept there of it.

    `net` is None where it cannot be rebuilt, and `reason` says why; `unchanged` tells whether the file's bytes are
    those that the run wrote; `trained` is off where accuracy means nothing.
    """

    folder: Path
    net: Net | None = None
    reason: str = ""
    unchanged: bool | None = None
    trained: bool = True


@dataclass(frozen=True)
class Images:
    """Images (n, …) as files are fed, their labels (n,) if known, and where they are from."""

    inputs: np.ndarray
    labels: np.ndarray | None
    source: str


def find_origin(file: Path, run: Path | None) -> Origin | None:
    """The run that a file belongs to: the given one, or that whose `models` folder it lies in; None for no run.

    Raises ConfigError where the given folder is no run's.
    """
    if run is not None and not (run / "stages").is_dir():
        raise ConfigError(f"--run {run}: that is no run folder, there is no {run / 'stages'}; give the folder of a run")
    inside = (parent.parent for parent in file.resolve().parents if parent.name == "models")
    folder = run or next((each for each in inside if (each / "stages").is_dir()), None)
    if folder is None:
        return None
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    found = _kept(file, folder, digest)
    trained = _verdict(folder) != "untrained"
    if found is None:
        return Origin(folder, reason=f"no stage in {folder} wrote a file of this name", trained=trained)
    place, known = found
    try:
        net, reason = nets.load(place), _damage(place)
    except ModelError as error:
        net, reason = None, f"{str(error).split('; delete')[0]}; a model of your own needs --plugin FILE.py"
    return Origin(folder, None if reason else net, reason, known.get("sha256") == digest, trained)


def find_images(data: Path | None, origin: Origin | None) -> Images | None:
    """The images to compare on: the given file's, or the run's test images; None where there are none.

    Raises DataError where a file cannot be read or holds no `inputs`.
    """
    if data is None and (origin is None or not (origin.folder / "test.npz").is_file()):
        return None
    path = data or origin.folder / "test.npz"  # type: ignore[union-attr]
    try:
        found = arrays(path, (INPUTS, LABELS))
    except DataError as error:
        raise DataError(f"{path} cannot be read as a .npz file of images: {error}") from error
    if INPUTS not in found or not found[INPUTS].ndim or not len(found[INPUTS]):
        raise DataError(f"{path} holds no such array; `{INPUTS}` is needed, `{LABELS}` may be there")
    inputs, labels = found[INPUTS], found.get(LABELS)
    if labels is not None and labels.shape != (len(inputs),):
        raise DataError(
            f"{path}: {len(inputs)} inputs and labels of shape {labels.shape}; one label an image is needed"
        )
    return Images(inputs, labels, str(path))


def _kept(file: Path, folder: Path, digest: str) -> tuple[Path, dict[str, Any]] | None:
    """The kept net that a file was made of: the one with its very bytes, else the last written under its name."""
    found = sorted(_proofs(folder), key=lambda each: (each[0] / "proof.json").stat().st_mtime)
    same = [each for each in found if each[1].get("sha256") == digest]
    name = str(file.resolve().relative_to(folder.resolve())) if file.resolve().is_relative_to(folder.resolve()) else ""
    named = [each for each in found if each[1].get("onnx") == name]
    called = [each for each in found if Path(str(each[1].get("onnx"))).name == file.name]
    return next((group[-1] for group in (same, named, [] if name else called) if group), None)


def _damage(place: Path) -> str:
    """What is wrong with a kept net that can be loaded all the same; empty where it is as it was written."""
    try:
        kept.require_whole(place)
    except ArtifactError as error:
        return str(error)
    return ""


def _proofs(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in (folder / "stages").rglob("proof.json"):
        try:
            yield path.parent, checksums.read(path)
        except ArtifactError:
            continue


def _verdict(folder: Path) -> str:
    try:
        return str(json.loads((folder / "report.json").read_text())["verdict"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
