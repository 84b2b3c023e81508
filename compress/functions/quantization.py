"""Quantization as a function."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from compress.config import near
from compress.edits.quantizers import rounds
from compress.errors import ConfigError, DataError
from compress.export.targets import OPSET_OF_INT4, TARGETS
from compress.functions.given import (
    LOG,
    MADE_FROM,
    QUANTIZERS,
    checked,
    data_of,
    device_of,
    net_of,
    require_again,
    require_inputs,
    require_module,
)
from compress.stages import Env, Quantize
from compress.stages.targeting import against_target, for_target


def quantize(
    module: nn.Module,
    batches: Iterable[Any] | Tensor,
    *,
    target: str = "onnxruntime",
    weights: str | None = None,
    activations: str | None = None,
    granularity: str = "per_channel",
    ranges: str | dict[str, Any] = "mse",
    equalize: bool = False,
    correct_bias: bool = False,
    float_layers: Sequence[str] = (),
) -> fx.GraphModule:
    """A copy of a network that computes as int8 hardware does, calibrated (Jacob et al. 2018, arXiv:1712.05877).

    `batches` are normalised inputs, float32 (n, C, H, W), or pairs of them and labels, which are not looked at: a list,
    a DataLoader, or one tensor. They are gone through twice and should be training images, 100 or more. `target` is one
    of `compress ls targets` and decides `weights` (`int8`, `int7`, `int4`) and `activations` (`uint8`, `int8`) where
    they are not given. The other arguments are the keys of the same names of the quantize stage.

    The result is a traced module: batch-norms are folded, dropout is gone, layers keep their names. It is in evaluation
    mode and rounds; `compress.export` writes it as an int8 file. Put into training mode it rounds as well, with
    straight-through gradients and the ranges as calibrated, so that any training loop is quantization-aware training.
    The module is left as it was. Odd activations and layers that stay float are said to the logger `compress`.

    Raises ConfigError for arguments that are wrong or that the target does not take; DataError without images, or for
    images that are not finite; ModelError for a network that `torch.fx` cannot trace or that has nothing to quantize.
    """
    require_module(module, "quantize")
    if rounds(module):
        raise ConfigError("quantize: this module is quantized already; start from the float one")
    stage = _stage(
        target, method="ptq", weights=weights, activations=activations, granularity=granularity, ranges=ranges,
        equalize=equalize, correct_bias=correct_bias, float_layers=tuple(float_layers),
    )  # fmt: skip
    again = _inputs(require_again(batches, "quantize"), device_of(module))
    first = next(iter(again()), None)
    if first is None:
        raise DataError("quantize: there are no images to take activation ranges from; give some, 100 or more")
    net, classes = net_of(module, first, "quantize")
    env = Env(
        data=data_of(net.spec.image, classes), teachers=(), device=device_of(module), seed=0, stage="quantize",
        note=lambda text: LOG.info("quantize: %s", text), warn=lambda text: LOG.warning("quantize: %s", text),
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        quantized, _ = stage.rounding(net, env, again)
    assert isinstance(quantized.module, fx.GraphModule)
    quantized.module.meta |= {QUANTIZERS: quantized.spec.edits[-1], MADE_FROM: type(module).__name__}
    return quantized.module.eval()


def _stage(target: str, **fields: Any) -> Quantize:
    if target not in TARGETS:
        raise ConfigError(f"quantize: no target {target!r}.{near(target, TARGETS)}")
    stage = for_target(checked(Quantize, fields, "quantize"), TARGETS[target])
    problems = [problem.lstrip(".: ") for problem in against_target(stage, TARGETS[target], OPSET_OF_INT4)]
    if problems:
        raise ConfigError("\n".join(f"quantize: {problem}" for problem in problems))
    assert isinstance(stage, Quantize)
    return stage


def _inputs(batches: Iterable[Any], device: torch.device) -> Callable[[], Iterator[Tensor]]:
    """A function that goes through the inputs alone."""

    def again() -> Iterator[Tensor]:
        for batch in batches:
            inputs = batch[0] if isinstance(batch, tuple | list) and batch else batch
            yield require_inputs(inputs, "quantize: each batch").to(device)

    return again
