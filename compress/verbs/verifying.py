"""`compress verify`: everything that can be known of a file, its run folder and images where they are at hand."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from onnx import ModelProto
from torch import Tensor, fx

from compress.config import near
from compress.edits.graph import evaluating
from compress.edits.quantizers import is_dynamic
from compress.environment import cpu_flags, has_vnni
from compress.errors import ConfigError, DataError
from compress.export.targets import TARGETS
from compress.files.onnx_file import read_onnx
from compress.measure.accuracy import top_k
from compress.measure.coverage import coverage
from compress.measure.file import metadata, outputs, read_file, session
from compress.measure.latency import input_for
from compress.measure.layerwise import LOGITS, LayerNoise, Power, first_divergence, layer_noise
from compress.measure.saturation import Saturation, saturated_logits, saturation_risk
from compress.measure.structure import rounded, structure
from compress.measure.verification import Check, Verification
from compress.net import Net
from compress.running.origin import Images, Origin, find_images, find_origin
from compress.running.proof import AGREEMENT_FLOAT, AGREEMENT_INT8, BATCH, COMPARED, COMPARED_PIXELS

AGREEMENT_REFERENCE = 90.0  # per cent; rounding may cost an int8 file this much against a float one
MADE_UP = "made-up images"
SIMULATED = 256  # images on which saturation is simulated


def verify(
    file: Path,
    *,
    run: Path | None = None,
    reference: Path | None = None,
    data: Path | None = None,
    target: str | None = None,
) -> Verification:
    """Check a file in all ways that its surroundings allow; what could not be looked at is said.

    Raises ModelError for what is no valid ONNX file or is never read from outside, ExportError for one that the runtime
    refuses, ConfigError for an unknown target or a folder that is no run's, DataError for images that cannot be read or
    do not fit.
    """
    if target is not None and target not in TARGETS:
        raise ConfigError(f"--target {target}: no such target.{near(target, TARGETS)}")
    model = read_file(file)
    if reference is not None:
        read_onnx(reference)  # the runtime reads it below
    session(file)
    origin = find_origin(file, run)
    images = find_images(data, origin)
    return Verifier(file, model, target or metadata(model).get("target"), origin, images, reference).verification()


@dataclass
class Verifier:
    """One file and what was found around it."""

    file: Path
    model: ModelProto
    target: str | None
    origin: Origin | None
    images: Images | None
    reference: Path | None

    def __post_init__(self) -> None:
        self.net: Net | None = self.origin.net if self.origin else None
        self.judged = self.origin is None or self.origin.trained
        self.int8 = rounded(self.model)

    def verification(self) -> Verification:
        """All checks, and what they rest on."""
        found = coverage(self.model)
        checks = [self.of_origin(check) for check in structure(self.model, self.target, found, self.net)]
        noise, risk = self.noise() if self.int8 else (), saturation_risk(self.model)
        checks += [*self.bytes(), *self.agreement(), *self.accuracy()]
        if self.int8:
            checks += [self.layers(noise), self.saturation(risk)]
        nodes = (*found.float_layers, *found.islands) if self.int8 else ()
        return Verification(str(self.file), tuple(checks), nodes, noise, risk.risks)

    def of_origin(self, check: Check) -> Check:
        """The same check, with the reason that a run's net could not be had."""
        if check.name == "weights" and self.net is None and self.origin is not None:
            return Check(check.name, None, f"not compared with the net: {self.origin.reason}")
        return check

    def bytes(self) -> Iterator[Check]:
        """Whether the file is byte for byte what its run wrote."""
        if self.origin is not None and self.origin.unchanged is not None:
            said = "byte for byte" if self.origin.unchanged else "the file is not the one that the run wrote"
            yield Check("run", self.origin.unchanged, f"{said} ({self.origin.folder})")

    @cached_property
    def logits(self) -> np.ndarray:
        """What the file says of all images, (n, classes)."""
        assert self.images is not None
        return file_logits(self.file, self.images.inputs, self.images.source)

    def agreement(self) -> Iterator[Check]:
        """Whether the file predicts what its net and the reference predict."""
        if self.images is None:
            yield from self.on_made_up_images()
            return
        if not np.isfinite(self.logits).all():
            yield Check("agreement", False, f"the file gives NaN or infinite logits; {self.images.source}")
            return
        if self.net is not None:
            limit = AGREEMENT_INT8 if self.int8 else AGREEMENT_FLOAT
            yield self.agrees("its PyTorch net", self.net_logits(self.net), limit)
        if self.reference is not None:
            theirs = file_logits(self.reference, self.images.inputs, self.images.source)
            yield self.agrees(str(self.reference), theirs, AGREEMENT_REFERENCE if self.int8 else AGREEMENT_FLOAT)
        if self.net is None and self.reference is None:
            yield Check("agreement", None, "nothing to compare with; --reference or --run names the origin")

    def agrees(self, name: str, theirs: np.ndarray, limit: float) -> Check:
        """Whether the file predicts the classes of these logits; one image may always differ."""
        assert self.images is not None
        if theirs.shape != self.logits.shape:
            text = f"{name} gives {theirs.shape} for these images and the file {self.logits.shape}"
            return Check("agreement", False, text)
        same = int((self.logits.argmax(1) == theirs.argmax(1)).sum())
        count, power = len(theirs), Power()
        power.add(theirs, self.logits)
        share = 100 * same / count
        text = (
            f"{same} of {count} images get the class that {name} gives them ({share:.1f} %, {limit:g} % are needed), "
            f"logits {power.db:.1f} dB; {self.images.source}"
        )
        good = share >= limit or count - same <= 1
        if not good and not self.judged:
            return Check("agreement", None, f"{text}; not judged, the net was not trained")
        return Check("agreement", good, text)

    def on_made_up_images(self) -> Iterator[Check]:
        """Without images only the logits' noise against the reference can be told, which proves little."""
        if self.reference is None:
            yield Check("agreement", None, "not looked at: there are no images; --data FILE.npz gives some")
            return
        fed, power = self.few(), Power()
        power.add(*(file_logits(each, fed, MADE_UP) for each in (self.reference, self.file)))
        text = f"logits {power.db:.1f} dB against {self.reference} on {MADE_UP}; --data FILE.npz gives real ones"
        yield Check("agreement", None, text)

    def accuracy(self) -> Iterator[Check]:
        """How often the file is right, where labels are known."""
        if self.images is not None and self.images.labels is not None:
            top1 = top_k(self.logits, self.images.labels, 1)
            yield Check("accuracy", None, f"{top1:.1f} % of {len(self.logits)} images right; {self.images.source}")

    def few(self) -> np.ndarray:
        """A few of the images, or made-up ones, for looking at every layer."""
        if self.images is None:
            net = session(self.file)
            return next(iter(input_for(net, 4 if net.get_inputs()[0].shape[0] != 1 else 1).values()))
        pixels = max(int(np.prod(self.images.inputs.shape[1:])) // 3, 1)
        return self.images.inputs[: min(COMPARED, max(COMPARED_PIXELS // pixels, 2))]

    def noise(self) -> tuple[LayerNoise, ...]:
        """Signal-to-noise at every rounded value."""
        module = self.net.module if self.net is not None and self.images is not None and self.net.int8 else None
        assert module is None or isinstance(module, fx.GraphModule)
        return layer_noise(module, self.model, self.few(), to_net=self.to_net)

    def layers(self, noise: tuple[LayerNoise, ...]) -> Check:
        """Where along the way the file stops being the net, or the runtime's optimisations change it."""
        first = first_divergence(noise)
        source = self.images.source if self.images else MADE_UP
        between = "net and file" if any(each.plain_db is not None for each in noise) else "the file's two forms"
        if first is not None:
            ratios = ", ".join(f"{db:.1f}" for db in (first.file_db, first.plain_db) if db is not None)
            text = f"{between} part at {first.quantizer}: {ratios} dB; {source}"
            return Check("layers", False if self.judged and self.images else None, text)
        known = [(db, each.quantizer) for each in noise for db in (each.file_db, each.plain_db) if db is not None]
        lowest, name = min(known, default=(0.0, LOGITS))
        return Check("layers", True, f"{between} stay together: {lowest:.1f} dB at the least, at {name}; {source}")

    def saturation(self, found: Saturation) -> Check:
        """What is lost on a CPU that adds pairs of products in 16 bits, and whether this is one."""
        if not found.pairs:
            return Check("saturation", None, "no layer sums products of uint8 activations and int8 weights in pairs")
        if not found.risks:
            return Check("saturation", True, "no sum of two products leaves 16 bits, on CPUs without VNNI neither")
        worst, flags = found.risks[0], cpu_flags()
        here = "this CPU's flags cannot be read"
        if flags:
            here = "none on this one, which has VNNI or the like" if has_vnni(flags) else "and this CPU is one"
        text = (
            f"on CPUs without VNNI {found.share:.1f} % of pairs of products can leave 16 bits, in {len(found.risks)} "
            f"layers, most in {worst.layer} ({worst.share:.1f} %); {here}"
        )
        return Check("saturation", None, f"{text}; {self.simulated()}; target onnxruntime-avx2 has no such loss")

    def simulated(self) -> str:
        """What a CPU without VNNI would make of the images, in words."""
        module = self.net.module if self.net is not None else None
        if self.images is None or not isinstance(module, fx.GraphModule) or is_dynamic(module):
            return "what it costs was not simulated: that takes a run folder with static ranges, and images"
        fed = self.images.inputs[: max(min(SIMULATED, SIMULATED * COMPARED_PIXELS // self.few()[0].size // 16), 2)]
        result = saturated_logits(module, self.to_net(fed))
        if result is None:
            return "what it costs was not simulated: that would take minutes"
        ours, cut = result
        same = 100 * float((ours.argmax(1) == self.logits[: len(fed)].argmax(1)).mean())
        text = f"simulated there, {same:.1f} % of {len(fed)} images keep their class ({sum(cut.values()):,} sums cut)"
        if self.images.labels is None:
            return text
        labels = self.images.labels[: len(fed)]
        return (
            f"{text}, {top_k(ours, labels, 1):.1f} % right instead of {top_k(self.logits[: len(fed)], labels, 1):.1f} %"
        )

    def net_logits(self, net: Net) -> np.ndarray:
        """What the PyTorch net says of all images, (n, classes)."""
        assert self.images is not None
        with evaluating(net.module), torch.no_grad():
            try:
                parts = [net.module(self.to_net(part)).numpy() for part in _parts(self.images.inputs)]
            except RuntimeError as error:
                reason = str(error).splitlines()[0]
                raise DataError(f"{self.images.source} does not fit the net of {self.file}: {reason}") from error
        return np.concatenate(parts)

    def to_net(self, fed: np.ndarray) -> Tensor:
        """Images as the file is fed to what its net takes: raw pixels are scaled as the file's metadata say."""
        images = torch.from_numpy(fed)
        if images.dtype != torch.uint8:
            return images
        about = metadata(self.model)
        mean, std = (torch.tensor(json.loads(about[key])).view(1, -1, 1, 1) for key in ("mean", "std"))
        return (images.permute(0, 3, 1, 2).float() / 255 - mean) / std


def file_logits(file: Path, images: np.ndarray, source: str) -> np.ndarray:
    """What a file says of images, (n, classes); raises DataError where they do not fit it."""
    running = session(file)
    wanted = running.get_inputs()[0]
    try:
        return np.concatenate([outputs(running, part)[0] for part in _parts(images)])
    except Exception as error:  # the runtime's own exceptions share no base class but this
        raise DataError(
            f"{source} does not fit {file}: images {images.dtype} {images.shape}, and the file takes {wanted.type} "
            f"{wanted.shape}"
        ) from error


def _parts(images: np.ndarray) -> Iterator[np.ndarray]:
    for begin in range(0, len(images), BATCH):
        yield images[begin : begin + BATCH]
