"""Where quantizers stand in a network.

`Quantizers` is the edit: it traces a network, folds its batch-norms, and puts an `ActivationQuantizer` after the input,
after each convolution or its ReLU, after each addition, multiplication, concatenation and pooling; convolutions and
linear layers become ones that round their weights. What has no int8 form is left in float and written down with
its reason, for the report.
"""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import ClassVar, Literal

from torch import fx, nn

import compress.edits.equalization as equalization
import compress.edits.graph as graph
import compress.edits.operators as operators
from compress.config import Config, near
from compress.edits.functional import free_name
from compress.edits.quantizers import (
    ActivationQuantizer,
    QuantizedConv2d,
    QuantizedHardSigmoid,
    QuantizedLinear,
    quantized_layer,
)
from compress.edits.rewrites import rewrite
from compress.errors import ConfigError, ModelError

UNBOUNDED = (-float("inf"), float("inf"))
LEFT_FLOAT = "left_float"  # the key of a traced module's `meta`: {layer or node: why it has no int8 form}


class Quantizers(Config):
    """Rounding to integers as part of the network (Krishnamoorthi 2018, arXiv:1806.08342, sec. 3).

    `ranges: dynamic` rounds the input of each convolution and linear layer by the extremes of the batch, and nothing
    else. `equalized` says that each ReLU6 became a ReLU. `float_layers` are names of layers that stay float.
    """

    name: ClassVar[str] = "quantizers"
    weights: Literal["int8", "int7", "int4"] = "int8"
    activations: Literal["uint8", "int8"] = "uint8"
    granularity: Literal["per_channel", "per_tensor"] = "per_channel"
    ranges: Literal["static", "dynamic"] = "static"
    equalized: bool = False
    float_layers: tuple[str, ...] = ()

    def __call__(self, module: nn.Module) -> nn.Module:
        return insert_quantizers(module, self)


def insert_quantizers(module: nn.Module, edit: Quantizers | None = None) -> fx.GraphModule:
    """Trace and fold a network and make it round as integer hardware does; ranges are still to be set.

    The given module is left as it was. The result's `meta["left_float"]` names what stays float, with the reason.
    Raises ModelError where the network cannot be traced or has nothing to quantize.
    """
    edit = edit or Quantizers()
    traced = graph.folded(module)
    if edit.equalized:
        equalization.without_relu6(traced)
    placed: _Placement
    if edit.ranges == "dynamic":
        placed = _Placement(traced, edit)
        for node, layer in graph.calls(traced, nn.Conv2d, nn.Linear):
            placed.make_dynamic(node, layer)
    else:
        rewrite(traced, signed=edit.activations == "int8")
        placed = _Placement(traced, edit)
        for node in list(traced.graph.nodes):
            placed.visit(node)
    if not any(graph.calls(traced, QuantizedConv2d, QuantizedLinear)):
        reason = "all its layers are kept in float" if placed.left_float else "there is nothing to quantize"
        raise ModelError(f"{type(module).__name__} has no Conv2d and no Linear layer to quantize: {reason}")
    graph.clean(traced)
    traced.meta[LEFT_FLOAT] = placed.left_float
    return traced


def left_float(module: nn.Module) -> dict[str, str]:
    """What stays float in a network with quantizers: layer or operation, and why."""
    found: dict[str, str] = getattr(module, "meta", {}).get(LEFT_FLOAT, {})
    return found


def layers_like(module: nn.Module, patterns: Iterable[str]) -> tuple[str, ...]:
    """The names of the convolutions and linear layers that match any of the patterns (`features.0.*`).

    Raises ConfigError for a pattern that matches none, with the nearest name.
    """
    names = [str(node.target) for node, _ in graph.calls(graph.folded(module), nn.Conv2d, nn.Linear)]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigError(f"float_layers: no layer is called {pattern!r}.{near(pattern, names)}")
    return tuple(name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns))


class _Placement:
    """Walks the graph once, remembering for each value the layer that rounded it."""

    def __init__(self, traced: fx.GraphModule, edit: Quantizers) -> None:
        self.traced, self.edit = traced, edit
        self.rounded_by: dict[fx.Node, str] = {}
        self.left_float: dict[str, str] = {}
        self.sizes = operators.sizes(traced)

    def visit(self, node: fx.Node) -> None:
        """Put what a node needs around it: rounded inputs, a rounding layer, a rounded output."""
        layer = graph.called(self.traced, node)
        if node.op == "placeholder":
            self.round_after(node)
        elif node.op == "output" or node in self.sizes:
            return
        elif isinstance(layer, nn.Conv2d | nn.Linear):
            if self.may_round(node, layer):
                self.replace_layer(node, layer)
        elif isinstance(layer, graph.HardSigmoid):
            self.replace_hard_sigmoid(node)
        elif self.computes_in_int8(node, layer):
            self.round_around(node)
        elif operators.moves_values(node, layer):
            self.pass_on(node, again=operators.must_say_again(node, layer))
        elif not operators.is_activation_between(self.traced, node) and node.op != "get_attr":
            self.left_float[operators.title(node)] = f"{operators.kind(node, layer)} has no int8 kernel"

    def computes_in_int8(self, node: fx.Node, layer: nn.Module | None) -> bool:
        tensors = not any(source in self.sizes for source in node.all_input_nodes)
        return tensors and operators.computes_in_int8(node, layer)

    def may_round(self, node: fx.Node, layer: nn.Module) -> bool:
        """Whether a convolution or linear layer can and shall be integer; writes down why not."""
        name = str(node.target)
        if name in self.edit.float_layers:
            self.left_float[name] = "kept in float, as asked for"
        elif type(layer) not in (nn.Conv2d, nn.Linear):
            self.left_float[name] = f"a {type(layer).__name__}, and only plain Conv2d and Linear can be quantized"
        elif isinstance(layer, nn.Conv2d) and layer.padding_mode != "zeros":
            self.left_float[name] = f"its padding is {layer.padding_mode!r}, and integer kernels pad with zeros"
        else:
            return True
        return False

    def replace_layer(self, node: fx.Node, layer: nn.Conv2d | nn.Linear) -> None:
        """Make a convolution or linear layer round its weights; it is told the scale of its input."""
        source = node.all_input_nodes[0]
        self.ensure_rounded(source)
        per_channel = self.edit.granularity == "per_channel"
        rounding = quantized_layer(layer, self.edit.weights, per_channel=per_channel, dynamic=False)
        self.traced.set_submodule(str(node.target), rounding)
        with self.traced.graph.inserting_before(node):
            scale = self.traced.graph.get_attr(f"{self.rounded_by[source]}.scale")
        node.args, node.kwargs = (node.all_input_nodes[0], scale), {}
        # ONNX Runtime has no int8 convolution that gives floats, as it has for a Linear.
        if isinstance(layer, nn.Conv2d) or not operators.gives_logits(self.traced, node):
            self.round_after(self.with_activation(node))

    def make_dynamic(self, node: fx.Node, layer: nn.Conv2d | nn.Linear) -> None:
        """Make a convolution or linear layer round its weights and its input, the latter batch by batch."""
        if self.may_round(node, layer):
            per_channel = self.edit.granularity == "per_channel"
            rounding = quantized_layer(layer, self.edit.weights, per_channel=per_channel, dynamic=True)
            self.traced.set_submodule(str(node.target), rounding)

    def replace_hard_sigmoid(self, node: fx.Node) -> None:
        self.ensure_rounded(node.all_input_nodes[0])
        self.traced.set_submodule(str(node.target), QuantizedHardSigmoid())
        self.rounded_by[node] = str(node.target)

    def round_around(self, node: fx.Node) -> None:
        """Round what goes into an operation and what comes out of it."""
        for source in node.all_input_nodes:
            self.ensure_rounded(source)
        if not operators.gives_logits(self.traced, node):
            self.round_after(self.with_activation(node))

    def with_activation(self, node: fx.Node) -> fx.Node:
        """The ReLU that alone follows a node, or the node itself: nothing may stand between the two."""
        users = list(node.users)
        if len(users) == 1 and operators.clip_range(self.traced, users[0]) is not None:
            return users[0]
        return node

    def round_after(self, node: fx.Node) -> None:
        low, high = operators.range_of(self.traced, node) or UNBOUNDED
        if operators.feeds_hard_swish(self.traced, node):
            low = max(low, -3.0)  # the function is 0 from there down, so the grid need not reach further
        name = free_name(self.traced, f"quantizer_{node.name}")
        self.traced.add_submodule(name, ActivationQuantizer(low, high, self.edit.activations))
        self.insert(node, name)

    def ensure_rounded(self, node: fx.Node) -> None:
        """Round a value that came through layers without an int8 form (their arithmetic stays in float)."""
        if node not in self.rounded_by:
            self.round_after(node)
            inserted = next(user for user in node.users if user in self.rounded_by)
            self.rounded_by[node] = self.rounded_by[inserted]

    def pass_on(self, node: fx.Node, *, again: bool) -> None:
        """A layer that only moves values leaves them on the same grid; some kernels want to see it said again."""
        name = self.rounded_by.get(node.all_input_nodes[0])
        if name is None:
            return
        if again:
            self.insert(node, name)
        else:
            self.rounded_by[node] = name

    def insert(self, node: fx.Node, name: str) -> None:
        users = list(node.users)
        with self.traced.graph.inserting_after(node):
            rounded = self.traced.graph.call_module(name, (node,))
        for user in users:
            user.replace_input_with(node, rounded)
        self.rounded_by[rounded] = name
