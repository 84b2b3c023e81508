"""Data sets. To add one: write a file beside digits.py, add its class to the tuple below."""

from compress.data.base import Data, Dataset, InMemory, MissingData, Preprocessing, Split, spread
from compress.data.cifar import Cifar10, Cifar100
from compress.data.digits import Digits
from compress.data.image_folder import ImageFolder
from compress.data.npz import Npz
from compress.data.synthetic import Synthetic

__all__ = ["DATASETS", "Data", "Dataset", "InMemory", "MissingData", "Preprocessing", "Split", "spread"]

DATASETS: dict[str, type[Dataset]] = {
    dataset.name: dataset for dataset in (Digits, Npz, ImageFolder, Cifar10, Cifar100, Synthetic)
}
