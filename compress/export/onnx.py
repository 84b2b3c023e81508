"""Writing a network as an ONNX file that runtimes run fast: float, or int8 in QDQ form.

The file holds what is needed and no more: no exporter's notes, no times, no paths, so that its bytes are repeatable.
"""

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import onnx
import torch
from onnx import ModelProto
from pydantic import Field
from torch import Tensor, nn

from compress.config import Config
from compress.edits import Channels, graph
from compress.errors import ExportError
from compress.export.cleaning import part_int8, share_equal, strip
from compress.export.layers import WithPreprocessing, integer_form, swap_pooling
from compress.export.naming import node_names
from compress.export.refit import refitted
from compress.export.rules import OWN_WIDTHS, aligned_channels
from compress.export.scheme import own_widths, rounding, scheme
from compress.export.seal import seal
from compress.export.storage import halve, store_four_bits
from compress.export.targets import TARGETS, Target, broken_rules
from compress.net import Net

IR_VERSION = 8
INPUT, OUTPUT = "input", "logits"


class Export(Config):
    """What the files are for.

    `target` is the kind of runtime, one of `TARGETS`; all of a run's files are made for it.
    `input` is what a file is fed: `float32_nchw`, already normalised, or `uint8_nhwc`, raw pixels, with the
    normalisation inside the file.
    """

    name: ClassVar[str] = "export"
    target: Literal["onnxruntime", "onnxruntime-avx2", "tensorrt", "arm", "mobile", "float16", "float"] = "onnxruntime"
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
    kinds: dict[str, ModelProto] = field(default_factory=dict)

    @property
    def target(self) -> Target:
        """What the files are made for."""
        return TARGETS[self.config.target]

    def __call__(self, net: Net, metadata: Mapping[str, str]) -> ModelProto:
        """The ONNX form of a net for its target, checked in full by onnx's own checker and by the target's rules.

        The batch size is open, but where the target has a fixed one.
        A net with quantizers becomes int8 QuantizeLinear/DequantizeLinear pairs with int8 weights and int32
        biases (float ones for `tensorrt`); any other is folded and stays float. The net is not changed.
        `metadata` is written into the file, beside target, scheme and seal. Raises ExportError where the exporter, the
        checker or a rule refuses, and ModelError where it cannot be traced.
        """
        with torch.no_grad():
            whole, example = self.ready(net)
            if net.spec.key not in self.graphs:
                self.trace(net, whole, example)
            model = onnx.ModelProto()
            model.CopyFrom(self.graphs[net.spec.key])
            if not _fill(model, whole.state_dict()):
                model = self.traced(whole, example)
            names = node_names(model, within="module." if isinstance(whole, WithPreprocessing) else "")
            # Only now: it folds equal tensors into one and constants away, which depends on the values.
            optimized = _optimized(model)
        return self.finished(optimized, net, names, metadata)

    def sketch(self, net: Net) -> ModelProto:
        """A file like that of `net`, made of the graph of a net of other widths where there is one: to be measured.

        Errors are those of a call.
        """
        with torch.no_grad():
            whole, example = self.ready(net)
            known = self.kinds.get(_kind(net))
            model = None if known is None else refitted(known, whole.state_dict())
            if model is not None:
                with contextlib.suppress(ExportError):
                    return self.measurable(model, whole, net)
            return self.measurable(self.trace(net, whole, example), whole, net)

    def measurable(self, traced: ModelProto, whole: nn.Module, net: Net) -> ModelProto:
        """A traced graph in its target's form."""
        model = onnx.ModelProto()
        model.CopyFrom(traced)
        names = node_names(model, within="module." if isinstance(whole, WithPreprocessing) else "")
        optimized = _optimized(model)
        return self.finished(optimized, net, names, {})

    def finished(
        self, model: ModelProto, net: Net, names: Mapping[str, str], metadata: Mapping[str, str]
    ) -> ModelProto:
        """The graph without the exporter's notes, with ours, in its target's form, checked and sealed."""
        strip(model, names)
        share_equal(model)
        part_int8(model)
        edit = rounding(net)
        if edit is not None and edit.weights == "int4":
            store_four_bits(model)
        if self.target.precision == "float16" and edit is None:
            halve(model)
        # ONNX Runtime 1.17 refuses the exporter's 10 at opset 18, where nothing needs more than 8.
        model.ir_version = IR_VERSION if self.config.opset <= 18 else 10
        model.producer_name, model.producer_version = "compress", ""
        about = {**metadata, "target": self.target.name, "scheme": scheme(net, self.target.name)}
        if aligned_channels in self.target.rules:
            about[OWN_WIDTHS] = json.dumps(own_widths(net))
        onnx.helper.set_model_props(model, dict(sorted(about.items())))
        check(model, self.config.opset)
        require_rules(model, self.target.name)
        seal(model)
        return model

    def ready(self, net: Net) -> tuple[nn.Module, Tensor]:
        """The net as it goes to the exporter, with an example of its input."""
        module = integer_form(net.module, float_bias=self.target.float_bias) if net.int8 else graph.folded(net.module)
        swap_pooling(module.cpu(), net.example())
        for layer in module.modules():  # PyTorch takes in-place activations apart several times as slowly
            if getattr(layer, "inplace", False):
                layer.inplace = False  # type: ignore[assignment]
        channels, height, width = net.spec.image
        whole: nn.Module = module
        batch = self.target.batch or 2  # where any batch is meant, an example of one would be taken at its word
        example = torch.zeros(batch, channels, height, width)
        if self.config.input == "uint8_nhwc":
            whole = WithPreprocessing(module, self.mean, self.std)
            example = torch.zeros(batch, height, width, channels, dtype=torch.uint8)
        return whole.eval().cpu(), example

    def trace(self, net: Net, whole: nn.Module, example: Tensor) -> ModelProto:
        """The exporter's own graph of a net that is `ready`, for it and for all of its kind from now on."""
        traced = self.traced(whole, example)
        self.graphs[net.spec.key] = self.kinds[_kind(net)] = traced
        return traced

    def traced(self, module: nn.Module, example: Tensor) -> ModelProto:
        """The exporter's own graph of a module; raises ExportError."""
        return _exported(module, example, self.config.opset, fixed=self.target.batch is not None)


def require_rules(model: ModelProto, target: str) -> None:
    """See that a file holds all rules of its target; raises ExportError."""
    broken = broken_rules(model, target)
    if broken:
        more = f" ({len(broken) - 1} more)" if len(broken) > 1 else ""
        raise ExportError(f"the file breaks a rule of target {target}: {broken[0]}{more}")


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


def _kind(net: Net) -> str:
    """What nets have in common that differ in widths alone."""
    edits = tuple(edit for edit in net.spec.edits if not isinstance(edit, Channels))
    return net.spec.model_copy(update={"edits": edits}).key


def _exported(module: nn.Module, example: Tensor, opset: int, *, fixed: bool) -> ModelProto:
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    shapes = None if fixed else ({0: torch.export.Dim("batch")},)
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module, (example,), dynamo=True, opset_version=opset, verbose=False, optimize=False,
                input_names=[INPUT], output_names=[OUTPUT], dynamic_shapes=shapes,
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


def _optimized(model: ModelProto) -> ModelProto:
    """The graph with constants folded and what is never used left out."""
    from onnxscript import optimizer  # here, because reading a pipeline should not wait for it

    optimized: ModelProto = optimizer.optimize(model)
    return optimized
