"""Networks of timm, where it is installed."""

import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from types import ModuleType
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import AfterValidator
from torch import Tensor, fx, nn

from compress.config import Config, near
from compress.models.torchvision import SMALL_IMAGE, change_first_convolution

INSTALL = "timm is not installed; `pip install -e '.[timm]'` brings it"


def installed() -> bool:
    """Whether timm can be imported."""
    return find_spec("timm") is not None


def library() -> ModuleType:
    """The package timm, which takes seconds to import; raises ValueError where it is not installed."""
    if not installed():
        raise ValueError(INSTALL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import timm
    return timm  # type: ignore[no-any-return]


def _known(model: str) -> str:
    names = library().list_models()
    if model.partition(".")[0] not in names:
        raise ValueError(f"timm has no {model!r}.{near(model.partition('.')[0], names)}")
    return model


class Timm(Config):
    """Any convolutional network of timm (Wightman 2019, doi:10.5281/zenodo.4414861), whose page there cites the paper.

    Its layers are brought into PyTorch's own forms, under the names that they had, so that `weights` may be timm's
    model.safetensors: batch-norms with an activation inside become the two, and the padding of `tf_` models is worked
    out for the image. `stem: small` gives the first convolution stride 1 and at most a 3×3 kernel, and takes a
    max-pooling behind it out; `auto` does so for images under 96 pixels. What timm's forward() branches on cannot be
    traced (`vgg`), and attention cannot be pruned.
    """

    name: ClassVar[str] = "timm"
    model: Annotated[str, AfterValidator(_known)]
    stem: Literal["auto", "imagenet", "small"] = "auto"

    def __call__(self, classes: int, image: tuple[int, int, int]) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            net = library().create_model(self.model, num_classes=classes, in_chans=image[0])
        if self.stem == "small" or (self.stem == "auto" and image[1] < SMALL_IMAGE):
            change_first_convolution(net, channels=image[0], small=True)
            if isinstance(getattr(net, "maxpool", None), nn.MaxPool2d):
                net.maxpool = nn.Identity()
        return in_plain_layers(net, image)


def in_plain_layers(net: nn.Module, image: tuple[int, int, int]) -> nn.Module:
    """The network in layers of torch.nn, for images of one size; it computes the same and has the same state dict.

    Rounding and pruning know a layer by its type, which a subclass with a forward() of its own is not.
    """
    from timm.layers import BatchNormAct2d, Conv2dSame, DropPath
    from timm.layers import Linear as TimmLinear

    for name, layer in [*net.named_modules()]:
        if type(layer) is TimmLinear:
            net.set_submodule(name, _linear(layer))
    odd = (BatchNormAct2d, Conv2dSame)
    if not any(isinstance(layer, odd) for layer in net.modules()):
        return net
    sizes = _input_sizes(net, image, Conv2dSame)
    traced = _traced(net, (*odd, DropPath))
    for node in list(traced.graph.nodes):
        layer = traced.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(layer, BatchNormAct2d):
            _take_apart(traced, node, layer)
        elif isinstance(layer, Conv2dSame):
            _pad(traced, node, layer, sizes[str(node.target)])
    traced.graph.lint()
    traced.recompile()
    return traced


def _linear(layer: nn.Linear) -> nn.Linear:
    plain = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
    plain.weight, plain.bias = layer.weight, layer.bias
    return plain.train(layer.training)


def _traced(net: nn.Module, leaves: tuple[type[nn.Module], ...]) -> fx.GraphModule:
    class Tracer(fx.Tracer):
        def is_leaf_module(self, layer: nn.Module, name: str) -> bool:
            return isinstance(layer, leaves) or super().is_leaf_module(layer, name)

    training = net.training
    try:
        return fx.GraphModule(net, Tracer().trace(net.eval()), type(net).__name__).train(training)
    except Exception as error:
        raise ValueError(f"torch.fx cannot trace it ({error})") from error


def _input_sizes(net: nn.Module, image: tuple[int, int, int], kind: type[nn.Module]) -> dict[str, tuple[int, int]]:
    """Height and width of what goes into each layer of a kind."""
    found: dict[str, tuple[int, int]] = {}

    def see(name: str, inputs: Sequence[Tensor]) -> None:
        found[name] = (inputs[0].shape[2], inputs[0].shape[3])

    handles: list[Any] = [
        layer.register_forward_pre_hook(lambda _, inputs, name=name: see(name, inputs))
        for name, layer in net.named_modules()
        if isinstance(layer, kind)
    ]
    training = net.training
    try:
        with torch.no_grad():
            net.eval()(torch.zeros(1, *image))
    finally:
        net.train(training)
        for handle in handles:
            handle.remove()
    return found


def _take_apart(traced: fx.GraphModule, node: fx.Node, layer: Any) -> None:
    """A batch-norm with dropout and an activation inside, as a batch-norm and the two behind it, where they do any."""
    name = str(node.target)
    norm = nn.BatchNorm2d(layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats)
    norm.load_state_dict(layer.state_dict())
    traced.set_submodule(name, norm.train(layer.training))
    last = node
    for part in ("drop", "act"):
        each = getattr(layer, part)
        if not isinstance(each, nn.Identity):
            last = _behind(traced, last, f"{name}_{part}", each)


def _pad(traced: fx.GraphModule, node: fx.Node, layer: nn.Conv2d, size: tuple[int, int]) -> None:
    """A convolution that pads as TensorFlow does, on the right more than on the left, for one size of input."""
    name = str(node.target)
    (top, bottom), (left, right) = (
        _same(size[i], layer.kernel_size[i], layer.stride[i], layer.dilation[i]) for i in (0, 1)
    )
    even = top == bottom and left == right
    plain = nn.Conv2d(
        layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, (top, left) if even else 0,  # type: ignore[arg-type]
        layer.dilation, layer.groups, layer.bias is not None, device="meta",  # type: ignore[arg-type]
    )  # fmt: skip
    plain.weight, plain.bias = layer.weight, layer.bias
    traced.set_submodule(name, plain.train(layer.training))
    if not even:
        traced.add_submodule(f"{name}_pad", nn.ZeroPad2d((left, right, top, bottom)))
        source = node.all_input_nodes[0]
        with traced.graph.inserting_before(node):
            padded = traced.graph.call_module(f"{name}_pad", (source,))
        node.replace_input_with(source, padded)


def _same(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """How many zeros go before and behind, so that the output has ⌈size / stride⌉ positions."""
    total = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return total // 2, total - total // 2


def _behind(traced: fx.GraphModule, node: fx.Node, name: str, layer: nn.Module) -> fx.Node:
    """Put a layer without weights behind another."""
    traced.add_submodule(name, layer)
    users = list(node.users)
    with traced.graph.inserting_after(node):
        following = traced.graph.call_module(name, (node,))
    for user in users:
        user.replace_input_with(node, following)
    return following
