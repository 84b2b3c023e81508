"""Writing a network as an ONNX file that runtimes run fast: float, or int8 in QDQ form.

The file holds what is needed and no more: no exporter's notes, no times, no paths, so that its bytes are repeatable.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import onnx
import torch
from onnx import ModelProto
from onnxscript import optimizer
from pydantic import Field
from torch import Tensor, nn

from compress.config import Config
from compress.edits import graph
from compress.errors import ExportError
from compress.export.layers import WithPreprocessing, integer_form, swap_pooling
from compress.net import Net

IR_VERSION = 8
INPUT, OUTPUT = "input", "logits"
SMALL = 4096  # elements: weights larger than this are never alike but by chance, in a net that was not trained


class Export(Config):
    """What the files are for.

    `input` is what a file is fed: `float32_nchw`, already normalised, or `uint8_nhwc`, raw pixels, with the
    normalisation inside the file.
    """

    name: ClassVar[str] = "export"
    target: Literal["onnxruntime"] = "onnxruntime"
    opset: Annotated[int, Field(ge=18, le=21)] = 18
    input: Literal["float32_nchw", "uint8_nhwc"] = "float32_nchw"


@dataclass
class Exporter:
    """Exports networks; tracing the same shape a second time is saved by putting the new weights into its graph.

    `mean` and `std` are the data's, one number a channel.
    """

    config: Export
    mean: tuple[float, ...]
    std: tuple[float, ...]
    graphs: dict[str, ModelProto] = field(default_factory=dict)

    def __call__(self, net: Net, metadata: Mapping[str, str]) -> ModelProto:
        """The ONNX form of a net, batch size open, checked in full by onnx's own checker.

        A net with quantizers becomes int8 QuantizeLinear/DequantizeLinear pairs with int8 weights and int32
        biases; any other is folded and stays float. The net is not changed. `metadata` is written into the file.
        Raises ExportError where the exporter or the checker refuses, and ModelError where it cannot be traced.
        """
        with torch.no_grad():
            whole, example = self.ready(net)
            if net.spec.key not in self.graphs:
                self.graphs[net.spec.key] = _exported(whole, example, self.config.opset)
            model = onnx.ModelProto()
            model.CopyFrom(self.graphs[net.spec.key])
            if not _fill(model, whole.state_dict()):
                model = _exported(whole, example, self.config.opset)
            # Only now: it folds equal tensors into one and constants away, which depends on the values.
            optimized: ModelProto = optimizer.optimize(model)
        return self.finished(optimized, metadata)

    def finished(self, model: ModelProto, metadata: Mapping[str, str]) -> ModelProto:
        """The graph without the exporter's notes, with ours, checked."""
        _strip(model)
        _share_equal(model)
        _part_int8(model)
        # ONNX Runtime 1.17 refuses the exporter's 10 at opset 18, where nothing needs more than 8.
        model.ir_version = IR_VERSION if self.config.opset <= 18 else 10
        model.producer_name, model.producer_version = "compress", ""
        onnx.helper.set_model_props(model, dict(sorted(metadata.items())))
        check(model, self.config.opset)
        return model

    def ready(self, net: Net) -> tuple[nn.Module, Tensor]:
        """The net as it goes to the exporter, with an example of its input."""
        module = integer_form(net.module) if net.int8 else graph.folded(net.module)
        swap_pooling(module)
        channels, height, width = net.spec.image
        whole: nn.Module = module
        example = torch.zeros(2, channels, height, width)
        if self.config.input == "uint8_nhwc":
            whole = WithPreprocessing(module, self.mean, self.std)
            example = torch.zeros(2, height, width, channels, dtype=torch.uint8)
        return whole.eval().cpu(), example


def check(model: ModelProto, opset: int) -> None:
    """Run onnx's full checker and see that the opset is the one asked for; raises ExportError."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the exported graph is not valid ONNX: {error}") from error
    written = {i.domain: i.version for i in model.opset_import}
    if written.get("") != opset:
        raise ExportError(
            f"opset {opset} was asked for and the exporter wrote {written.get('')}; set export.opset to that"
        )


def _exported(module: nn.Module, example: Tensor, opset: int) -> ModelProto:
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module, (example,), dynamo=True, opset_version=opset, verbose=False, optimize=False,
                input_names=[INPUT], output_names=[OUTPUT], dynamic_shapes=({0: torch.export.Dim("batch")},),
            )  # fmt: skip
    except Exception as error:  # the exporter raises a dozen kinds
        cause = error.__cause__ or error
        reason = next(iter(str(cause).strip().splitlines()), type(cause).__name__)
        raise ExportError(f"torch.onnx cannot export this network at opset {opset}: {reason}") from error
    finally:
        logger.setLevel(level)
    assert program is not None
    return program.model_proto


def _fill(model: ModelProto, state: Mapping[str, Tensor]) -> bool:
    """Put these values into a graph's initializers; False where the two are not the same by name and shape.

    Then the exporter computed some of them, and the graph of one net's values cannot serve another's.
    """
    for tensor in model.graph.initializer:
        value = state.get(tensor.name)
        if value is None or tuple(value.shape) != tuple(tensor.dims):
            return False
        tensor.CopyFrom(onnx.numpy_helper.from_array(value.contiguous().numpy(), tensor.name))
    return {tensor.name for tensor in model.graph.initializer} == set(state)


def _share_equal(model: ModelProto) -> None:
    """Let equal small tensors stand in the file once: zero points of biases, mostly, of which every layer has one."""
    first: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    renamed: dict[str, str] = {}
    kept = []
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        key = (tensor.data_type, tuple(tensor.dims), values.tobytes() if values.size <= SMALL else tensor.name.encode())
        if key in first:
            renamed[tensor.name] = first[key]
        else:
            first[key] = tensor.name
            kept.append(tensor)
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = renamed.get(name, name)


def _part_int8(model: ModelProto) -> None:
    """Give every layer int8 tensors of its own where equal ones were made one.

    On CPUs without VNNI users switch on `session.x64quantprecision`, with which ONNX Runtime rewrites weights and
    their zero points; it refuses a file in which two layers share one.
    """
    whole = {t.name: t for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT8}
    used: set[str] = set()
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            if name in used:
                own = model.graph.initializer.add()
                own.CopyFrom(whole[name])
                own.name = node.input[i] = f"{name}_{node.name}"
            elif name in whole:
                used.add(name)


def _strip(model: ModelProto) -> None:
    """Remove what the exporter adds for people: stack traces, shape notes, doc strings."""
    model.ClearField("doc_string")
    model.ClearField("metadata_props")
    model.ClearField("functions")
    model.graph.ClearField("value_info")
    model.graph.ClearField("doc_string")
    model.graph.ClearField("metadata_props")
    model.graph.name = "net"
    for i, node in enumerate(model.graph.node):
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
        node.name = f"{node.op_type}_{i}"
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        value.ClearField("metadata_props")
        value.ClearField("doc_string")
