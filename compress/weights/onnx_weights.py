"""Weights out of a float ONNX file, put into a PyTorch network and proven to compute what the file computes."""

import copy
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor, fx, nn

import compress.edits.graph as graph
from compress.errors import ModelError
from compress.models.torchvision import TORCHVISION
from compress.weights.onnx_layers import OnnxLayer, depth_first, onnx_layers

SAME_DB = 60.0  # float32 in two runtimes differs by 90 to 130 dB; another stride or activation by less than 30
OPEN_SIDE = 224  # pixels, where the file leaves height and width open
STEM_HINT = " For weights made on large images set the model's `stem: imagenet`."
KINDS = {nn.Conv2d: "convolution", nn.Linear: "linear layer", nn.BatchNorm2d: "batch-norm"}
GEOMETRY = ("strides", "padding", "dilations", "groups")


def state_from_onnx(module: nn.Module, path: Path, model: str) -> dict[str, Tensor]:
    """A state dict for `module`, called `model`, with the weights of a float ONNX file of the same network.

    The file's layers are matched with the traced network's, both in the order in which data pass them. Files have
    their batch-norms folded into convolutions: those of the network become the identity with a bias (running mean 0,
    variance 1), which trains on as any other. Where the file has another number of classes or of input channels, the
    first and last layer of the result have the file's shapes. The result is proven: on random images the network's
    logits agree with the file's to 60 dB or more. Raises ModelError for a file that is not usable, for layers that do
    not match, for parameters that are none of a convolution's, linear layer's or batch-norm's, and for logits that
    differ.
    """
    theirs = onnx_layers(path)
    net = copy.deepcopy(module).eval()
    ours = _layers_of(net)
    _require_all_matched(net, ours, path, model)
    _require_same_kinds(theirs, ours, path, model)
    for i, (given, own) in enumerate(zip(theirs, ours, strict=True)):
        loose = (0,) * (i == len(ours) - 1) + (1,) * (i == 0)  # the dimensions that may differ
        _require_fit(given, own, loose, path, model)
        _put(given, own, path)
    _prove(net, path, model)
    return net.state_dict()


@dataclass(frozen=True)
class OwnLayer:
    """A layer of the network and the batch-norm behind it that folding merges with it, if there is one."""

    name: str
    layer: nn.Conv2d | nn.Linear | nn.BatchNorm2d
    norm: nn.BatchNorm2d | None

    @property
    def kind(self) -> str:
        """What it is called."""
        return next(name for kind, name in KINDS.items() if isinstance(self.layer, kind))


def _layers_of(net: nn.Module) -> list[OwnLayer]:
    """The layers that keep weights once batch-norms are folded, in `depth_first`'s order; one called twice twice."""
    traced = graph.folded(net)
    with graph.evaluating(net):
        plain = fx.symbolic_trace(net)
    # Folding gives a layer that is called twice a copy; its calls keep their names.
    names = {node.name: str(node.target) for node, _ in graph.calls(plain, *KINDS)}
    kept = {node.name for node, _ in graph.calls(traced, *KINDS)}
    norms = {}
    for node, norm in graph.calls(plain, nn.BatchNorm2d):
        before = node.all_input_nodes[0]
        while before.name not in names and before.all_input_nodes:
            before = before.all_input_nodes[0]  # over dropout
        if node.name not in kept:
            norms[before.name] = norm
    output = next(node for node in traced.graph.nodes if node.op == "output")
    order = [node.name for node in depth_first(output, lambda node: node.all_input_nodes) if node.name in kept]
    return [OwnLayer(names[call], net.get_submodule(names[call]), norms.get(call)) for call in order]  # type: ignore[arg-type]


def _require_all_matched(net: nn.Module, ours: Sequence[OwnLayer], path: Path, model: str) -> None:
    held = {id(p) for layer in net.modules() if isinstance(layer, tuple(KINDS)) for p in layer.parameters()}
    other = [name for name, parameter in net.named_parameters() if id(parameter) not in held]
    if other:
        raise ModelError(
            f"weights of {model} cannot be taken from {path}: {other[0]} belongs to no Conv2d, Linear or BatchNorm2d, "
            "and only those are found again in an ONNX file; give a .safetensors or .pth file"
        )
    if not ours:
        raise ModelError(f"{model} has no layer with weights, so {path} has nothing to give to it")


def _require_same_kinds(theirs: Sequence[OnnxLayer], ours: Sequence[OwnLayer], path: Path, model: str) -> None:
    have, need = [layer.kind for layer in theirs], [layer.kind for layer in ours]
    if have != need:
        raise ModelError(
            f"{path} is a file of another architecture than {model}: behind folding it has {_counted(have)} where "
            f"{model} has {_counted(need)}" + (", in another order" if Counter(have) == Counter(need) else "")
        )


def _counted(kinds: Sequence[str]) -> str:
    counts = Counter(kinds)
    return ", ".join(f"{counts[kind]} {kind}{'' if counts[kind] == 1 else 's'}" for kind in KINDS.values())


def _require_fit(given: OnnxLayer, own: OwnLayer, loose: tuple[int, ...], path: Path, model: str) -> None:
    """See that shapes and, of convolutions, strides and the like are the same, and that all numbers are finite."""
    hint = STEM_HINT if model in TORCHVISION else ""
    have, need, layer = given.weight.shape, tuple(own.layer.weight.shape), own.layer
    if len(have) != len(need) or any(have[d] != need[d] for d in range(len(need)) if d not in loose):
        raise ModelError(
            f"{path} does not fit {model}: {given.name} has shape {have} where {own.name} has {need}.{hint}"
        )
    if isinstance(layer, nn.Conv2d):
        wanted = (layer.stride, layer.padding, layer.dilation, layer.groups)
        for word, theirs, ours in zip(GEOMETRY, given.geometry, wanted, strict=True):
            if theirs is not None and theirs != ours and not isinstance(ours, str):
                raise ModelError(
                    f"{path} does not fit {model}: {given.name} has {word} {theirs} where {own.name} has {ours}.{hint}"
                )
    numbers = (given.weight, given.bias, given.mean, given.variance)
    if not all(np.isfinite(array).all() for array in numbers if array is not None):
        raise ModelError(
            f"{path} holds numbers that are not finite, first in {given.name or own.name}; export it again"
        )


def _put(given: OnnxLayer, own: OwnLayer, path: Path) -> None:
    """Write a layer's numbers into the network; behind a convolution with batch-norm, the bias into the norm."""
    layer = own.layer
    if isinstance(layer, nn.BatchNorm2d):
        _put_norm(given, layer)
        return
    bias = torch.from_numpy(given.bias.copy())
    layer.weight = nn.Parameter(torch.from_numpy(given.weight.copy()))
    if own.norm is not None:
        _make_identity(own.norm, bias)
        bias = torch.zeros_like(bias)
    if layer.bias is not None:
        layer.bias = nn.Parameter(bias)
    elif bias.any():
        raise ModelError(
            f"{path} has a bias in {given.name}, and {own.name} has neither a bias nor a batch-norm to take it"
        )


def _make_identity(norm: nn.BatchNorm2d, bias: Tensor) -> None:
    """Let it add the bias in evaluation mode, which is all that a folded file tells of a batch-norm."""
    with torch.no_grad():
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.zero_()
        norm.running_var.fill_(1.0)
        norm.weight.fill_(math.sqrt(1 + norm.eps))
        norm.bias.copy_(bias)


def _put_norm(given: OnnxLayer, norm: nn.BatchNorm2d) -> None:
    """A batch-norm that is not folded; where the file adds another epsilon, the weight makes up for it."""
    assert given.mean is not None
    assert given.variance is not None
    ratio = np.sqrt((given.variance.astype(np.float64) + norm.eps) / (given.variance.astype(np.float64) + given.eps))
    values = (given.weight * ratio, given.bias, given.mean, given.variance)
    with torch.no_grad():
        for target, value in zip((norm.weight, norm.bias, norm.running_mean, norm.running_var), values, strict=True):
            assert target is not None
            target.copy_(torch.from_numpy(np.ascontiguousarray(value, dtype=np.float32)))


def _prove(net: nn.Module, path: Path, model: str) -> None:
    """See that the network and the file give the same logits for random images."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    inputs = session.get_inputs()
    if len(inputs) != 1 or inputs[0].type != "tensor(float)" or len(inputs[0].shape) != 4:
        kinds = ", ".join(f"{i.name}: {i.type} of {len(i.shape)} dimensions" for i in inputs)
        raise ModelError(
            f"{path} takes {kinds}; a file is needed that takes normalised images alone, float32 of (n, C, H, W)"
        )
    fallback = (2, 3, OPEN_SIDE, OPEN_SIDE)
    shape = [d if isinstance(d, int) and d > 0 else other for d, other in zip(inputs[0].shape, fallback, strict=True)]
    images = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    try:
        theirs = np.asarray(session.run(None, {inputs[0].name: images})[0], dtype=np.float64)
        with torch.no_grad():
            ours = net(torch.from_numpy(images)).double().numpy()
    except Exception as error:  # of either runtime, for images that do not fit
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ModelError(f"{path} and {model} cannot be run on the same images {tuple(shape)}: {reason}") from error
    if theirs.shape != ours.shape:
        raise ModelError(f"{path} gives logits of shape {theirs.shape} where {model} gives {ours.shape}")
    if not (np.isfinite(theirs).all() and np.isfinite(ours).all()):
        raise ModelError(f"{path} gives logits that are not finite for random images, so nothing can be proven of it")
    same = signal_to_noise_db(theirs, ours)
    if same < SAME_DB:
        raise ModelError(
            f"{path} computes something else than {model} with the same weights: their logits agree to {same:.0f} dB "
            f"and {SAME_DB:g} are needed. An activation, a pooling or a normalisation inside the file must differ; "
            "give the model that the file was made from"
        )


def signal_to_noise_db(reference: np.ndarray, other: np.ndarray) -> float:
    """10·log10(Σ reference² / Σ (reference - other)²) in decibels; infinite where the two are equal."""
    signal, noise = float(np.square(reference).sum()), float(np.square(reference - other).sum())
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf
