"""Every block of the README is run, but the `make` lines."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commandline import done
from PIL import Image

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
PUBLISHED = ROOT / "reports" / "published" / "mobilenet" / "report.json"


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


def test_links_lead_somewhere() -> None:
    for page in (ROOT / "README.md", ROOT / "pipelines" / "README.md", ROOT / "docs" / "decisions" / "README.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
