"""What a report tells beyond its rows: single layers, what rounding leaves, which predictions changed."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from compress.data.base import Data
from compress.edits.graph import evaluating
from compress.edits.macs import count_positions
from compress.errors import ExportError
from compress.export.scheme import widths
from compress.measure.confusion import Changes, changes, read_predictions
from compress.measure.coverage import coverage
from compress.measure.file import read_file
from compress.measure.layerwise import LOGITS
from compress.measure.thumbnails import thumbnail
from compress.net import Net, build
from compress.pruning.sensitivity_table import ranked, read
from compress.report import Layer, LeftFloat, Rounding
from compress.row import Row
from compress.running.kept import Finished
from compress.running.proof import Proof


def layers_of(net: Net, lost: Mapping[str, float]) -> tuple[Layer, ...]:
    """Each convolution and linear layer of a net and what it was in its architecture, 0 where it is new.

    `lost` has what cutting each cost, in points.
    """
    dense = build(net.spec.model_copy(update={"edits": ()}))
    channels_before, macs_before = widths(dense.module), _macs(dense)
    channels, macs = widths(net.module), _macs(net)
    return tuple(
        Layer(name, channels_before.get(name, 0), now, macs_before.get(name, 0), macs.get(name, 0), lost.get(name))
        for name, now in channels.items()
    )


def sensitivities(out: Path, stages: Sequence[str]) -> dict[str, float]:
    """The mean points of accuracy that cutting each layer cost, as far as these stages measured it in a run folder."""
    found: dict[str, float] = {}
    for stage in stages:
        rows = read(out / "sensitivity" / f"{stage}.csv")
        found |= dict(ranked(rows, "group")) | dict(ranked(rows, "layer"))
    return found


def rounding_of(proof: Proof, net: Net) -> tuple[Rounding, ...]:
    """What rounding leaves behind each quantizer, named by the layer that it stands behind."""
    names = {path.replace(".", "_"): path for path, _ in net.module.named_modules() if path}
    found = []
    for each in proof.layers:
        if each.rounding_db is not None:
            short = each.quantizer.removeprefix("quantizer_")
            name = {"x": "the image", LOGITS: "the logits"}.get(short, names.get(short, short))
            found.append(Rounding(name, each.rounding_db))
    return tuple(found)


def left_float(file: Path) -> tuple[LeftFloat, ...]:
    """What ONNX Runtime computes in float in an int8 file here, and why; empty where it takes the file no more."""
    try:
        found = coverage(read_file(file))
    except ExportError:
        return ()
    kernels = (*found.float_layers, *found.islands)
    return tuple(LeftFloat(each.name, each.operator, each.reason) for each in kernels)


def last_int8(trail: Sequence[Finished], files: Sequence[Proof]) -> tuple[Net, Proof] | None:
    """The last net that rounds, with what is known of its file; None where none does."""
    made = zip(reversed(trail), reversed(files), strict=True)
    return next(((result.net, proof) for result, proof in made if proof.int8), None)


def changed_predictions(out: Path, before: Row, after: Row, data: Data) -> Changes | None:
    """What became of the predictions between two files of a run, with pictures; None where there is nothing to see."""
    if before == after or not len(data.test):
        return None
    labels, was = read_predictions(out / "predictions" / f"{before.net}.csv")
    _, now = read_predictions(out / "predictions" / f"{after.net}.csv")
    found = changes((before.net, after.net), labels, was, now, data.class_names)
    chosen = np.array([each.sample for each in found.examples], dtype=np.int64)
    pictures = data.test.images[chosen] if len(chosen) else ()
    shown = (replace(each, png=thumbnail(image)) for each, image in zip(found.examples, pictures, strict=True))
    return replace(found, examples=tuple(shown))


def _macs(net: Net) -> dict[str, int]:
    """Multiply-accumulates of each layer for one image."""
    weights = {name: layer.weight for name, layer in net.module.named_modules() if hasattr(layer, "weight")}
    device = next((weight.device for weight in weights.values() if weight is not None), torch.device("cpu"))
    with evaluating(net.module):
        positions = count_positions(net.module, net.example(1).to(device))
    return {name: times * weights[name].numel() for name, times in positions.items()}
