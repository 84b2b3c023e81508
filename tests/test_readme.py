"""Every block of the README and of docs/quantization.md is run, but the `make` lines; each other page has its test."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commandline import done
from exporting import exported
from PIL import Image

from compress.models import MODELS
from compress.net import Spec, build

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
DOCS = ROOT / "docs"
PAGES = (
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "pipelines/README.md")),
    *sorted(DOCS.rglob("*.md")),
)
PUBLISHED = ROOT / "reports" / "published" / "mobilenet" / "report.json"


pytestmark = pytest.mark.usefixtures("graphs")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two kinds of images, a digit, and a run of the main job on a handful of images."""
    here = tmp_path_factory.mktemp("readme")
    random = np.random.default_rng(0)
    for split, count in (("train", 40), ("test", 20)):
        for shade, name in ((60, "dark"), (190, "light")):
            (here / "images" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.clip(random.normal(shade, 30, (48, 48, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(here / "images" / split / name / f"{i}.png")
    Image.new("L", (20, 20)).save(here / "digit.png")
    # In a process of its own, as `make run` does it.
    command = [sys.executable, "-W", "ignore", "-m", "compress", "run", str(ROOT / "pipelines" / "mobilenet.yaml")]
    command += ["--smoke", "--out", "reports/mobilenet"]
    ended = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=280, check=False)
    assert ended.returncode == 0, ended.stderr
    return here


@pytest.mark.timeout(600)  # whole smoke runs, one after another, beside the rest of the suite
@pytest.mark.slow
def test_every_block_runs(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    ran = []
    for kind, text in BLOCKS:
        file = re.match(r"# file: (\S+)\n", text)
        if file:
            (folder / file[1]).write_text(text)
            ran.append(file[1])
        elif kind == "python":
            exec(compile(text, "README.md", "exec"), {})
            assert capsys.readouterr().out.strip() in "0123456789"
            ran.append("python")
        else:
            for line in text.strip().splitlines():
                program, *words = shlex.split(line)
                assert program == "compress"
                ran.append(words[0])
                done(folder, *words)
    assert ran == [
        "flowers.yaml", "validate", "show", "run", "init", "ls", "doctor", "mine.py", "run", "python", "benchmark",
        "verify", "predict",
    ]  # fmt: skip
    names = [row["net"] for row in json.loads((folder / "reports/plain/report.json").read_text())["rows"]]
    assert names == ["teacher", "baseline", "distill", "prune", "quantize"]


def test_the_result_table_is_the_published_report() -> None:
    report = json.loads(PUBLISHED.read_text())
    table = re.search(r"<!-- results -->\n(.*?)<!-- /results -->", README, re.DOTALL)
    assert table is not None
    lines = [line for line in table[1].splitlines() if line.startswith("| ")][1:]
    rows = [*report["rows"], *report["alternatives"]]
    assert len(lines) == len(rows)
    for line, row in zip(lines, rows, strict=True):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[:6] == [
            row["net"],
            f"{row['top1_onnx']:.2f}",
            f"{row['top1_low']:.1f}–{row['top1_high']:.1f}",
            f"{row['params']:,}",
            f"{row['macs'] / 1e6:.2f}",
            f"{row['bytes'] / 1000:,.0f}",
        ]
        assert float(cells[6]) == pytest.approx(row["latency_ms"]["p50"], abs=0.001)


@pytest.mark.slow
def test_the_commands_from_a_clone_to_a_report_on_ones_own_images(tmp_path: Path) -> None:
    lines = re.findall(r"^ {4}\.venv/bin/compress (.+)$", README, re.MULTILINE)
    page = (DOCS / "how-to" / "images.md").read_text(encoding="utf-8")
    assert lines == re.findall(r"^ {4}\.venv/bin/compress (.+)$", page, re.MULTILINE)
    assert [line.split()[0] for line in lines] == ["init", "run"]  # behind `git clone` and `make setup`
    random = np.random.default_rng(0)
    for shade, name in ((60, "dark"), (190, "light")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(24):
            pixels = np.clip(random.normal(shade, 30, (40, 32, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
    done(tmp_path, *shlex.split(lines[0]))
    done(tmp_path, *shlex.split(lines[1]), "--smoke")
    report = json.loads((tmp_path / "reports" / "mine-smoke" / "report.json").read_text())
    assert report["data"]["class_names"] == ["dark", "light"]
    assert report["rows"][-1]["int8"]
    assert (tmp_path / "reports" / "mine-smoke" / "report.html").stat().st_size > 1_000_000


@pytest.mark.slow
def test_every_block_on_quantization_runs(folder: Path) -> None:
    blocks = re.findall(r"```(\w+)\n(.*?)```", (DOCS / "quantization.md").read_text(encoding="utf-8"), re.DOTALL)
    assert [kind for kind, _ in blocks] == ["yaml", "sh"]
    file = re.match(r"# file: (\S+)\n", blocks[0][1])
    assert file is not None
    (folder / file[1]).write_text(blocks[0][1])
    net = build(Spec(architecture=MODELS["mobilenet_v3_large"](), classes=2, image=(3, 224, 224)), 0)
    (folder / "mine.onnx").write_bytes(exported(net).SerializeToString())
    assert "ok" in done(folder, "validate", file[1])

    models = folder / "reports/mobilenet/models"
    shutil.copy(models / "quantize.int8.onnx", folder / "theirs.onnx")
    shutil.copy(models / "prune.onnx", folder / "float.onnx")
    shutil.copy(folder / "reports/mobilenet/test.npz", folder / "test.npz")
    for line in blocks[1][1].strip().splitlines():
        program, *words = shlex.split(line)
        assert program == "compress"
        assert "agree" in done(folder, *words)


def test_every_page_with_blocks_has_a_test_that_runs_them() -> None:
    run_here = {"README.md", "docs/quantization.md"}
    run_elsewhere = {"docs/deploy.md", "docs/distillation.md", "CONTRIBUTING.md"}  # and docs/how-to, by test_examples
    pages = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
    with_blocks = {page for page, text in pages.items() if "```" in text and not page.startswith("docs/how-to/")}
    assert with_blocks == run_here | run_elsewhere
    tests = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    assert all(f'"{Path(page).name}"' in tests for page in with_blocks)


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
