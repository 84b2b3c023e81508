import pytest
import torch
from pydantic import ValidationError
from torch import nn

from compress.edits.macs import count_macs
from compress.errors import ModelError
from compress.models import MODELS
from compress.models.cifar import MobileNetV2Cifar, ResNet50Cifar
from compress.models.mobilenet_v1 import MobileNetV1
from compress.models.torchvision import TORCHVISION
from compress.net import Net, Spec, build, probe

SIZES = {"inception_v3": 299}
# Their builder reads values of tensors, so the smallest of them are built for real.
NOT_ON_META = {name for name in TORCHVISION if name.startswith("regnet")}


def made(name: str, classes: int = 7, image: tuple[int, int, int] = (3, 32, 32), **fields) -> Net:
    return build(Spec(architecture=MODELS[name](**fields), classes=classes, image=image))


def on_meta(name: str, classes: int, image: tuple[int, int, int], **fields) -> tuple[Net, torch.Tensor]:
    with torch.device("meta"):
        net = made(name, classes, image, **fields)
        return net, net.example(1)


@pytest.mark.parametrize(
    ("name", "classes", "size", "params", "macs"),
    [
        ("mobilenet_v2_cifar", 100, 32, 812_836, 6_523_648),
        ("resnet50_cifar", 100, 32, 23_705_252, 1_298_014_208),
        ("mobilenet_v1", 1000, 224, 4_231_976, 568_740_352),  # Howard et al. 2017, table 4: 4.2 and 569 million
        ("mobilenet_v2", 1000, 224, 3_504_872, 300_774_272),  # Sandler et al. 2018, table 4: 3.4 and 300 million
        ("resnet50", 1000, 224, 25_557_032, 4_089_184_256),  # torchvision's own page: 25.6 and 4,089 million
    ],
)
def test_the_counts_are_those_of_the_literature(name, classes, size, params, macs):
    net, example = on_meta(name, classes, (3, size, size))
    assert net.params == params
    assert count_macs(net.module, example) == macs


@pytest.mark.parametrize("name", sorted(set(MODELS) - NOT_ON_META - {"timm"}))
def test_every_model_turns_images_into_logits(name):
    size = SIZES.get(name, 224)
    with torch.device("meta"):
        net = made(name, 7, (3, size, size))
        probe(net)
        assert net.module.eval()(net.example(3)).shape == (3, 7)


@pytest.mark.parametrize("name", ["regnet_x_400mf", "regnet_y_400mf"])
def test_regnets_turn_images_into_logits(name):
    net = made(name, 7, (3, 64, 64))
    probe(net)
    assert net.module.eval()(net.example(3)).shape == (3, 7)


@pytest.mark.parametrize("name", ["mobilenet_v1", "mobilenet_v2_cifar", "mobilenet_v2", "resnet18", "densenet121"])
def test_grey_images_are_taken(name):
    net, example = on_meta(name, 5, (1, 32, 32))
    assert net.module(example.expand(2, 1, 32, 32)).shape == (2, 5)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_no_auxiliary_heads_while_training(name):
    net, _ = on_meta(name, 5, (3, 299, 299))
    assert net.module.train()(torch.zeros(2, 3, 299, 299, device="meta")).shape == (2, 5)


@pytest.mark.parametrize(
    ("name", "size", "stem", "stride", "kernel"),
    [
        ("mobilenet_v2", 32, "auto", 1, 3),
        ("mobilenet_v2", 96, "auto", 2, 3),
        ("mobilenet_v2", 32, "imagenet", 2, 3),
        ("resnet18", 32, "auto", 1, 3),
        ("resnet18", 224, "auto", 2, 7),
        ("resnet18", 224, "small", 1, 3),
    ],
)
def test_small_images_keep_their_resolution(name, size, stem, stride, kernel):
    net, _ = on_meta(name, 5, (3, size, size), stem=stem)
    first = next(m for m in net.module.modules() if isinstance(m, nn.Conv2d))
    assert (first.stride, first.kernel_size) == ((stride, stride), (kernel, kernel))
    if name == "resnet18":
        assert isinstance(net.module.maxpool, nn.Identity) == (stride == 1)


@pytest.mark.parametrize(("size", "stride"), [(32, 1), (224, 2)])
def test_mobilenet_v1_looks_at_the_size_too(size, stride):
    net, _ = on_meta("mobilenet_v1", 5, (3, size, size))
    assert net.module.features[0][0].stride == (stride, stride)


def test_widths():
    assert made("mobilenet_v1", width=0.25).module.classifier.in_features == 256
    assert made("mobilenet_v2", width=0.5).params < made("mobilenet_v2").params
    assert made("mobilenet_v2_cifar", width=0.01).params > 0
    for architecture in (MobileNetV1, MobileNetV2Cifar, MODELS["mobilenet_v2"]):
        with pytest.raises(ValidationError, match="greater than 0"):
            architecture(width=0)


@pytest.mark.parametrize("name", ["resnet18", "resnet50_cifar"])
def test_residual_branches_can_start_at_zero(name):
    net = made(name, zero_init_residual=True, image=(3, 8, 8))
    last = "bn2" if name == "resnet18" else "bn3"
    assert not net.module.get_parameter(f"layer1.0.{last}.weight").any()


def test_the_first_block_of_the_cifar_student_has_twelve_channels_later():
    convs = [m for m in made("mobilenet_v2_cifar").module.modules() if isinstance(m, nn.Conv2d)]
    assert [conv.out_channels for conv in convs][:7] == [16, 16, 16, 8, 48, 48, 12]
    assert ResNet50Cifar.name in MODELS


def test_images_too_small_for_a_model_are_refused():
    message = r"alexnet cannot take images \(3, 32, 32\): .*Choose another data `size`"
    with pytest.raises(ModelError, match=message), torch.device("meta"):
        probe(made("alexnet"))


def test_a_model_that_cannot_be_built_for_a_size_is_refused():
    message = r"vit_b_16 cannot be built for images \(3, 40, 40\): "
    with pytest.raises(ModelError, match=message), torch.device("meta"):
        made("vit_b_16", image=(3, 40, 40))
