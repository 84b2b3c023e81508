"""The how-to pages and the examples: each block is run, and what a page shows is the file that ships."""

import json
import os
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest
from commandline import as_it_was, done
from PIL import Image

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs" / "how-to").glob("*.md"))
EXAMPLES = ROOT / "examples"
BLOCKS = {page.name: re.findall(r"```(\w+)\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL) for page in PAGES}
NOTEBOOK = json.loads((EXAMPLES / "compress.ipynb").read_text(encoding="utf-8"))


pytestmark = pytest.mark.usefixtures("graphs")


@pytest.fixture(scope="module", autouse=True)
def in_a_hurry() -> Iterator[None]:
    """No picture is looked at, and tables are put back."""
    with pytest.MonkeyPatch.context() as patch, as_it_was():
        patch.setattr("compress.report.pictures._svg", lambda *_, **__: "<svg/>")
        yield


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder but for two classes of pictures."""
    random = np.random.default_rng(0)
    for shade, name in ((60, "dark"), (190, "light")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(12):
            pixels = np.clip(random.normal(shade, 30, (24, 40, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
    return tmp_path


def execute(code: str, source: str, names: dict[str, object]) -> None:
    exec(compile(code, source, "exec"), names)


@pytest.mark.parametrize("page", [page for page in BLOCKS if BLOCKS[page]])
def test_every_block_of_a_page_runs(page: str, folder: Path) -> None:
    ran = 0
    for kind, text in BLOCKS[page]:
        named = re.match(r"# file: (\S+)\n", text)
        if named:
            shipped = EXAMPLES / named[1]
            assert text == f"# file: {named[1]}\n{shipped.read_text(encoding='utf-8')}"
            (folder / named[1]).write_text(text, encoding="utf-8")
        elif kind == "python":
            with chdir(folder):
                execute(text, page, {"__name__": "__main__"})
            ran += 1
        else:
            assert kind == "sh"
            for line in text.strip().splitlines():
                program, *words = shlex.split(line.removeprefix("$ "))
                if program == "compress":
                    assert done(folder, *words)
                else:
                    assert program == "python"
                    with chdir(folder):
                        execute(Path(words[0]).read_text(), words[0], {"__name__": "__main__"})
                ran += 1
    assert ran


def test_every_page_and_example_is_reached() -> None:
    index = (ROOT / "docs" / "how-to" / "README.md").read_text(encoding="utf-8")
    assert all(f"({page.name})" in index for page in PAGES if page.name != "README.md")
    shown = "".join(text for blocks in BLOCKS.values() for _, text in blocks)
    elsewhere = {"predict.py"}  # docs/deploy.md has it
    for example in EXAMPLES.glob("*.*"):
        assert f"# file: {example.name}\n" in shown or example.suffix == ".ipynb" or example.name in elsewhere
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_a_plugin_of_a_model_is_ten_lines() -> None:
    code = (EXAMPLES / "my_model.py").read_text().split('"""', 2)[2]
    lines = [line for line in code.splitlines() if line.strip() and not line.startswith(("import", "from"))]
    assert len(lines) <= 10


def test_the_notebook_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert NOTEBOOK["nbformat"] == 4
    names: dict[str, object] = {"__name__": "__main__"}
    cells = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    with chdir(tmp_path):
        for i, cell in enumerate(cells):
            execute("".join(cell["source"]), f"cell {i + 1}", names)
    said = capsys.readouterr().out
    assert re.search(r"^quantize: [\d,]+ bytes, baseline: [\d,]+ bytes$", said, re.MULTILINE)
    share = re.search(
        r"^notebook.int8.onnx: [\d,]+ bytes, (\d+) % of the predictions as in PyTorch$", said, re.MULTILINE
    )
    assert share is not None
    assert int(share[1]) >= 97
    assert os.fspath(tmp_path) not in sys.path
