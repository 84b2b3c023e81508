"""Users' code: four kinds of members from one file, and what is said of files that cannot be used."""

import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from compress.errors import ConfigError
from compress.plugins import load_plugins
from compress.verbs.catalogue import TABLES, catalogue, check_members

PLUGIN = '''
import copy
from typing import Annotated, ClassVar

from torch import nn

from compress.config import Config, OneOf
from compress.data import DATASETS
from compress.data.synthetic import Synthetic
from compress.losses import LOSSES, Loss
from compress.models import MODELS
from compress.net import Net
from compress.stages import STAGES
from compress.recipe import Training
from compress.weighting import Weight


class Margin(Config):
    """The mean gap between the best class and the true one."""

    name: ClassVar[str] = "margin"
    needs_teacher: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = True
    weight: Weight = 1.0

    def __call__(self, batch):
        logits = batch.student.logits
        true = logits.gather(1, batch.labels[:, None])
        return (logits.max(1, keepdim=True).values - true).mean()


class Stripes(Synthetic):
    """Made-up images by another name."""

    name: ClassVar[str] = "stripes"
    samples: int = 64
    classes: int = 4


class Patch(Config):
    """One convolution over patches."""

    name: ClassVar[str] = "patch"
    width: int = 16

    def __call__(self, classes, image):
        layers = [nn.Conv2d(image[0], self.width, 4, 4, bias=False), nn.BatchNorm2d(self.width), nn.ReLU()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(self.width, classes))


class Shrink(Config):
    """Multiply all weights by a factor."""

    name: ClassVar[str] = "shrink"
    factor: float = 0.5
    training: Training = Training(epochs=0)
    losses: tuple[Annotated[Loss, OneOf(LOSSES)], ...] | None = None

    def __call__(self, net, env):
        module = copy.deepcopy(net.module)
        for value in module.parameters():
            value.data *= self.factor
        env.note(f"weights times {self.factor}")
        return Net(net.spec, module)


for table, member in ((LOSSES, Margin), (DATASETS, Stripes), (MODELS, Patch), (STAGES, Shrink)):
    table[member.name] = member
'''


@pytest.fixture(autouse=True)
def tables() -> Iterator[None]:
    """The tables as they were, after each test."""
    before = {kind: dict(table) for kind, table in TABLES.items()}
    yield
    for kind, table in TABLES.items():
        for name in table.keys() - before[kind].keys():
            del table[name]  # type: ignore[attr-defined]


def written(folder: Path, text: str, name: str = "mine.py") -> Path:
    path = folder / name
    path.write_text(textwrap.dedent(text))
    return path


def refusal(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_plugins([path])
    return str(caught.value)


def test_a_plugin_adds_members_of_every_kind(tmp_path: Path) -> None:
    load_plugins([written(tmp_path, PLUGIN)])
    check_members()
    names = {kind: [line.split()[0] for line in lines] for kind, lines in catalogue().items()}
    assert "margin" in names["losses"]
    assert "stripes" in names["data"]
    assert "patch" in names["models"]
    assert "shrink" in names["stages"]


def test_what_is_there_already_can_be_used() -> None:
    check_members()


def test_missing_plugin(tmp_path: Path) -> None:
    assert refusal(tmp_path / "mine.py") == f"--plugin {tmp_path / 'mine.py'}: no such file"


def test_plugin_that_raises(tmp_path: Path) -> None:
    path = written(tmp_path, "import os\n\nraise KeyError('no key')\n")
    assert refusal(path) == f"plugin {path} failed in line 3: KeyError: 'no key'; mend or omit it"


def test_plugin_that_is_no_python(tmp_path: Path) -> None:
    path = written(tmp_path, "class Margin\n")
    assert refusal(path).startswith(f"plugin {path} failed: SyntaxError: expected ':'")


def test_plugin_that_ends_the_program(tmp_path: Path) -> None:
    path = written(tmp_path, "import sys\nsys.exit(0)\n")
    assert refusal(path) == f"plugin {path} failed in line 2: SystemExit: 0; mend or omit it"


def test_plugin_of_another_kind_of_file(tmp_path: Path) -> None:
    path = written(tmp_path, "x = 1", "mine.txt")
    assert refusal(path) == f"plugin {path} failed: ImportError: its name should end in .py; mend or omit it"


IMPORTANCE = "should be an Importance(summary, scores) of compress.pruning.importance"
MEMBER = "class Member(Config):\n    name: ClassVar[str] = 'new'\n"
CALLED = MEMBER + "    def __call__(self, *_): ...\n"
UNFIT = [
    ("LOSSES['new'] = print", "losses: 'new' should be a class derived from compress.config.Config"),
    (f"{CALLED}LOSSES['other'] = Member", "losses: 'other' should have `name: ClassVar[str] = 'other'`"),
    (f"{MEMBER}LOSSES['new'] = Member", "losses: 'new' should have a method __call__"),
    (f"{CALLED}LOSSES['new'] = Member", "losses: 'new' lacks needs_teacher"),
    (f"{CALLED}STAGES['new'] = Member", "stages: 'new' lacks training and losses"),
    (f"{CALLED}DATASETS['new'] = Member", "data: 'new' lacks size and channels"),
    ("IMPORTANCES['new'] = print", f"importances: 'new' {IMPORTANCE}"),
    ("IMPORTANCES['new'] = type(IMPORTANCES['l2'])('without scores')", f"importances: 'new' {IMPORTANCE}"),
]


@pytest.mark.parametrize(("text", "problem"), UNFIT, ids=[problem[:30] for _, problem in UNFIT])
def test_members_that_cannot_be_used(text: str, problem: str, tmp_path: Path) -> None:
    head = "from typing import ClassVar\n" + "".join(
        f"from compress.{module} import {name}\n"
        for module, name in (
            ("config", "Config"),
            ("losses", "LOSSES"),
            ("stages", "STAGES"),
            ("data", "DATASETS"),
            ("pruning.importance", "IMPORTANCES"),
        )
    )
    load_plugins([written(tmp_path, head + text)])
    with pytest.raises(ConfigError) as caught:
        check_members()
    assert str(caught.value) == f"a plugin added what cannot be used:\n  {problem}"
