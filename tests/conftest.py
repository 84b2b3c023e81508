"""What several test files share: annotated shapes that are checked, and small images and networks."""

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext

# Several processes share the cores: threads of one would wait for those of another. Also for what tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from jaxtyping import install_import_hook

# Before anything imports them: from here on every call of a loss checks the shapes that it is annotated with.
install_import_hook("compress.losses", "beartype.beartype")


ABOUT_TIME = ("test_measure", "test_prune_stage", "test_device")
SLOWEST_FIRST = (
    "test_shipped_pipelines", "test_readme", "test_runner", "test_cli", "test_report", "test_export", "test_targets",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Hand the slowest files out first, so that no process is left alone with one at the end."""
    rank = {name: i for i, name in enumerate(SLOWEST_FIRST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


@pytest.fixture(scope="session", autouse=True)
def fresh_operators() -> Iterator[Callable | None]:
    """Let torch.onnx make its table of operators once; gives what makes a fresh one, or None where there is none.

    It reads the source of five hundred operators at every export, a third of a small net's second. The name is not
    public: where torch has another, tests are slower and the same.
    """
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        fresh = ONNXRegistry.from_torchlib
    except (ImportError, AttributeError):
        yield None
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(functools.cache(fresh)))
        yield fresh


@pytest.fixture(scope="module", autouse=True)
def in_no_time(request: pytest.FixtureRequest) -> Iterator[None]:
    """Where latency is not what is tested, no time is spent on it."""
    from hurry import hasty_timing

    with nullcontext() if request.module.__name__ in ABOUT_TIME else hasty_timing():
        yield


@pytest.fixture(scope="module")
def graphs() -> Iterator[dict]:
    """What torch.onnx made of a net's shape, which all runs of a module share, as each run does by itself."""
    from hurry import shared_graphs

    with shared_graphs() as shared:
        yield shared


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
