"""Surgery on a traced network: what export and quantization both need done before their own work.

A traced network is a `torch.fx.GraphModule` whose layers keep the names they had.
"""

import copy
import operator
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.ops import stochastic_depth

from compress.edits.functional import free_name, name_functional_layers
from compress.errors import ModelError


class GlobalAveragePool(nn.Module):
    """Mean over height and width, (n, C, H, W) to (n, C, 1, 1).

    A layer of its own because exporters write adaptive pooling as ReduceMean, which has no int8 kernel.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Average (n, C, H, W) to (n, C, 1, 1)."""
        return F.adaptive_avg_pool2d(x, 1)


class HardSigmoid(nn.Module):
    """relu6(x + 3)/6: the gate of a hard-swish and of squeeze-excite, marked for rounding on a grid of its own."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape to the same shape, in [0, 1]."""
        return F.hardsigmoid(x)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for the while; afterwards every layer is in the mode that it was in."""
    modes = [(layer, layer.training) for layer in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for layer, mode in modes:
            layer.training = mode


def folded(module: nn.Module) -> fx.GraphModule:
    """Trace a network as it is used for inference: batch-norms folded into convolutions, dropout removed.

    Global average pooling in any spelling becomes a `GlobalAveragePool`. Weights are copied, the given module is
    left as it was; the result is in evaluation mode. Folding is that of Jacob et al. 2018 (arXiv:1712.05877,
    sec. 3.2): w' = w·g/σ, b' = (b - μ)·g/σ + β. Raises ModelError where the network cannot be traced, with the reason.
    """
    try:
        # Tracing in inference mode takes the inference branch of layers that ask `self.training`.
        with evaluating(module):
            traced = fx.symbolic_trace(module)
    except Exception as error:  # whatever a user's forward() raises while being traced
        raise ModelError(
            f"{type(module).__name__} cannot be traced by torch.fx ({error}){_users_line(error)}: its forward() must "
            "not branch on the values of tensors. Write that part in tensor operations, or as a layer of torch.nn."
        ) from error
    traced = _own_copy(traced).eval()
    name_functional_layers(traced)
    clean(traced)
    _drop_dropout(traced)
    _fold_batchnorm(traced)
    _name_global_pooling(traced)
    clean(traced)
    return traced


def _users_line(error: BaseException) -> str:
    """Where in the user's own code tracing stopped: `, at net.py line 12, "if x.sum() > 0:"`."""
    torchs = str(Path(torch.__file__).parent)
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((torchs, "<")) and frame.filename != __file__
    ]
    if not frames:
        return ""
    last = frames[-1]
    return f', at {Path(last.filename).name} line {last.lineno}, "{(last.line or "").strip()}"'


def clean(traced: fx.GraphModule) -> None:
    """Bring code and submodules in line with the graph after nodes were changed."""
    traced.graph.eliminate_dead_code()
    traced.delete_all_unused_submodules()
    traced.graph.lint()
    traced.recompile()


def calls(traced: fx.GraphModule, *kinds: type[nn.Module]) -> Iterator[tuple[fx.Node, Any]]:
    """Every call of a layer of one of these kinds, in graph order, with the layer."""
    for node in list(traced.graph.nodes):
        layer = called(traced, node)
        if layer is not None and isinstance(layer, kinds):
            yield node, layer


def called(traced: fx.GraphModule, node: object) -> nn.Module | None:
    """The layer that a node calls, or None where it calls none."""
    if isinstance(node, fx.Node) and node.op == "call_module":
        return traced.get_submodule(str(node.target))
    return None


def does(node: fx.Node, functions: set[Callable[..., Any]], methods: set[str]) -> bool:
    """Whether a node calls one of these functions or tensor methods."""
    if node.op == "call_function":
        return node.target in functions
    return node.op == "call_method" and node.target in methods


def is_add(node: fx.Node) -> bool:
    """Whether a node adds two tensors."""
    return does(node, {operator.add, operator.iadd, torch.add}, {"add", "add_"}) and _of_two(node)


def is_mul(node: fx.Node) -> bool:
    """Whether a node multiplies two tensors, element by element."""
    return does(node, {operator.mul, operator.imul, torch.mul}, {"mul", "mul_"}) and _of_two(node)


def is_sigmoid(node: fx.Node) -> bool:
    """Whether a node calls the sigmoid as a function or method."""
    return does(node, {torch.sigmoid, F.sigmoid}, {"sigmoid", "sigmoid_"})


def _of_two(node: fx.Node) -> bool:
    return len(node.args) == 2 and not node.kwargs and all(isinstance(arg, fx.Node) for arg in node.args)


def _own_copy(traced: fx.GraphModule) -> fx.GraphModule:
    """Copy the weights, and give a layer with weights that is called more than once a copy for each call."""
    traced = copy.deepcopy(traced)
    seen = set()
    for node, layer in calls(traced, nn.Conv2d, nn.Linear, nn.BatchNorm2d):
        if node.target in seen:
            name = free_name(traced, f"{node.name}_again")
            traced.add_submodule(name, copy.deepcopy(layer))
            node.target = name
        seen.add(node.target)
    return traced


def _drop_dropout(traced: fx.GraphModule) -> None:
    kinds = (nn.Dropout, nn.Dropout2d, nn.AlphaDropout, nn.Identity)
    for node, _ in calls(traced, *kinds):
        _bypass(traced, node)
    for node in list(traced.graph.nodes):
        if does(node, {F.dropout, F.dropout2d, stochastic_depth}, set()):
            _bypass(traced, node)


def _bypass(traced: fx.GraphModule, node: fx.Node) -> None:
    node.replace_all_uses_with(node.all_input_nodes[0])
    traced.graph.erase_node(node)


def _fold_batchnorm(traced: fx.GraphModule) -> None:
    for node, norm in calls(traced, nn.BatchNorm2d):
        before = node.all_input_nodes[0]
        conv = called(traced, before)
        if not isinstance(conv, nn.Conv2d) or len(before.users) > 1 or norm.running_mean is None:
            continue
        traced.set_submodule(str(before.target), fuse_conv_bn_eval(conv, norm))
        _bypass(traced, node)


def _name_global_pooling(traced: fx.GraphModule) -> None:
    for node in list(traced.graph.nodes):
        if not _pools_globally(traced, node):
            continue
        name = free_name(traced, f"{node.name}_global")
        traced.add_submodule(name, GlobalAveragePool())
        with traced.graph.inserting_before(node):
            pool = traced.graph.call_module(name, (node.all_input_nodes[0],))
            if _drops_axes(node):
                pool = traced.graph.call_function(torch.flatten, (pool, 1))
        node.replace_all_uses_with(pool)
        traced.graph.erase_node(node)


def _pools_globally(traced: fx.GraphModule, node: fx.Node) -> bool:
    layer = called(traced, node)
    if isinstance(layer, nn.AdaptiveAvgPool2d):
        return layer.output_size in (1, (1, 1))
    if does(node, {F.adaptive_avg_pool2d}, set()):
        size = node.args[1] if len(node.args) > 1 else node.kwargs.get("output_size")
        return size in (1, (1, 1), [1, 1])
    if does(node, {torch.mean}, {"mean"}):
        axes = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        return isinstance(axes, list | tuple) and {a % 4 for a in axes if isinstance(a, int)} == {2, 3}
    return False


def _drops_axes(node: fx.Node) -> bool:
    keeps = node.kwargs.get("keepdim", node.args[2] if len(node.args) > 2 else False)
    return does(node, {torch.mean}, {"mean"}) and not keeps
