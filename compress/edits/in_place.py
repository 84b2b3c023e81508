"""Operations that change the tensor that they are given: whoever reads it later reads what they made of it.

A traced graph does not know that, and would take an operation whose result nobody names, such as `self.relu(x)` in a
line of its own, for one that does nothing.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

METHODS = {
    "add_", "mul_", "sub_", "div_", "relu_", "sigmoid_", "clamp_", "clamp_min_", "clamp_max_", "clip_", "hardtanh_",
}  # fmt: skip
FUNCTIONS: dict[Any, Callable[..., Any]] = {  # with the function that gives a new tensor instead
    torch.relu_: torch.relu,
    torch.sigmoid_: torch.sigmoid,
    torch.clamp_: torch.clamp,
    F.hardtanh_: F.hardtanh,
    F.leaky_relu_: F.leaky_relu,
}


def changes_its_input(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node writes its result into what it reads."""
    if node.op == "call_method":
        return str(node.target) in METHODS
    if node.op == "call_module":
        return bool(getattr(traced.get_submodule(str(node.target)), "inplace", False))
    return node.op == "call_function" and (node.target in FUNCTIONS or bool(node.kwargs.get("inplace")))


def read_results(traced: fx.GraphModule) -> None:
    """Let all that reads a tensor after such an operation read the operation's result, in place."""
    order = {node: i for i, node in enumerate(traced.graph.nodes)}
    for node in order:
        if changes_its_input(traced, node):
            later = [user for user in node.all_input_nodes[0].users if order[user] > order[node]]
            for user in later:
                user.replace_input_with(node.all_input_nodes[0], node)
