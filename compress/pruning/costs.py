"""What a network costs as a function of its widths: multiply-accumulates, parameters, bytes of its file.

Each is a sum over layers of a product of widths, so that thousands of plans are priced at once without building
a single network.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np
from numpy.typing import NDArray
from torch import nn

from compress.pruning.groups import ChannelGroup

Floats = NDArray[np.float64]
INT8_BYTES = 1.0, 13.0  # a weight; and for each output a bias and its scale, the weight's scale and zero point
FLOAT_BYTES = 4.0, 4.0


@dataclass(frozen=True)
class LayerCosts:
    """A network's cost, exactly: layer l costs unit·o·i/parts + per_output·o + per_input·i, and `constant` in all.

    Its o = `outputs` and i = `inputs` channels, (layers,), shrink by `output_loss` and `input_loss` (layers, groups)
    for each channel that a coupled group loses. `paths` are the layers' names.
    """

    paths: tuple[str, ...]
    unit: Floats
    outputs: Floats
    inputs: Floats
    parts: Floats
    output_loss: Floats
    input_loss: Floats
    per_output: Floats
    per_input: Floats
    constant: float = 0.0

    def __call__(self, removed: Floats) -> Floats:
        """The cost, (plans,), after removing so many channels from every group, (plans, groups)."""
        costs: Floats = self.by_layer(removed).sum(-1) + self.constant
        return costs

    def by_layer(self, removed: Floats) -> Floats:
        """The cost of every layer, (plans, layers); MACs are exact, being integers far below 2^53."""
        outputs, inputs = self.widths(removed)
        products: Floats = outputs * inputs / self.parts * self.unit
        return products + outputs * self.per_output + inputs * self.per_input

    def widths(self, removed: Floats) -> tuple[Floats, Floats]:
        """Output and input channels of every layer, both (plans, layers)."""
        return self.outputs - removed @ self.output_loss.T, self.inputs - removed @ self.input_loss.T

    def scaled(self, factor: float) -> "LayerCosts":
        """The same with every cost times `factor`."""
        return replace(
            self,
            unit=self.unit * factor,
            per_output=self.per_output * factor,
            per_input=self.per_input * factor,
            constant=self.constant * factor,
        )


def macs(module: nn.Module, positions: Mapping[str, int], groups: Sequence[ChannelGroup]) -> LayerCosts:
    """Multiply-accumulates for one image; `positions` as from `count_positions`."""
    costs = _geometry(module, list(positions), groups)
    times = [positions[path] * prod(_layer(module, path).weight.shape[2:]) for path in costs.paths]
    return replace(costs, unit=np.array(times, np.float64))


def params(module: nn.Module, positions: Mapping[str, int], groups: Sequence[ChannelGroup]) -> LayerCosts:
    """Trainable numbers, those of layers that are not called included."""
    followers = sorted({path for group in groups for path in group.follows})
    costs = _geometry(module, [*positions, *followers], groups)
    unit, per_output = [], []
    for path in costs.paths:
        layer = module.get_submodule(path)
        one_each = [p for p in layer.parameters(recurse=False) if p.dim() == 1]
        per_output.append(len(one_each))
        unit.append(0 if path in followers else prod(_layer(module, path).weight.shape[2:]))
    costs = replace(costs, unit=np.array(unit, np.float64), per_output=np.array(per_output, np.float64))
    present = sum(p.numel() for p in module.parameters())
    return replace(costs, constant=present - float(costs(np.zeros((1, len(groups))))[0]))


def file_bytes(
    module: nn.Module, positions: Mapping[str, int], groups: Sequence[ChannelGroup], *, int8: bool, present: int
) -> LayerCosts:
    """Bytes of the ONNX file; what does not change with widths is taken from `present`, the file's size as it is."""
    weight, output = INT8_BYTES if int8 else FLOAT_BYTES
    costs = _geometry(module, list(positions), groups)
    unit = [weight * prod(_layer(module, path).weight.shape[2:]) for path in costs.paths]
    costs = replace(costs, unit=np.array(unit), per_output=np.full(len(unit), output))
    return replace(costs, constant=present - float(costs(np.zeros((1, len(groups))))[0]))


def elements(module: nn.Module, positions: Mapping[str, int], groups: Sequence[ChannelGroup]) -> LayerCosts:
    """Numbers that every layer writes for one image: what layers that only move data take their time by."""
    costs = _geometry(module, list(positions), groups)
    return replace(costs, per_output=np.array([positions[path] for path in costs.paths], np.float64))


def _geometry(module: nn.Module, paths: Sequence[str], groups: Sequence[ChannelGroup]) -> LayerCosts:
    """The widths of these layers as a function of the groups' widths, at no cost."""
    rows = []
    for path in paths:
        layer = module.get_submodule(path)
        weight = getattr(layer, "weight", None)
        outputs, inputs = (*weight.shape, 0)[:2] if weight is not None else (0, 0)
        parts = layer.groups if isinstance(layer, nn.Conv2d) and layer.groups != outputs else 1
        rows.append((outputs, inputs * parts, parts))
    outputs_, inputs_, parts_ = np.array(rows, np.float64).T
    nothing = np.zeros(len(rows))
    return LayerCosts(
        tuple(paths),
        nothing,
        outputs_,
        inputs_,
        parts_,
        output_loss=_loss(paths, [{**group.follows, **group.outputs} for group in groups]),
        input_loss=_loss(paths, [group.inputs for group in groups]),
        per_output=nothing,
        per_input=nothing,
    )


def _loss(paths: Sequence[str], lost: Sequence[Mapping[str, int]]) -> Floats:
    return np.array([[each.get(path, 0) for each in lost] for path in paths], np.float64)


def _layer(module: nn.Module, path: str) -> nn.Conv2d | nn.Linear:
    layer = module.get_submodule(path)
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    return layer
