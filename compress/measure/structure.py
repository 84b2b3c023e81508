"""What must hold of a file whatever images it is fed: its seal, its target's rules, its weights, its kernels."""

from collections.abc import Iterator, Mapping

import onnxruntime as ort
from onnx import ModelProto

from compress.edits.placement import left_float
from compress.errors import ExportError
from compress.export.seal import sealed
from compress.export.targets import TARGETS, broken_rules
from compress.measure.coverage import Coverage, Kernel, listed, named, require_int8
from compress.measure.identity import differing_layers
from compress.measure.verification import Check
from compress.net import Net

# ONNX Runtime leaves these targets' layers in float, or has none to make int8.
NOT_JUDGED = {"tensorrt": "ONNX Runtime runs files for tensorrt in float, so latency here says nothing of TensorRT"}
SHOWN = 3


def structure(model: ModelProto, target: str | None, found: Coverage, net: Net | None = None) -> Iterator[Check]:
    """Every check of a file that has passed onnx's checker, for its target, if it names one, and its net, if known.

    `found` is its coverage; having it shows that the runtime takes the file.
    """
    yield Check("format", True, f"{_opset(model)}: onnx's checker and ONNX Runtime {ort.__version__} take it")
    yield check_seal(model)
    yield check_rules(model, target)
    yield check_weights(model, net)
    yield from check_coverage(model, target, found, net)


def require(checks: Iterator[Check] | tuple[Check, ...], name: str) -> None:
    """See that all checks of a file hold; raises ExportError with a sentence for each that does not."""
    failed = [check.said for check in checks if check.ok is False]
    if failed:
        raise ExportError("\n".join(f"{name}: {said}" for said in failed))


def check_seal(model: ModelProto) -> Check:
    """Whether anything in the file was changed after it was written."""
    whole = sealed(model)
    if whole is None:
        return Check("seal", None, "the file has no seal, so changes to it cannot be seen: another program wrote it")
    if whole:
        return Check("seal", True, "nothing was changed since the file was written")
    return Check("seal", False, "the seal is broken: weights, graph or metadata were changed after the export")


def check_rules(model: ModelProto, target: str | None) -> Check:
    """Whether the file holds the rules of its target."""
    if target is None:
        return Check("target", None, "the file names no target; --target judges it by one's rules")
    if target not in TARGETS:
        return Check("target", False, f"the file is for {target!r}, and targets are {', '.join(TARGETS)}")
    broken = broken_rules(model, target)
    if broken:
        return Check("target", False, f"a rule of target {target} is broken: {_some(broken)}")
    return Check("target", True, f"all {len(TARGETS[target].rules)} rules of {target} hold")


def check_weights(model: ModelProto, net: Net | None) -> Check:
    """Whether weights, biases and scales are those of the net that the file was made from."""
    if net is None:
        return Check("weights", None, "not compared with a net: the file lies in no run folder (--run names one)")
    different = differing_layers(model, net)
    if different:
        return Check("weights", False, f"the file is not of its net: {_some(different)}")
    return Check("weights", True, "every weight, bias and scale is the net's")


def check_coverage(model: ModelProto, target: str | None, found: Coverage, net: Net | None = None) -> Iterator[Check]:
    """Whether what is stored in integers is computed in integers, and what is not, with reasons."""
    layers = found.layers
    if not rounded(model):
        yield Check("kernels", None, f"a float file: {len(layers)} layers, none of them int8")
        return
    if target in NOT_JUDGED:
        yield Check("kernels", None, NOT_JUDGED[target])
        if net is not None and left_float(net.module):
            yield Check("float islands", None, f"left in float: {listed(left_float(net.module))}")
        return
    if net is not None:
        yield from _of_net(found, net)
    elif lost := meant_int8(found):
        text = f"{len(lost)} of {len(layers)} layers are stored as integers and run in float: {named(lost)}"
        yield Check("kernels", False, text)
    else:
        yield Check("kernels", True, _counted(found))
        if found.islands:
            yield Check("float islands", None, named(found.islands))


def _of_net(found: Coverage, net: Net) -> Iterator[Check]:
    try:
        remarks = require_int8(found, left_float(net.module))
    except ExportError as error:
        yield Check("kernels", False, str(error))
        return
    yield Check("kernels", True, _counted(found))
    for remark in remarks:
        yield Check("float islands", None, remark)


def rounded(model: ModelProto) -> bool:
    """Whether a file rounds anything."""
    return any("Quantize" in node.op_type or node.op_type.endswith("Integer") for node in model.graph.node)


def meant_int8(found: Coverage) -> list[Kernel]:
    """Layers with integer weights and a rounded input that run in float all the same: rounding's loss for nothing."""
    unmeant = ("its weights are float", "its input is not rounded", "weights of 4 bits")
    return [kernel for kernel in found.float_layers if not kernel.reason.startswith(unmeant)]


def remarks(checks: Mapping[str, Check] | tuple[Check, ...]) -> tuple[str, ...]:
    """What checks of a sound file have to say to its user."""
    every = checks.values() if isinstance(checks, Mapping) else checks
    return tuple(check.said for check in every if check.ok is None and check.name in ("float islands", "kernels"))


def _counted(found: Coverage) -> str:
    counted: dict[str, int] = {}
    for kernel in found.layers:
        counted[kernel.runs_as] = counted.get(kernel.runs_as, 0) + 1
    int8 = sum(kernel.int8 for kernel in found.layers)
    kinds = ", ".join(f"{number} {kind}" for kind, number in counted.items())
    return f"{int8} of {len(found.layers)} layers have an int8 kernel ({kinds})"


def _opset(model: ModelProto) -> str:
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), None)
    return f"opset {opset}, IR {model.ir_version}"


def _some(sentences: list[str]) -> str:
    more = f"; and {len(sentences) - SHOWN} more" if len(sentences) > SHOWN else ""
    return "; ".join(sentences[:SHOWN]) + more
