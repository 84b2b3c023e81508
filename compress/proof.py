"""From a net to a file and the figures measured on that file."""

import csv
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import ModelProto

from compress import __version__
from compress.config import fingerprint
from compress.data.base import Data
from compress.errors import ExportError
from compress.export.onnx import Export, Exporter
from compress.measure.accuracy import Accuracy, judge
from compress.measure.file import count_macs, require_int8, session
from compress.net import Net
from compress.train import predict

BATCH = 64
AGREEMENT_FLOAT, AGREEMENT_INT8 = 99.0, 97.0  # per cent; a file under this is not the net that was trained


@dataclass(frozen=True)
class Proof:
    """A file and all that is known of it but its latency.

    The figures are as in `Row`; `warnings` say what a user should know before shipping it.
    """

    onnx: str
    sha256: str
    accuracy: Accuracy
    params: int
    macs: int
    bytes: int
    int8: bool
    warnings: tuple[str, ...] = ()


@dataclass
class Prover:
    """Exports nets into a run folder and measures the files, or takes both over where they are unchanged.

    `about` is written into each file's metadata beside what is known here.
    """

    out: Path
    data: Data
    config: Export
    device: torch.device
    about: Mapping[str, str] = field(default_factory=dict)
    threads: int = field(default_factory=torch.get_num_threads)

    def __post_init__(self) -> None:
        self.exporter = Exporter(self.config, self.data.mean, self.data.std)

    def graph(self, net: Net, name: str) -> tuple[ModelProto, tuple[str, ...]]:
        """The ONNX form of a net, its structure judged, with warnings; raises ExportError where it does not hold."""
        model = self.exporter(net, self.metadata(net, name))
        if not net.int8:
            return model, ()
        convolutions = sum(node.op_type == "Conv" for node in model.graph.node)
        return model, require_int8(model, convolutions)

    def prove(self, net: Net, name: str, path: str, kept: Path, key: str) -> Proof:
        """Export a net to `path` (relative to the run folder) and measure the file.

        What is measured is kept in `kept` and taken over as long as key, versions and the file's bytes are the same.
        """
        target = self.out / path
        made_of = fingerprint(
            key, self.metadata(net, name), self.config.model_dump(), self.data.fingerprint, ort.__version__
        )
        known = _known(kept / "proof.json", made_of)
        predictions = self.out / "predictions" / f"{name}.csv"
        if known and predictions.exists() and target.exists() and _sha256(target.read_bytes()) == known.sha256:
            return known
        model, warnings = self.graph(net, name)
        content = model.SerializeToString(deterministic=True)
        _write(target, content)
        ours = predict(net.module, self.data, self.data.test, self.device).numpy()
        theirs = self.file_logits(target)
        write_predictions(predictions, self.data.test.labels, ours.argmax(1), theirs.argmax(1))
        proof = Proof(
            onnx=path,
            sha256=_sha256(content),
            accuracy=judge(ours, theirs, self.data.test.labels),
            params=net.params,
            macs=count_macs(model),
            bytes=len(content),
            int8=net.int8,
            warnings=warnings,
        )
        _write(kept / "proof.json", json.dumps({"made_of": made_of, **asdict(proof)}, indent=1).encode())
        return proof

    def file_logits(self, path: Path) -> np.ndarray:
        """What ONNX Runtime computes from the file for every test image, (n, classes)."""
        running = session(path, self.threads)
        name = running.get_inputs()[0].name
        logits = [running.run(None, {name: batch})[0] for batch in self.fed()]
        return np.concatenate(logits) if logits else np.zeros((0, self.data.classes), np.float32)

    def fed(self) -> Iterator[np.ndarray]:
        """The test images in order, in batches, as the files are fed: float32 NCHW or uint8 NHWC."""
        test = self.data.test
        for begin in range(0, len(test), BATCH):
            images = test.images[np.arange(begin, min(begin + BATCH, len(test)))]
            if self.config.input == "uint8_nhwc":
                yield images.permute(0, 2, 3, 1).contiguous().numpy()
            else:
                yield self.data.inputs(images).numpy()

    def metadata(self, net: Net, name: str) -> dict[str, str]:
        """What a file says of itself, so that it can be used without this program: no time, no path."""
        raw = self.config.input == "uint8_nhwc"
        values = {
            "class_names": list(self.data.class_names),
            "mean": list(self.data.mean),
            "std": list(self.data.std),
            "input_range": [0, 255] if raw else [0, 1],
            "input_layout": "NHWC uint8, normalised in the file" if raw else "NCHW float32, (pixel / 255 - mean) / std",
            **self.about,
            "scheme": "int8 weights per channel, uint8 activations per tensor" if net.int8 else "float32",
            "net": name,
            "architecture": net.spec.architecture.name,
            "compress_version": __version__,
            "torch_version": str(torch.__version__),
            "onnx_version": onnx.__version__,
        }
        return {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}

    def write_test_images(self) -> None:
        """Copy the test images, as the files are fed, and their labels to test.npz."""
        arrays = [*self.fed()]
        if arrays:
            np.savez_compressed(self.out / "test.npz", inputs=np.concatenate(arrays), labels=self.data.test.labels)


def require_agreement(name: str, proof: Proof) -> None:
    """See that the file predicts what the net predicts; raises ExportError where it does not.

    One image in a small test set may always differ: rounding ties fall either way.
    """
    accuracy = proof.accuracy
    wanted = AGREEMENT_INT8 if proof.int8 else AGREEMENT_FLOAT
    differing = round(accuracy.samples * (1 - accuracy.agreement / 100))
    if accuracy.agreement < wanted and differing > 1:
        raise ExportError(
            f"{proof.onnx} predicts another class than the PyTorch net {name} for {differing} of {accuracy.samples} "
            f"test images ({accuracy.agreement:.1f} % agree, {wanted:g} % are needed): do not ship this file; "
            "it and the predictions are kept for a look"
        )


def write_predictions(path: Path, labels: np.ndarray, ours: np.ndarray, theirs: np.ndarray) -> None:
    """One line for each test image: sample, label, class in PyTorch, class in ONNX Runtime."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["sample", "label", "torch", "onnx"])
        writer.writerows(zip(range(len(labels)), labels.tolist(), ours.tolist(), theirs.tolist(), strict=True))


def _known(path: Path, made_of: str) -> Proof | None:
    try:
        found = json.loads(path.read_text())
        if found.pop("made_of") != made_of:
            return None
        return Proof(**found | {"accuracy": Accuracy(**found["accuracy"]), "warnings": tuple(found["warnings"])})
    except (OSError, ValueError, KeyError, TypeError):
        return None  # what cannot be read is measured again


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_bytes(content)
    os.replace(unfinished, path)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
