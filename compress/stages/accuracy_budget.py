"""Putting the layers that rounding hurts most back to float, until the accuracy is within a budget."""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, fx, nn

import compress.edits.graph as graph
from compress.data.base import Data, spread
from compress.distributed.group import current
from compress.edits.placement import Quantizers
from compress.edits.quantizers import (
    ActivationQuantizer,
    QuantizedConv2d,
    QuantizedLayer,
    QuantizedLinear,
    activation_quantizers,
    dynamically_rounded,
    rounded_weight,
)
from compress.errors import DataError
from compress.net import Net, build
from compress.stages.base import Env
from compress.training.predicting import accuracy, inputs_of, predict

RANKING_IMAGES = 64


def within_budget(
    quantized: Net,
    reference: Net,
    env: Env,
    max_drop: float,
    recalibrate: Callable[[nn.Module], object],
    before: nn.Module | None = None,
) -> Net:
    """The quantized net, or one with as few layers back in float as keep its accuracy within `max_drop` points.

    Accuracy is that on the validation split, against `before`, the net that the stage was given, or against
    the float `reference` that layers go back to (which equalisation leaves without ReLU6). They go in the order of the
    squared error that rounding each one alone makes in the logits, most first (the ranking of Wu et al. 2020,
    arXiv:2004.09602, sec. 4.2, with the error in place of the accuracy); the number is found by doubling, then halving
    the gap. Warns where even half of all layers in float do not suffice. Raises DataError where there are no
    validation images.
    """
    data = env.data
    if not len(data.val):
        raise DataError("max_accuracy_drop needs validation images to measure accuracy on, and there are none")
    wanted = measured(before or reference.module, data, env.device) - max_drop
    found = measured(quantized.module, data, env.device)
    if found >= wanted:
        return quantized
    order = current().first(partial(by_sensitivity, quantized.module, reference.module, data, env.device))
    tried: dict[int, tuple[float, Net]] = {0: (found, quantized)}

    def reaches(count: int) -> bool:
        if count not in tried:
            net = with_float_layers(quantized, order[:count], env, recalibrate)
            tried[count] = (measured(net.module, data, env.device), net)
        return tried[count][0] >= wanted

    most = max(len(order) // 2, 1)
    count = fewest(reaches, most)
    if count is None:
        count = max(tried, key=lambda c: (tried[c][0], -c))
        env.warn(
            f"max_accuracy_drop: {max_drop:g} points are not kept even with {most} of {len(order)} layers in float; "
            f"the best found is {tried[count][0]:.1f} % with {count} of them, where {wanted:.1f} % were wanted"
        )
    reached, net = tried[count]
    if count:
        names = ", ".join(order[:count])
        env.note(
            f"{count} of {len(order)} layers went back to float to keep {reached:.1f} % validation accuracy: {names}"
        )
    return net


def fewest(reaches: Callable[[int], bool], most: int) -> int | None:
    """The smallest count up to `most` that reaches, if more is better; None where `most` does not."""
    high = 1
    while not reaches(high):
        if high == most:
            return None
        high = min(2 * high, most)
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reaches(middle) else (middle, high)
    return high


def measured(module: nn.Module, data: Data, device: torch.device) -> float:
    """Accuracy on the validation split, in per cent."""
    return float(current().first(lambda: accuracy(predict(module, data, data.val, device), data.val.labels)))


def by_sensitivity(quantized: nn.Module, reference: nn.Module, data: Data, device: torch.device) -> list[str]:
    """The layers that round, the one whose rounded weights and input alone change the logits most first.

    `reference` is the float net with layers of the same names; its weights are not used.
    """
    assert isinstance(quantized, fx.GraphModule)
    exact = copy.deepcopy(reference).to(device).eval()
    take_over(exact, quantized)
    layers = dict(exact.named_modules())
    chosen = data.val.take(spread(data.val.labels, RANKING_IMAGES))
    images = next(iter(inputs_of(data, chosen, device, RANKING_IMAGES)))
    errors = {}
    with torch.no_grad():
        logits = exact(images)
        for node, rounding in graph.calls(quantized, QuantizedConv2d, QuantizedLinear):
            layer = layers.get(str(node.target))
            if not isinstance(layer, nn.Conv2d | nn.Linear):
                continue  # a batch-norm, which is exact in int8
            with _rounding(layer, rounding, _input_rounding(quantized, node)):
                error = ((exact(images) - logits) ** 2).mean().item()
            errors[str(node.target)] = error if math.isfinite(error) else math.inf
    return sorted(errors, key=lambda name: (-errors[name], name))


def _input_rounding(quantized: fx.GraphModule, node: fx.Node) -> Callable[[Tensor], Tensor]:
    """What rounds the input of a layer."""
    sources = node.all_input_nodes
    if len(sources) == 1:
        return dynamically_rounded
    rounding = quantized.get_submodule(str(sources[1].target).rpartition(".")[0])
    # The output of a hard-sigmoid is rounded by the hard-sigmoid itself.
    return rounding if isinstance(rounding, ActivationQuantizer) else lambda x: x


@contextmanager
def _rounding(layer: nn.Module, rounding: QuantizedLayer, of_input: Callable[[Tensor], Tensor]) -> Iterator[None]:
    kept = layer.weight.data
    layer.weight.data = rounded_weight(rounding).detach()
    hook = layer.register_forward_pre_hook(lambda _, inputs: (of_input(inputs[0]),))
    try:
        yield
    finally:
        hook.remove()
        layer.weight.data = kept


def take_over(receiver: nn.Module, giver: nn.Module) -> None:
    """Give convolutions and linear layers the weights and biases of those of the same names in another net."""
    layers = dict(giver.named_modules())
    for name, layer in receiver.named_modules():
        source = layers.get(name)
        if isinstance(layer, nn.Conv2d | nn.Linear) and isinstance(source, nn.Conv2d | nn.Linear):
            layer.weight.data.copy_(source.weight.data)
            if layer.bias is not None and source.bias is not None:
                layer.bias.data.copy_(source.bias.data)


def with_float_layers(quantized: Net, names: list[str], env: Env, recalibrate: Callable[[nn.Module], object]) -> Net:
    """The same net with these layers in float: its weights, and its ranges where a quantizer is still there."""
    *before, edit = quantized.spec.edits
    assert isinstance(edit, Quantizers)
    layers = (*edit.float_layers, *names)
    spec = quantized.spec.model_copy(update={"edits": (*before, edit.model_copy(update={"float_layers": layers}))})
    module = build(spec).module.to(env.device)
    kept = quantized.module.state_dict()
    module.load_state_dict({k: v for k, v in kept.items() if k in module.state_dict()}, strict=False)
    recalibrate(module)
    grids = dict(activation_quantizers(module)).keys() & dict(activation_quantizers(quantized.module)).keys()
    same = {f"{name}.{part}" for name in grids for part in ("scale", "zero_point")}
    module.load_state_dict({k: v for k, v in kept.items() if k in same}, strict=False)
    return Net(spec, module.eval())
