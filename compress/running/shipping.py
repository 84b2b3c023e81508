"""What a run puts beside its files so that they can be tried on the device itself: a script, and what to expect there.

The script, `compress/shipped/bench.py`, is copied as it is. Nothing of time, place or host is written, so that the same
run gives the same bytes.
"""

import io
import json
from collections.abc import Mapping
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch

from compress.data.base import Data, InMemory, Split, spread
from compress.files import durable
from compress.running.proof import Proof, Prover

MODELS = "models"
SCRIPT, REFERENCE = "bench.py", "reference.npz"
VERSION = 1  # of the reference's form
IMAGES = 16  # that every file is compared on, fewer where they are large
INPUT_BYTES = 2**21
FEWEST = 4
CELL = 8  # patterns are this many cells wide and high


def ship(out: Path, proofs: Mapping[str, Proof], provers: Mapping[str, Prover]) -> None:
    """Write the script and reference.npz into a run's `models/`. Raises ResourceError.

    `proofs` has every file there by its net's name, `provers` who sees that net's images. The reference holds test
    images only where the data may be embedded; else patterns stand for them, and no image leaves the run.
    """
    durable.write(out / MODELS / SCRIPT, files("compress.shipped").joinpath(SCRIPT).read_bytes())
    content = io.BytesIO()
    np.savez_compressed(content, **reference(out, proofs, provers))  # type: ignore[arg-type]
    durable.write(out / MODELS / REFERENCE, content.getvalue())


def reference(out: Path, proofs: Mapping[str, Proof], provers: Mapping[str, Prover]) -> dict[str, np.ndarray]:
    """The arrays of reference.npz: `about` (JSON), and inputs, labels and logits under the names that it gives.

    `inputs_k` is (n, C, H, W) float32 or (n, H, W, C) uint8, as files are fed; `labels_k` (n,) is left out for
    patterns; each net's `logits_<net>` is (n, classes).
    """
    embedded = all(prover.data.embedded for prover in provers.values())
    arrays: dict[str, np.ndarray] = {}
    about: dict[str, dict[str, str | bool]] = {}
    views: list[tuple[Data, Prover]] = []  # what the nets see, and a handful of it
    for name, proof in proofs.items():
        data = provers[name].data
        k = next((i for i, (seen, _) in enumerate(views) if seen is data), len(views))
        if k == len(views):
            few = provers[name].seeing(some(provers[name], embedded))
            views.append((data, few))
            arrays[f"inputs_{k}"] = np.concatenate([*few.fed()])
            if embedded:
                arrays[f"labels_{k}"] = few.data.test.labels
        logits = f"logits_{name}"
        arrays[logits] = views[k][1].file_logits(out / proof.onnx)
        written = {proof.onnx: proof.sha256, **proof.files}
        for path, digest in written.items():
            if path.startswith(f"{MODELS}/"):
                entry: dict[str, str | bool] = {
                    "sha256": digest,
                    "inputs": f"inputs_{k}",
                    "logits": logits,
                    "int8": proof.int8,
                }
                about[path.removeprefix(f"{MODELS}/")] = entry
    source = "test images" if embedded else "made-up patterns"
    said = {"version": VERSION, "inputs": source, "onnxruntime": ort.__version__, "files": about}
    return {"about": np.array(json.dumps(said)), **arrays}


def some(prover: Prover, embedded: bool) -> Data:
    """The data with a handful of test images, spread over the classes, or as many patterns."""
    data = prover.data
    one = int(np.prod(data.image)) * (1 if prover.config.input == "uint8_nhwc" else 4)
    count = min(IMAGES, max(FEWEST, INPUT_BYTES // one))
    if embedded:
        return replace(data, test=data.test.take(spread(data.test.labels, count)))
    return replace(data, test=Split(InMemory(patterns(count, data.image)), np.zeros(count, dtype=np.int64)))


def patterns(count: int, image: tuple[int, int, int]) -> torch.Tensor:
    """Mosaics of random colours, uint8 (count, C, H, W), the same every time: more like pictures than noise is."""
    channels, height, width = image
    cells = np.random.RandomState(0).randint(0, 256, (count, channels, CELL, CELL)).astype(np.uint8)
    down, across = -(-height // CELL), -(-width // CELL)
    whole = cells.repeat(down, axis=2).repeat(across, axis=3)[:, :, :height, :width]
    return torch.from_numpy(np.ascontiguousarray(whole))
