"""Hard-sigmoids and hard-swishes written out, such as `x * relu6(x + 3) / 6`, found by what they compute.

Whatever its spelling, a gate is c·clip(a·x + b, low, high) with numbers a, b and c; it is a hard-sigmoid (Howard et al.
2019, arXiv:1905.02244, sec. 5.2) where c·a = 1/6, c·b = 1/2, and the clip's bounds become 0 and 1. The factor c may
stand behind the product that the gate goes into, or with the other thing multiplied.
"""

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

import compress.edits.graph as graph
import compress.edits.operators as operators
from compress.edits.functional import free_name

CLOSE = 3e-4  # `0.1667` is meant to be 1/6; the difference is less than a tenth of a step of the 255

Scalar = Callable[[float], tuple[float, float]]  # of a number: the factor and the offset that an operation applies
SCALARS: dict[Any, Scalar] = {
    **dict.fromkeys((operator.add, torch.add, "add"), lambda number: (1.0, number)),
    **dict.fromkeys((operator.sub, torch.sub, "sub"), lambda number: (1.0, -number)),
    **dict.fromkeys((operator.mul, torch.mul, "mul"), lambda number: (number, 0.0)),
    **dict.fromkeys(
        (operator.truediv, torch.div, torch.true_divide, "div", "true_divide"),
        lambda number: (1 / number if number else math.inf, 0.0),
    ),
}
COMMUTING = {operator.add, torch.add, operator.mul, torch.mul}


def name_hard_sigmoids(traced: fx.GraphModule, made: Callable[[], nn.Module]) -> None:
    """Put layers by `made()`, which compute relu6(x + 3)/6, in the place of operations that compute the same."""
    for clip in list(traced.graph.nodes):
        bounds = operators.clip_range(traced, clip)
        if bounds is None or not all(map(math.isfinite, bounds)):
            continue
        source, factor, offset = _scaled(clip.all_input_nodes[0])
        found = _last(clip, factor, offset, bounds)
        if found is None:
            continue
        end, other = found
        name = free_name(traced, f"{end.name}_gate")
        traced.add_submodule(name, made())
        with traced.graph.inserting_before(end):
            new = traced.graph.call_module(name, (source,))
            if other is not None:
                new = traced.graph.call_function(operator.mul, (other, new))
        end.replace_all_uses_with(new)
        _erase_unused(traced, end)


def _last(
    clip: fx.Node, factor: float, offset: float, bounds: tuple[float, float]
) -> tuple[fx.Node, fx.Node | None] | None:
    """The operation with which a clip has become a hard-sigmoid, and what it was multiplied with by then, if anything.

    None where it never does: something else reads a part of it, or the numbers are others.
    """
    end, other, behind = clip, None, 1.0
    while not _is_hard_sigmoid(behind * factor, behind * offset, *(behind * bound for bound in bounds)):
        if len(end.users) != 1:
            return None
        user = next(iter(end.users))
        applied = _scalar(user)
        if applied is not None and applied[2] == 0:
            behind *= applied[1]
        elif graph.is_mul(user) and other is None and len(user.all_input_nodes) == 2:
            other, more = _multiple(next(each for each in user.all_input_nodes if each is not end))
            behind *= more
        else:
            return None
        end = user
    return end, other


def _is_hard_sigmoid(factor: float, offset: float, low: float, high: float) -> bool:
    pairs = ((3 * factor, 0.5), (offset, 0.5), (low, 0.0), (high, 1.0))
    return all(math.isclose(here, wanted, rel_tol=0, abs_tol=CLOSE) for here, wanted in pairs)


def _scaled(node: fx.Node) -> tuple[fx.Node, float, float]:
    """A value as factor·source + offset, numbers that are applied one after the other taken together."""
    factor, offset = 1.0, 0.0
    while (applied := _scalar(node)) is not None:
        node, times, plus = applied
        factor, offset = factor * times, offset + factor * plus
    return node, factor, offset


def _multiple(node: fx.Node) -> tuple[fx.Node, float]:
    """A value as a multiple of another, without numbers that are added."""
    factor = 1.0
    while (applied := _scalar(node)) is not None and applied[2] == 0:
        node, factor = applied[0], factor * applied[1]
    return node, factor


def _scalar(node: fx.Node) -> tuple[fx.Node, float, float] | None:
    """An operation of a tensor and a number as what it reads, a factor and an offset; None for any other."""
    made = SCALARS.get(node.target) if node.op in ("call_function", "call_method") else None
    operands = (*node.args, *node.kwargs.values())
    if made is None or len(operands) != 2:
        return None
    tensor, number = operands
    if isinstance(number, fx.Node) and node.target in COMMUTING:
        tensor, number = number, tensor
    if not isinstance(tensor, fx.Node) or not isinstance(number, int | float):
        return None
    return tensor, *made(float(number))


def _erase_unused(traced: fx.GraphModule, node: fx.Node) -> None:
    """Take out an operation that nothing reads any more, and what was there for it alone."""
    sources = node.all_input_nodes
    if not node.users and node.op != "placeholder":
        traced.graph.erase_node(node)
        for source in sources:
            _erase_unused(traced, source)
