"""Export as a function."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from compress.edits.graph import evaluating
from compress.errors import ConfigError, ExportError
from compress.export.onnx import Export
from compress.files import durable
from compress.functions.given import LOG, checked, data_of, net_of
from compress.measure.file import outputs, session
from compress.measure.layerwise import Power
from compress.net import Net
from compress.running.proof import Prover

# Of the file's logits against the module's, signal to noise. Float kernels sum in another order; int8 ones round ties
# in another way, which a few layers on can be a step of the grid.
FLOAT_DB, INT8_DB = 40.0, 10.0


def export(
    module: nn.Module,
    example: Tensor,
    path: str | Path,
    *,
    target: str = "onnxruntime",
    opset: int = 18,
    input: str = "float32_nchw",
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    class_names: Sequence[str] | None = None,
) -> Path:
    """Write a network as an ONNX file, int8 where `quantize` made it and float otherwise, and check what was written.

    `example` is a float32 tensor (n, C, H, W), normalised as in training; the batch size stays open unless the target
    has one of its own. `target` is one of `compress ls targets`. `mean` and `std` are in units of 0..1, one number a
    channel (left out: 0 and 1); with `input="uint8_nhwc"` the file is fed raw pixels, uint8 (n, H, W, C), and
    normalises them itself. They and `class_names` are written into the file's metadata, with a seal over its content.

    Checked are the graph (onnx's checker), the target's rules, the weights, that ONNX Runtime runs every convolution
    and matrix product of an int8 file in int8 unless it was left float, and that the file gives the module's logits
    for the example. The module is left as it was. Returns the path.

    Raises ConfigError for wrong arguments; ModelError where the module cannot be traced; ExportError where a check
    fails; ResourceError where the file cannot be written.
    """
    written = Path(path)
    if written.suffix != ".onnx":
        raise ConfigError(f"export: the file's name should end in .onnx, not be {str(path)!r}")
    config = checked(Export, {"target": target, "opset": opset, "input": input}, "export")
    net, classes = net_of(module, example, "export")
    for key, values, count in (("mean", mean, net.spec.image[0]), ("std", std, net.spec.image[0]),
                               ("class_names", class_names or (), classes)):  # fmt: skip
        if len(values) not in (0, count):
            raise ConfigError(f"export: {key} has {len(values)} values where {count} are needed")
    if any(not value > 0 for value in std):
        raise ConfigError(f"export: std should hold numbers above 0, not {list(std)}")
    data = data_of(net.spec.image, classes, mean, std, class_names)
    prover = Prover(written.parent, data, config, torch.device("cpu"))
    model, remarks = prover.graph(net, written.stem)
    content = model.SerializeToString(deterministic=True)
    if config.input == "float32_nchw":
        _require_same(net, content, example, written)
    durable.write(written, content)
    for remark in remarks:
        LOG.warning("export: %s", remark)
    return written


def _require_same(net: Net, content: bytes, example: Tensor, path: Path) -> None:
    """See that a file gives its module's logits; raises ExportError."""
    images = example[:1].detach()
    with evaluating(net.module), torch.no_grad():
        ours = net.module(images.to(next(net.module.parameters(), images).device)).float().cpu().numpy()
    power = Power()
    power.add(ours, outputs(session(content), images.cpu().numpy().astype(np.float32))[0])
    wanted = INT8_DB if net.int8 else FLOAT_DB
    if power.db < wanted:
        raise ExportError(
            f"export: {path} would give other logits than {type(net.module).__name__}: {power.db:.1f} dB "
            f"signal-to-noise where {wanted:g} are needed"
        )
