"""From a net to a file and the figures measured on that file."""

import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import ModelProto
from torch import Tensor, fx

from compress import __version__
from compress.config import fingerprint
from compress.data.base import Data
from compress.errors import ArtifactError, ExportError
from compress.export.onnx import Export, Exporter
from compress.export.storage import extras
from compress.files import checksums, durable
from compress.measure.accuracy import Accuracy, judge
from compress.measure.coverage import coverage
from compress.measure.file import count_macs, outputs, read_file, session
from compress.measure.layerwise import LayerNoise, Power, first_divergence, layer_noise
from compress.measure.structure import remarks, require, structure
from compress.net import Net
from compress.training.predicting import predict

BATCH = 64
PROOF = "proof.json"
AGREEMENT_FLOAT, AGREEMENT_INT8 = 99.0, 97.0  # per cent; a file under this is not the net that was trained
COMPARED = 32  # images on which net and file are compared layer by layer, fewer where they are large
COMPARED_PIXELS = 16 * 64 * 64
SAME_DB = 60.0  # a second file of the same net may sum in another order, and no more


@dataclass(frozen=True)
class Proof:
    """A file and all that is known of it but its latency.

    The figures are as in `Row`; `warnings` say what a user should know before shipping it. `layers` has the
    signal-to-noise behind each quantizer of an int8 net, in the order in which data pass. `files` are the other files
    of the run folder that were written with it, each with its SHA-256.
    """

    onnx: str
    sha256: str
    accuracy: Accuracy
    params: int
    macs: int
    bytes: int
    int8: bool
    warnings: tuple[str, ...] = ()
    layers: tuple[LayerNoise, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Prover:
    """Exports nets into a run folder and measures the files, or takes both over where they are unchanged.

    `about` is written into each file's metadata beside what is known here. `warn` hears of what was kept and is
    damaged.
    """

    out: Path
    data: Data
    config: Export
    device: torch.device
    about: Mapping[str, str] = field(default_factory=dict)
    threads: int = field(default_factory=torch.get_num_threads)
    warn: Callable[[str], None] = lambda text: None

    def __post_init__(self) -> None:
        self.exporter = Exporter(self.config, self.data.mean, self.data.std)

    def seeing(self, data: Data) -> "Prover":
        """The same for a net that sees the images otherwise, such as a teacher with a view of its own."""
        return self if data is self.data else replace(self, data=data)

    def graph(self, net: Net, name: str) -> tuple[ModelProto, tuple[str, ...]]:
        """The ONNX form of a net, its structure judged, with warnings; raises ExportError where it does not hold."""
        model = self.exporter(net, self.metadata(net, name))
        return model, self.judged(model, net, name)

    def judged(self, model: ModelProto, net: Net, name: str) -> tuple[str, ...]:
        """What a user should know of a net's file that is otherwise sound; raises ExportError where a check fails."""
        checks = tuple(structure(model, self.config.target, coverage(model), net))
        require(checks, name)
        return remarks(checks) if net.int8 else ()

    def prove(self, net: Net, name: str, path: str, kept: Path, key: str) -> Proof:
        """Export a net to `path` (relative to the run folder) and measure the file.

        What is measured is kept in `kept` and taken over as long as key, versions and the file's bytes are the same.
        """
        target = self.out / path
        made_of = fingerprint(
            key, self.metadata(net, name), self.config.model_dump(), self.data.fingerprint, ort.__version__
        )
        known = self.known(kept / PROOF, made_of)
        if known and not checksums.damage(self.out, {path: known.sha256, **known.files}):
            return known
        predictions = self.out / "predictions" / f"{name}.csv"
        content = self.exporter(net, self.metadata(net, name)).SerializeToString(deterministic=True)
        durable.write(target, content)
        model = read_file(target)  # what was written is judged, not what was meant
        warnings = self.judged(model, net, path)
        beside = self.write_extras(model, target)
        ours = predict(net.module, self.data, self.data.test, self.device, BATCH).numpy()
        theirs = self.file_logits(target)
        write_predictions(predictions, self.data.test.labels, ours.argmax(1), theirs.argmax(1))
        proof = Proof(
            onnx=path,
            sha256=hashlib.sha256(content).hexdigest(),
            accuracy=judge(ours, theirs, self.data.test.labels),
            params=net.params,
            macs=count_macs(model),
            bytes=len(content),
            int8=net.int8,
            warnings=warnings,
            layers=self.layers(net, model),
            files=checksums.digests(self.out, [predictions, *beside]),
        )
        checksums.write(kept / PROOF, {"made_of": made_of, **asdict(proof)})
        return proof

    def known(self, path: Path, made_of: str) -> Proof | None:
        """What was found out before, None where there is nothing of this making; what is damaged is said."""
        if not path.exists():
            return None
        try:
            found = checksums.read(path)
        except ArtifactError as error:
            self.warn(f"{error}; the net is exported and measured again")
            return None
        if found.pop("made_of") != made_of:
            return None
        accuracy, layers = Accuracy(**found["accuracy"]), tuple(LayerNoise(**each) for each in found["layers"])
        return Proof(**found | {"accuracy": accuracy, "warnings": tuple(found["warnings"]), "layers": layers})

    def layers(self, net: Net, model: ModelProto) -> tuple[LayerNoise, ...]:
        """How an int8 net, the same without rounding, and its file differ layer by layer, on some test images."""
        images = self.some_images()
        if not net.int8 or not len(images):
            return ()
        assert isinstance(net.module, fx.GraphModule)
        net.module.to("cpu")
        return layer_noise(net.module, model, images, threads=self.threads, to_net=self.to_net)

    def some_images(self) -> np.ndarray:
        """The first test images, as files are fed."""
        count = min(COMPARED, max(COMPARED_PIXELS // (self.data.image[1] * self.data.image[2]), 2))
        first = next(self.fed(), None)
        return np.zeros((0,), np.float32) if first is None else first[:count]

    def to_net(self, fed: np.ndarray) -> Tensor:
        """Images as a file is fed to what a net takes, (n, C, H, W) float32."""
        images = torch.from_numpy(fed)
        return self.data.inputs(images.permute(0, 3, 1, 2)) if self.config.input == "uint8_nhwc" else images

    def write_extras(self, model: ModelProto, target: Path) -> list[Path]:
        """Write what the target wants beside the file, and see that it gives the same; raises ExportError."""
        images, written = self.some_images(), []
        for suffix, content in extras(model, self.config.target).items():
            beside = target.with_suffix(suffix)
            written.append(beside)
            durable.write(beside, content)
            power = Power()
            if len(images):
                power.add(*(outputs(session(path, self.threads), images)[0] for path in (target, beside)))
                if power.db < SAME_DB:
                    raise ExportError(
                        f"{beside.name} gives other outputs than {target.name}: {power.db:.0f} dB signal-to-noise, "
                        f"{SAME_DB:g} are needed"
                    )
        return written

    def file_logits(self, path: Path) -> np.ndarray:
        """What ONNX Runtime computes from the file for every test image, (n, classes)."""
        running = session(path, self.threads)
        logits = [outputs(running, batch)[0] for batch in self.fed()]
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
            inputs, labels = np.concatenate(arrays), self.data.test.labels
            with durable.writing(self.out / "test.npz", inputs.nbytes + labels.nbytes) as file:
                np.savez_compressed(file, inputs=inputs, labels=labels)


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
    lost = first_divergence(proof.layers)
    if lost is not None:
        worst = min(db for db in (lost.file_db, lost.plain_db) if db is not None)
        raise ExportError(
            f"{proof.onnx} is no longer the PyTorch net {name} from {lost.quantizer} on: {worst:.1f} dB "
            f"signal-to-noise where rounding leaves {lost.rounding_db or 0:.1f}; do not ship this file; "
            "`compress verify` shows all layers"
        )


def write_predictions(path: Path, labels: np.ndarray, ours: np.ndarray, theirs: np.ndarray) -> None:
    """One line for each test image: sample, label, class in PyTorch, class in ONNX Runtime. Raises ResourceError."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["sample", "label", "torch", "onnx"])
    writer.writerows(zip(range(len(labels)), labels.tolist(), ours.tolist(), theirs.tolist(), strict=True))
    durable.write(path, table.getvalue())
