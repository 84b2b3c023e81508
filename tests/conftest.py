"""What several test files share: annotated shapes that are checked, and small images and networks."""

import os
from collections.abc import Callable

# Several processes share the cores: threads of one would wait for those of another. Also for what tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from jaxtyping import install_import_hook

# Before anything imports them: from here on every call of a loss checks the shapes that it is annotated with.
install_import_hook("compress.losses", "beartype.beartype")


SLOWEST_FIRST = ("test_shipped_pipelines", "test_readme", "test_cli", "test_runner", "test_report", "test_export")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Hand the slowest files out first, so that no process is left alone with one at the end."""
    rank = {name: i for i, name in enumerate(SLOWEST_FIRST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


@pytest.fixture(scope="session")
def images():
    """Four classes of made-up images of 16 pixels, 64 in each split."""
    from compress.data.synthetic import Synthetic

    return Synthetic(size=16, classes=4, samples=64)(seed=0)


@pytest.fixture(scope="session")
def small_net() -> Callable:
    """Makes a MobileNetV1 of a quarter of the width for these images, the same for the same seed."""
    from compress.models.mobilenet_v1 import MobileNetV1
    from compress.net import Spec, build

    spec = Spec(architecture=MobileNetV1(width=0.25), classes=4, image=(3, 16, 16))
    return lambda seed=0: build(spec, seed)
