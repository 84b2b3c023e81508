import base64
import json
import math
import os
import re
import subprocess
import sys
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path

import pytest
from made_reports import BASELINE, CORRUPTED, FULL, HOSTILE, PRUNED, QUANTIZED, TEACHER, VARIANTS, row
from page import Page

from compress.errors import ArtifactError, ResourceError
from compress.report import (
    Limit,
    charts,
    headlines,
    labels,
    numbers,
    read,
    wording,
    write,
)  # fmt: skip
from compress.row import Latency, Row


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of each variant's report."""
    folders = {name: tmp_path_factory.mktemp("report") / "run" for name in VARIANTS}
    for name, report in VARIANTS.items():
        write(report, folders[name])
    return folders


def test_json_has_exactly_the_promised_keys(written: dict[str, Path]) -> None:
    content = json.loads((written["full"] / "report.json").read_text())
    promised = ["name", "verdict", "budget", "rows", "alternatives", "baseline", "teacher", "environment"]
    assert list(content)[:8] == promised
    assert set(content) - set(promised) == {
        "sentence", "data", "layers", "rounding", "left_float", "changes", "timings", "control", "curves", "robustness",
        "seeds", "devices", "warnings", "notes", "pipeline_yaml", "command",
    }  # fmt: skip
    assert content["budget"][1] == {
        "limit": "max_bytes",
        "value": 1_200_000,
        "measured": 1_130_412,
        "ok": True,
    }
    assert set(content["rows"][0]) == {
        "net", "stage", "top1", "top1_low", "top1_high", "top5", "top1_onnx", "agreement", "samples",
        "params", "macs", "flops", "bytes", "latency_ms", "throughput", "seconds", "onnx", "int8",
    }  # fmt: skip
    assert set(content["rows"][0]["latency_ms"]) == {"p50", "p90", "p99"}
    assert [row["net"] for row in content["rows"]] == ["teacher", "baseline", "distill", "prune", "quantize"]
    assert (content["baseline"], content["teacher"]) == ("baseline", "teacher")
    assert [row["net"] for row in content["alternatives"]] == ["prune-ptq"]
    assert content["sentence"] == wording.sentence(FULL)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_report_read_back_is_the_same(name: str, written: dict[str, Path]) -> None:
    assert asdict(read(written[name])) == asdict(VARIANTS[name])


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_another_process_writes_the_same_bytes(written: dict[str, Path], tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from compress.report import read, write\n"
        "write(read(Path(sys.argv[1])), Path(sys.argv[2]))\n"
        "assert 'torch' not in sys.modules, 'a report needs no torch'"
    )
    again = tmp_path / "again"
    environment = os.environ | {"PYTHONHASHSEED": "4711"}
    command = [sys.executable, "-c", code, str(written["full"]), str(again)]
    subprocess.run(command, env=environment, check=True, cwd=Path(__file__).parents[1])
    assert files(again) == files(written["full"])


def test_missing_report() -> None:
    with pytest.raises(ArtifactError, match=r"nowhere/report\.json does not exist. Give the folder of a finished"):
        read(Path("nowhere"))


def test_unreadable_report(tmp_path: Path) -> None:
    (tmp_path / "report.json").mkdir()
    with pytest.raises(ArtifactError, match=r"report\.json cannot be read: Is a directory"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:200], r"report\.json is damaged or no report: the file: Invalid JSON"),
        (lambda text: text.replace('"pass"', '"fine"'), r"verdict: should be 'pass', 'fail' or 'untrained'"),
        (lambda text: text.replace('"p50"', '"p51"'), r"rows\.0\.latency_ms\.p50: is missing \(and 5 more\)"),
        (
            lambda text: text.replace('"baseline": "', '"baseline": "x'),
            r"the baseline 'xbaseline' is not among",
        ),
        (lambda text: "[]", r"Run the pipeline again"),
    ],
)
def test_damaged_report(change, message: str, written: dict[str, Path], tmp_path: Path) -> None:
    text = (written["full"] / "report.json").read_text()
    (tmp_path / "report.json").write_text(change(text))
    with pytest.raises(ArtifactError, match=message):
        read(tmp_path)


def test_a_report_names_rows_it_has() -> None:
    with pytest.raises(ValueError, match="the teacher 'x' is not among the rows teacher, baseline"):
        replace(FULL, teacher="x")
    with pytest.raises(ValueError, match="at least one row"):
        replace(FULL, rows=())


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(ResourceError, match=r"run.* cannot be written: .*choose another folder with --out"):
        write(FULL, tmp_path / "run")


def test_figures_that_are_not_finite_are_dashes(tmp_path: Path) -> None:
    odd = replace(QUANTIZED, throughput=math.inf, agreement=math.nan)
    write(replace(FULL, rows=(*FULL.rows[:-1], odd)), tmp_path)
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["rows"][-1]["throughput"] is None
    line = next(line for line in (tmp_path / "report.md").read_text().splitlines() if line.startswith("| quantize"))
    assert [cell.strip() for cell in line.split("|")][7] == "–"


@pytest.mark.parametrize("name", VARIANTS)
def test_nothing_is_fetched_and_the_page_is_small(name: str, written: dict[str, Path]) -> None:
    path = written[name] / "report.html"
    assert path.stat().st_size <= 6_000_000
    page = Page(path.read_text())
    assert not [(tag, attrs) for tag, attrs in page.tags if attrs.keys() & {"src", "srcset", "action"}]
    assert all(str(attrs["href"]).startswith("#") for _, attrs in page.tags if "href" in attrs)
    assert [tag for tag, _ in page.tags].count("script") == 3
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    digests = [base64.b64encode(sha256(text.encode()).digest()).decode() for text in page.scripts[1:]]
    assert [f"sha256-{digest}" in policy for digest in digests] == [True, True]
    assert "unsafe" not in policy.split("script-src")[1].split(";")[0]
    style = path.read_text().split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style


def test_names_are_text_in_markup_and_scripts(written: dict[str, Path]) -> None:
    page = Page((written["hostile"] / "report.html").read_text())
    assert page.text.count(HOSTILE) >= 6
    assert "img" not in {tag for tag, _ in page.tags}
    figures = json.loads(page.scripts[0])
    safe = HOSTILE.replace("<", "&lt;").replace(">", "&gt;").replace("$", "&#36;")
    assert figures["channels"]["data"][0]["hovertext"] == [f"{safe}<br>32 → 16"]
    assert figures["channels"]["layout"]["yaxis"]["ticktext"] == ["&lt;/script&gt;&lt;script&gt;aler…"]
    assert "<" not in page.scripts[0]
    markdown = (written["hostile"] / "report.md").read_text()
    prose = markdown.split("### The command")[0].replace("<details>", "").replace("</details>", "")
    assert "<" not in prose.replace("<summary>", "").replace("</summary>", "")
    tables = [line for line in prose.splitlines() if line.startswith("| ") and "script" in line]
    assert tables
    widths = {len(re.findall(r"(?<!\\)\|", line)) - 1 for line in tables}
    assert widths <= {15, 8, 7, 6, 4, 2}
    assert "````yaml" in markdown


def test_the_numbers_are_those_of_the_rows(written: dict[str, Path]) -> None:
    text = Page((written["full"] / "report.html").read_text()).text
    markdown = (written["full"] / "report.md").read_text()
    for net in (*FULL.rows, *FULL.alternatives):
        expected = [f"{net.top1_onnx:.2f} %", f"{net.top1_low:.1f} to {net.top1_high:.1f} %", "99.81 %"]
        expected += [
            f"{net.bytes / 1e6:.3g} MB",
            f"{net.latency_ms.p50:#.3g} ms",
            f"{net.latency_ms.p99:#.3g} ms",
        ]
        line = next(line for line in markdown.splitlines() if line.startswith(f"| {net.net} | {net.stage}"))
        for figure in expected:
            assert figure in line
            assert figure in text
    for shown in (
        "1,200,000 bytes",
        "1,130,412 bytes",
        "0.19 points",
        "7.9× smaller",
        "2.3× faster",
        "1 min 25 s",
    ):
        assert shown in text
        assert shown in markdown
    assert "prune-ptq | ptq (alternative)" in markdown
    assert "Alternatives, measured beside the way" in text


def test_accuracy_on_corrupted_images_is_shown_where_it_was_measured(written: dict[str, Path]) -> None:
    text = Page((written["corrupted"] / "report.html").read_text()).text
    markdown = (written["corrupted"] / "report.md").read_text()
    table = markdown.split("## On corrupted images")[1].split("##")[0]
    for line in CORRUPTED:
        cells = [f"{line.clean:.2f} %", f"{line.noise:.2f} %", f"{line.blur:.2f} %", "–", f"{line.mean:.2f} %"]
        assert f"| {line.net} | {' | '.join(cells)} |" in table
        assert f"{line.net} {' '.join(cells)}" in text
    said = (
        "Against the baseline: distill +2.0 points on corrupted and +0.2 points on clean; "
        "quantize −1.7 points on corrupted and −0.2 points on clean images."
    )
    for page in (text, table):
        assert said in page
        assert "severity 3 of 5" in page
    assert "accuracies mean nothing" in Page((written["untrained"] / "report.html").read_text()).text
    for file in ("report.html", "report.md"):
        assert "corrupted" not in (written["full"] / file).read_text().split("plotly.js v")[0]
    content = json.loads((written["corrupted"] / "report.json").read_text())["robustness"]
    assert content[2] == {
        "net": "distill", "clean": 98.7, "noise": 88.04, "blur": 93.0, "contrast": None, "mean": 90.52, "severity": 3,
    }  # fmt: skip
    assert json.loads((written["full"] / "report.json").read_text())["robustness"] == []


def test_a_report_from_before_there_was_robustness_can_be_read(written: dict[str, Path], tmp_path: Path) -> None:
    content = json.loads((written["full"] / "report.json").read_text())
    del content["robustness"]
    (tmp_path / "report.json").write_text(json.dumps(content))
    assert asdict(read(tmp_path)) == asdict(FULL)


@pytest.mark.parametrize("name", VARIANTS)
def test_markdown_refers_to_the_pictures_there_are(name: str, written: dict[str, Path]) -> None:
    markdown = (written[name] / "report.md").read_text()
    shown = set(re.findall(r"\]\(pictures/([\w.-]+)\)", markdown))
    assert shown == {path.name for path in (written[name] / "pictures").iterdir()}
    report = VARIANTS[name]
    assert ("channels.svg" in shown) == bool(report.layers)
    assert ("curves.svg" in shown) == (name not in ("no curves", "empty curves"))


def test_pictures_of_an_earlier_report_go(tmp_path: Path) -> None:
    write(FULL, tmp_path)
    assert (tmp_path / "pictures/channels.svg").exists()
    write(replace(FULL, layers=()), tmp_path)
    assert not (tmp_path / "pictures/channels.svg").exists()
    assert not list(tmp_path.rglob("*.unfinished"))


@pytest.mark.parametrize(
    ("result", "sentence"),
    [
        (
            QUANTIZED,
            "The int8 file is 7.9× smaller, 2.3× faster and 0.2 points less accurate than the baseline.",
        ),
        (
            row("x", 99.6, 8_942_331, 1.424),
            "The float file is 2.0× slower and 1.1 points more accurate than the baseline, and as large.",
        ),
        (
            row("x", 98.52, 894_233, 0.712, int8=True),
            "The int8 file is 10× smaller than the baseline, and as fast and as accurate.",
        ),
        (
            row("x", 98.52, 8_942_000, 0.712),
            "The float file is as large, as fast and as accurate as the baseline.",
        ),
        (BASELINE, "No stage changed the net: the result is the baseline itself."),
    ],
)
def test_the_sentence(result: Row, sentence: str) -> None:
    rows = (BASELINE,) if result == BASELINE else (BASELINE, result)
    assert wording.sentence(replace(FULL, teacher=None, rows=rows)) == sentence


def test_an_untrained_net_is_not_praised_for_accuracy() -> None:
    report = VARIANTS["untrained"]
    assert wording.sentence(report) == "The int8 file is 7.9× smaller and 2.3× faster than the baseline."
    assert "not judged" in wording.judgement(report)
    assert headlines.headlines(report)[-1].word == "not judged"


@pytest.mark.parametrize(
    ("verdict", "met", "text"),
    [
        ("pass", (), "All checks passed. No budget was set."),
        ("pass", (True,), "The one limit of the budget is met."),
        ("pass", (True, True), "All 2 limits of the budget are met."),
        ("fail", (False,), "The one limit of the budget is missed: file size."),
        ("fail", (False, True, True), "1 of the 3 limits of the budget is missed: file size."),
        ("fail", (True,), "A check failed; the warnings say which."),
    ],
)
def test_the_judgement(verdict, met: tuple[bool, ...], text: str) -> None:
    budget = tuple(Limit("max_bytes", 1, 2, ok) for ok in met)
    assert wording.judgement(replace(FULL, verdict=verdict, budget=budget)) == text


@pytest.mark.parametrize(("flags", "told"), [(["avx2"], True), (["avx_vnni"], False), ([], False), (None, False)])
def test_int8_that_is_slower_is_said_plainly(flags: list[str] | None, told: bool) -> None:
    slow = replace(QUANTIZED, latency_ms=Latency(0.9, 1, 1))
    report = replace(FULL, rows=(*FULL.rows[:-1], slow), environment={"flags": flags})
    first, *others = wording.warnings(report)
    assert first.startswith("int8 is slower than float on this machine: quantize takes 0.900 ms, prune in float 0.463")
    assert ("VNNI" in first) is told
    assert tuple(others) == FULL.warnings
    assert wording.warnings(FULL) == FULL.warnings
    with_causes = (
        f"{slow.onnx} is not faster than models/prune.onnx here, 0.51 times its speed. Likely causes: none.",
    )
    assert wording.warnings(replace(report, warnings=with_causes)) == with_causes


def test_figures_as_people_read_them() -> None:
    assert [numbers.short(x) for x in (0, 0.01234, 1.234, 12.34, 123.4, 12345.6)] == [
        "0", "0.0123", "1.23", "12.3", "123", "12,346",
    ]  # fmt: skip
    assert [numbers.scaled(x, "B") for x in (640, 1_130_412, 94_430_112)] == ["640 B", "1.13 MB", "94.4 MB"]
    assert [numbers.scaled(x) for x in (999_999, 4.1e9)] == ["1.00 M", "4.10 G"]
    assert [numbers.duration(x) for x in (4.2, 59.97, 85.2, 7_380)] == [
        "4.2 s",
        "1 min 00 s",
        "1 min 25 s",
        "2 h 03 min",
    ]
    assert [numbers.points(x) for x in (0.19, -1.25, 0.04, -0.04)] == [
        "+0.2 points", "−1.2 points", "±0.0 points", "±0.0 points",
    ]  # fmt: skip
    assert [numbers.times(x) for x in (1.06, 9.94, 83.5, 1204)] == ["1.1×", "9.9×", "84×", "1,204×"]


def test_labels_hide_neither_points_nor_each_other() -> None:
    scatter = charts.accuracy_size(replace(FULL, rows=(TEACHER, BASELINE, PRUNED, QUANTIZED)))
    for width in labels.PLOT_WIDTHS:
        boxes = []
        for point, (right, down) in zip(scatter.points, scatter.offsets, strict=True):
            low, high = (math.log10(end) for end in scatter.x_range)
            x = (math.log10(point.x) - low) / (high - low) * width
            y = (scatter.y_range[1] - point.y) / (scatter.y_range[1] - scatter.y_range[0]) * labels.PLOT_HEIGHT
            half = labels.LETTER * len(point.name) / 2
            boxes += [
                (x - 6, y - 6, x + 6, y + 6),
                (x + right - half, y + down - 7, x + right + half, y + down + 7),
            ]
        for i, one in enumerate(boxes):
            for other in boxes[i + 1 :]:
                apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
                assert apart, (width, one, other)


def test_the_axes_hold_every_point_and_two_ticks() -> None:
    for report in VARIANTS.values():
        for scatter in (charts.accuracy_size(report), charts.accuracy_latency(report)):
            assert len(scatter.ticks) >= 2
            for point in scatter.points:
                assert scatter.x_range[0] < point.x < scatter.x_range[1]
                assert scatter.y_range[0] < point.low <= point.y <= point.high < scatter.y_range[1]
