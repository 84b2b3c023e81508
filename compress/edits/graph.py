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
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torchvision.ops import stochastic_depth

import compress.edits.in_place as in_place
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
    in_place.read_results(traced)
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
        assert norm.running_var is not None
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        _bypass(traced, node)


def _name_global_pooling(traced: fx.GraphModule) -> None:
    for node in list(traced.graph.nodes):
        source = _globally_pooled(traced, node)
        if source is None:
            continue
        name = free_name(traced, f"{node.name}_global")
        traced.add_submodule(name, GlobalAveragePool())
        with traced.graph.inserting_before(node):
            pool = traced.graph.call_module(name, (source,))
            if does(node, {torch.mean}, {"mean"}) and not _mean_over(node)[1]:
                pool = traced.graph.call_function(torch.flatten, (pool, 1))
        node.replace_all_uses_with(pool)
        traced.graph.erase_node(node)


def _globally_pooled(traced: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """What a node averages over height and width; None for a node that does not."""
    layer, source = called(traced, node), next(iter(node.all_input_nodes), None)
    if source is None:
        return None
    globally = False
    if isinstance(layer, nn.AdaptiveAvgPool2d):
        globally = layer.output_size in (1, (1, 1))
    elif does(node, {F.adaptive_avg_pool2d}, set()):
        size = node.args[1] if len(node.args) > 1 else node.kwargs.get("output_size")
        globally = size in (1, (1, 1), [1, 1])
    elif does(node, {F.avg_pool2d}, set()) and len(node.args) + len(node.kwargs) == 2:
        globally = _is_size_of(node.args[1] if len(node.args) > 1 else node.kwargs.get("kernel_size"), source)
    elif does(node, {torch.mean}, {"mean"}):
        axes, kept = _mean_over(node)
        globally = {axis % 4 for axis in axes} == {2, 3}
        if does(source, {torch.mean}, {"mean"}) and len(source.users) == 1 and _mean_over(source)[1] == kept:
            before = _mean_over(source)[0]
            # An axis that is gone counts no more: behind mean(3), mean(2) and mean(-1) are over the last one left.
            both = [((3,), (2,)), ((2,), (3,)), ((2,), (-1,))] if kept else [((3,), (2,)), ((3,), (-1,)), ((2,), (2,))]
            if (before, axes) in both:
                return source.all_input_nodes[0]
    return source if globally else None


def _mean_over(node: fx.Node) -> tuple[tuple[int, ...], bool]:
    """The axes that a mean is taken over, and whether they stay as axes of one."""
    axes = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    kept = node.kwargs.get("keepdim", node.args[2] if len(node.args) > 2 else False)
    given = axes if isinstance(axes, list | tuple) else (axes,)
    return tuple(axis for axis in given if isinstance(axis, int)), bool(kept)


def _is_size_of(kernel: object, x: fx.Node) -> bool:
    """Whether a kernel size is computed as x's own height and width."""

    def is_shape(node: object) -> bool:
        return isinstance(node, fx.Node) and node.args in ((x,), (x, "shape")) and does(node, {getattr}, {"size"})

    def is_size(node: object, axis: int) -> bool:
        if not isinstance(node, fx.Node) or len(node.args) != 2:
            return False
        of_x = node.args[0] is x if does(node, set(), {"size"}) else is_shape(node.args[0])
        taken = node.args[1] if does(node, {operator.getitem}, {"size"}) else None
        return of_x and isinstance(taken, int) and taken % 4 == axis

    if isinstance(kernel, list | tuple):
        return len(kernel) == 2 and is_size(kernel[0], 2) and is_size(kernel[1], 3)
    last_two = (slice(2, None), slice(-2, None), slice(2, 4))
    return (
        isinstance(kernel, fx.Node)
        and does(kernel, {operator.getitem}, set())
        and (is_shape(kernel.args[0]) and kernel.args[1] in last_two)
    )
