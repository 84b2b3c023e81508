"""What others published on the data sets that everyone knows, to stand beside a run's own nets."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import compress.report.numbers as numbers
from compress.report.tables import Table


@dataclass(frozen=True)
class Reference:
    """A published net: parameters, top-1 in per cent, where it stands.

    `bytes` is the file's size where it was published with one, else four for each parameter.
    """

    name: str
    params: int
    top1: float
    source: str
    file_bytes: int | None = None

    @property
    def bytes(self) -> int:
        return self.file_bytes or 4 * self.params


HE = "He et al. 2016, arXiv:1512.03385, table 6"
WIDE = "Zagoruyko and Komodakis 2016, arXiv:1605.07146, table 5"
DENSE = "Huang et al. 2017, arXiv:1608.06993, table 2"
TORCHVISION = "torchvision's published weights"

CIFAR10 = (
    Reference("ResNet-20", 270_000, 91.25, HE),
    Reference("ResNet-56", 850_000, 93.03, HE),
    Reference("ResNet-110", 1_700_000, 93.57, HE),
    Reference("DenseNet-BC-100-12", 800_000, 95.49, DENSE),
    Reference("WRN-40-4", 8_900_000, 95.47, WIDE),
    Reference("WRN-28-10", 36_500_000, 96.00, WIDE),
)
CIFAR100 = (
    Reference("DenseNet-BC-100-12", 800_000, 77.73, DENSE),
    Reference("DenseNet-BC-190-40", 25_600_000, 82.82, DENSE),
    Reference("WRN-40-4", 8_900_000, 78.82, WIDE),
    Reference("WRN-28-10", 36_500_000, 80.75, WIDE),
)
IMAGENET = (
    Reference("MobileNetV3 small", 2_542_856, 67.668, f"{TORCHVISION}, IMAGENET1K_V1", 9_829_000),
    Reference("MobileNetV2", 3_504_872, 72.154, f"{TORCHVISION}, IMAGENET1K_V2", 13_598_000),
    Reference("MobileNetV2, int8", 3_504_872, 71.658, f"{TORCHVISION}, IMAGENET1K_QNNPACK_V1", 3_423_000),
    Reference("MobileNetV3 large", 5_483_032, 75.274, f"{TORCHVISION}, IMAGENET1K_V2", 21_107_000),
    Reference("EfficientNet-B0", 5_288_548, 77.692, f"{TORCHVISION}, IMAGENET1K_V1", 20_451_000),
    Reference("ResNet-18", 11_689_512, 69.758, f"{TORCHVISION}, IMAGENET1K_V1", 44_661_000),
    Reference("ResNet-50", 25_557_032, 80.858, f"{TORCHVISION}, IMAGENET1K_V2", 97_790_000),
    Reference("ResNet-50, int8", 25_557_032, 80.282, f"{TORCHVISION}, IMAGENET1K_FBGEMM_V2", 24_953_000),
)
# Two of ImageNet's class folders, which nobody has by chance beside 998 others.
SYNSETS = {"n01440764", "n15075141"}


def published(data: Mapping[str, Any]) -> tuple[Reference, ...]:
    """What is known of a data set, by the keys of report.json; nothing for data that only the user has."""
    names = data.get("class_names")
    if isinstance(names, list | tuple) and len(names) == 1000 and {str(name) for name in names} >= SYNSETS:
        return IMAGENET
    return {"cifar10": CIFAR10, "cifar100": CIFAR100}.get(str(data.get("name")), ())


def table(data: Mapping[str, Any]) -> Table:
    """The published nets with their sources."""
    body = tuple(
        (
            each.name,
            f"{each.top1:.2f} %",
            numbers.scaled(each.params),
            numbers.scaled(each.bytes, "B"),
            each.source,
        )
        for each in published(data)
    )
    return Table(
        "Published by others, with their own training and image sizes; size is 4 bytes a parameter if none was given",
        ("Net", "Top-1", "Parameters", "File size", "Source"),
        body,
    )
