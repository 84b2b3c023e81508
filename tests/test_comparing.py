"""Several runs side by side: gains, fronts, what cannot be compared, the page and the terminal."""

import io
import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import chdir
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commandline import as_it_was, done
from page import Page
from rich.console import Console

from compress import cli
from compress.report import Report, write
from compress.report.comparison import Comparison, Entry, compare, front
from compress.report.comparison_page import as_json, figures, render
from compress.row import Latency, Row
from compress.verbs.comparing import compare_runs, named, show

HOSTILE = "</script><script>alert('1')</script> \"q\" <img src=x onerror=alert(2)> $x$ {{ 7*7 }}"
PIPELINE = "teacher:\n  model:\n    {teacher}: {{width: 1.0}}\nstudent:\n  mobilenet_v2: {{width: 0.5}}\n"
MACHINE = {"cpu": "EPYC", "threads": 1, "data_fingerprint": "71d0e2f4c9aa"}


def row(net: str, top1: float, size: int, p50: float, stage: str = "", samples: int = 540) -> Row:
    counted = {"params": size // 4, "macs": size, "flops": 2 * size, "bytes": size, "samples": samples, "seconds": 1.0}
    return Row(
        net=net, stage=stage or net, top1=top1, top1_low=top1 - 1, top1_high=top1 + 1, top5=99.0, top1_onnx=top1,
        agreement=100.0, latency_ms=Latency(p50, p50, p50), throughput=1000 / p50, onnx=f"models/{net}.onnx",
        int8=net == "quantize", **counted,
    )  # fmt: skip


def report(name: str, teacher: float, distilled: float, quantized: float, **changes: Any) -> Report:
    """A run whose student alone has 90 % right."""
    whole = Report(
        name=name,
        verdict="pass",
        budget=(),
        rows=(
            row("teacher", teacher, 90_000_000, 5.0),
            row("baseline", 90.0, 9_000_000, 0.7),
            row("distill", distilled, 9_000_000, 0.7),
            row("quantize", quantized, 2_400_000, 0.4),
        ),
        alternatives=(row("quantize-ptq", quantized - 1, 2_400_000, 0.4, "quantize"),),
        baseline="baseline",
        teacher="teacher",
        environment=MACHINE,
        data={"name": "digits"},
        pipeline_yaml=PIPELINE.format(teacher="resnet50"),
    )
    return replace(whole, **changes)


SMALL = report("small", 93.0, 91.5, 91.0, pipeline_yaml=PIPELINE.format(teacher="resnet18"))
LARGE = report("large", 96.0, 91.0, 90.5)
OTHER_DATA = report("elsewhere", 99.0, 98.0, 97.0, environment=MACHINE | {"data_fingerprint": "aaaaaaaaaaaa"})
OTHER_CPU = report("slow", 96.0, 92.0, 91.9, environment=MACHINE | {"cpu": "Cortex-A72", "threads": 4})
SMOKE = report("smoke", 10.0, 99.9, 99.9, verdict="untrained")


def by_label(comparison: Comparison) -> dict[str, Entry]:
    return {entry.label: entry for entry in comparison.entries}


def folders(where: Path, *reports: Report) -> list[Path]:
    for i, each in enumerate(reports):
        write(each, where / f"run{i}")
    return [where / f"run{i}" for i in range(len(reports))]


def test_several_teachers_students_are_told_by_their_gain() -> None:
    small, large = compare({"small": SMALL, "large": LARGE}).runs
    assert (small.teacher_model, small.teacher_top1, small.student_model) == ("resnet18", 93.0, "mobilenet_v2")
    assert (large.teacher_model, large.teacher_top1, large.baseline_top1) == ("resnet50", 96.0, 90.0)
    assert (small.distilled, small.distilled_top1, small.distilled_gain) == ("distill", 91.5, 1.5)
    assert (large.distilled_gain, large.result, large.result_gain) == (1.0, "quantize", 0.5)


def test_every_net_is_there_with_its_figures() -> None:
    found = by_label(compare({"small": SMALL, "large": LARGE}))
    assert len(found) == 10
    entry = found["large/quantize"]
    assert (entry.run, entry.net, entry.role, entry.int8) == ("large", "quantize", "result", True)
    assert (entry.bytes, entry.macs, entry.latency_ms, entry.teacher_top1) == (2_400_000, 2_400_000, 0.4, 96.0)
    assert found["large/quantize-ptq"].role == "alternative"
    assert found["large/quantize-ptq"].gain == pytest.approx(-0.5)
    assert [found[f"small/{net}"].gain for net in ("teacher", "baseline", "distill")] == [None, None, 1.5]
    p, n, z = 0.905, 540, 1.959963984540054
    centre, spread = p + z * z / 2 / n, z * math.sqrt(p * (1 - p) / n + (z / 2 / n) ** 2)
    expected = [100 * (centre + sign * spread) / (1 + z * z / n) for sign in (-1, 1)]
    assert [entry.low, entry.high] == pytest.approx(expected)


def test_a_single_run_needs_no_prefix() -> None:
    assert [entry.label for entry in compare({"small": SMALL}).entries] == [
        "teacher", "baseline", "distill", "quantize", "quantize-ptq",
    ]  # fmt: skip


@pytest.mark.parametrize("teachers", [2, 3])
def test_of_several_teachers_in_a_run_the_best_counts(teachers: int) -> None:
    more = [row(f"teacher-{i}", 94.0 + i, 5_000_000, 1.0, "teacher") for i in range(2, teachers + 1)]
    names = "".join(f"- model: {{{each}: {{}}}}\n" for each in ("vgg11", "resnet34", "resnet50")[:teachers])
    several = replace(
        LARGE, rows=(LARGE.rows[0], *more, *LARGE.rows[1:]), pipeline_yaml=f"teacher:\n{names}student: mobilenet_v1\n"
    )
    comparison = compare({"several": several})
    (run,) = comparison.runs
    assert run.teacher_top1 == max(96.0, 94.0 + teachers)
    assert run.teacher_model == " + ".join(["vgg11", "resnet34", "resnet50"][:teachers])
    assert run.student_model == "mobilenet_v1"
    assert [entry.role for entry in comparison.entries].count("teacher") == teachers
    assert by_label(comparison)["teacher-2"].gain is None


@pytest.mark.parametrize("text", ["", "[", "teacher: 1\nstudent: 2", "- a", "teacher: {model: [a]}", "&a [*a]", "\x00"])
def test_a_pipeline_that_tells_no_names_is_no_error(text: str) -> None:
    (run,) = compare({"x": replace(SMALL, pipeline_yaml=text)}).runs
    assert (run.teacher_model, run.student_model) == ("", "")
    assert run.teacher == "teacher"


def test_without_teacher_and_distill_stage() -> None:
    alone = replace(SMALL, teacher=None, rows=(SMALL.rows[1], SMALL.rows[3]))
    comparison = compare({"alone": alone})
    (run,) = comparison.runs
    assert (run.teacher, run.teacher_model, run.teacher_top1, run.distilled, run.distilled_gain) == (
        None, "", None, None, None,
    )  # fmt: skip
    assert run.result_gain == 1.0
    assert "none" in Page(render(comparison)).text


# Fronts


def entries(points: list[tuple[float, float]]) -> tuple[Entry, ...]:
    first = compare({"x": SMALL}).entries[0]
    return tuple(replace(first, net=f"n{i}", bytes=int(cost), top1=top1) for i, (cost, top1) in enumerate(points))


def dominated(one: Entry, other: Entry, slack: float) -> bool:
    """Whether the other is at least as good in both and better in one."""
    as_good = other.top1 >= one.top1 and other.bytes <= slack * one.bytes
    return as_good and (other.top1 > one.top1 or slack * other.bytes < one.bytes)


@pytest.mark.parametrize("slack", [1.0, 1.25])
@pytest.mark.parametrize("seed", range(20))
def test_the_front_is_what_nothing_dominates(seed: int, slack: float) -> None:
    random = np.random.default_rng(seed)
    count = int(random.integers(1, 30))
    found = entries([(int(c), float(a)) for c, a in random.integers(1, 9, (count, 2))])
    expected = {one.net for one in found if not any(dominated(one, other, slack) for other in found)}
    assert {entry.net for entry in front(found, lambda e: e.bytes, lambda e: True, slack)} == expected
    assert expected
    assert front(found, lambda e: e.bytes, lambda e: False) == frozenset()


def test_a_worse_net_that_is_faster_by_the_clocks_noise_is_on_no_front() -> None:
    ptq = replace(SMALL.alternatives[0], latency_ms=Latency(0.398, 0.4, 0.4))
    found = by_label(compare({"x": replace(SMALL, alternatives=(ptq,))}))
    assert found["quantize"].fastest
    assert not found["quantize-ptq"].fastest


def test_both_fronts_over_two_runs() -> None:
    found = by_label(compare({"small": SMALL, "large": LARGE}))
    assert {label for label, entry in found.items() if entry.smallest} == {
        "small/distill", "small/quantize", "large/teacher",
    }  # fmt: skip
    assert {label for label, entry in found.items() if entry.fastest} == {
        "small/distill", "small/quantize", "large/teacher",
    }  # fmt: skip


# What cannot be compared


def test_runs_on_the_same_images_and_machine_give_no_warning() -> None:
    assert compare({"small": SMALL, "large": LARGE}).warnings == ()


def test_other_images_are_said_plainly_and_are_on_no_front() -> None:
    comparison = compare({"elsewhere": OTHER_DATA, "small": SMALL, "large": LARGE})
    assert comparison.warnings == (
        "The runs were not tested on the same images (elsewhere on aaaaaaaaaaaa; small and large on 71d0e2f4c9aa): "
        "their accuracies cannot be compared. Only small and large can be on a front.",
    )
    for entry in comparison.entries:
        assert entry.comparable is (entry.run != "elsewhere")
        assert entry.comparable or not (entry.smallest or entry.fastest)
    assert any(entry.smallest for entry in comparison.entries)


def test_of_two_runs_on_different_images_the_first_given_is_kept() -> None:
    first, second = compare({"a": OTHER_DATA, "b": SMALL}), compare({"b": SMALL, "a": OTHER_DATA})
    assert {entry.run for entry in first.entries if entry.comparable} == {"a"}
    assert {entry.run for entry in second.entries if entry.comparable} == {"b"}


def test_another_machines_milliseconds_are_on_no_front_but_its_bytes_are() -> None:
    comparison = compare({"small": SMALL, "large": LARGE, "slow": OTHER_CPU})
    assert comparison.warnings == (
        "Latency was not measured in the same way (small and large on EPYC, 1 thread, batch 1; slow on Cortex-A72, "
        "4 threads, batch 1): these milliseconds cannot be compared. Only small and large can be on the front of "
        "accuracy against latency.",
    )
    found = by_label(comparison)
    assert found["slow/quantize"].smallest
    assert not found["slow/quantize"].fastest
    assert not found["slow/quantize"].timed
    assert found["small/quantize"].fastest  # which the other machine's would dominate
    assert "0.400 ms *" in Page(render(comparison)).text


@pytest.mark.parametrize(
    "change",
    [
        {"environment": MACHINE | {"threads": 2}},
        {"rows": tuple(replace(each, throughput=8 * each.throughput) for each in SMALL.rows)},
        {"environment": {"data_fingerprint": MACHINE["data_fingerprint"]}},
    ],
)
def test_threads_batch_and_processor_make_latencies_what_they_are(change: dict[str, Any]) -> None:
    comparison = compare({"small": SMALL, "large": LARGE, "other": replace(SMALL, **change)})
    assert [run for run in comparison.runs if run.machine != "EPYC, 1 thread, batch 1"] == [comparison.runs[2]]
    assert len(comparison.warnings) == 1
    assert not any(entry.timed for entry in comparison.entries if entry.run == "other")


def test_a_smoke_run_is_marked_and_on_no_front() -> None:
    comparison = compare({"small": SMALL, "smoke": SMOKE})
    assert comparison.warnings == (
        "Nothing was trained in smoke, or it was a smoke run: accuracies of such a run mean nothing and are on no "
        "front.",
    )
    assert comparison.runs[1].verdict == "untrained"
    assert (comparison.runs[1].distilled_gain, comparison.runs[1].result_gain) == (None, None)
    smoke = [entry for entry in comparison.entries if entry.run == "smoke"]
    assert not any(entry.comparable or entry.smallest or entry.fastest or entry.gain for entry in smoke)
    # Its images are fewer, and so have another fingerprint: that is not worth a second warning.
    fewer = replace(SMOKE, environment=MACHINE | {"data_fingerprint": "71d0e2f4c9aa-64"})
    assert compare({"small": SMALL, "smoke": fewer}).warnings == comparison.warnings


def test_smoke_runs_alone_have_no_front_and_still_a_page() -> None:
    comparison = compare({"a": SMOKE, "b": replace(SMOKE, name="b")})
    assert not any(entry.smallest or entry.fastest for entry in comparison.entries)
    assert "2 runs compared" in Page(render(comparison)).text


# Names


def test_runs_are_called_by_the_shortest_name_that_tells_them_apart() -> None:
    assert [*named({Path("a/x"): SMALL, Path("a/y"): LARGE})] == ["small", "large"]
    assert [*named({Path("a/x"): SMALL, Path("a/y"): SMALL})] == ["x", "y"]
    assert [*named({Path("a/x"): SMALL, Path("b/x"): SMALL})] == ["a/x", "b/x"]


def hostile() -> Comparison:
    rows = tuple(replace(each, net=HOSTILE) if each.net == "quantize" else each for each in LARGE.rows)
    evil = replace(
        LARGE,
        rows=rows,
        environment=MACHINE | {"cpu": HOSTILE, "data_fingerprint": HOSTILE},
        pipeline_yaml=f"teacher: {{model: {json.dumps(HOSTILE)}}}\nstudent: {json.dumps(HOSTILE)}\n",
    )
    return compare({HOSTILE: evil, "small": SMALL, "large": LARGE})


def test_the_page_is_one_file_that_fetches_nothing() -> None:
    text = render(compare({"small": SMALL, "large": LARGE}))
    assert len(text) <= 6_000_000
    page = Page(text)
    assert not [(tag, attrs) for tag, attrs in page.tags if attrs.keys() & {"src", "href", "srcset", "action"}]
    assert [tag for tag, _ in page.tags].count("script") == 3
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    for shown in ("resnet18", "93.00 %", "+1.50", "small/quantize", "91.00 %", "2.40 MB", "0.400 ms", "size, latency"):
        assert shown in page.text


def test_names_are_text_in_the_page() -> None:
    page = Page(render(hostile()))
    assert page.text.count(HOSTILE) >= 5
    assert "img" not in {tag for tag, _ in page.tags}
    assert "<" not in page.scripts[0]
    drawn = json.dumps(figures(hostile()))
    assert "<script" not in drawn
    assert "<img" not in drawn


def test_the_same_runs_give_the_same_page() -> None:
    assert render(compare({"small": SMALL, "large": LARGE})) == render(compare({"small": SMALL, "large": LARGE}))


def test_charts_hold_what_can_be_compared() -> None:
    comparison = compare({"small": SMALL, "large": LARGE, "slow": OTHER_CPU, "elsewhere": OTHER_DATA, "smoke": SMOKE})
    drawn = figures(comparison)
    line, *markers = drawn["accuracy-size"]["data"]
    assert len(markers) == 15
    assert line["line"]["shape"] == "hv"
    best = sorted((entry.bytes / 1e6, entry.top1) for entry in comparison.entries if entry.smallest)
    assert [*zip(line["x"], line["y"], strict=True)] == best
    assert len(drawn["accuracy-latency"]["data"]) == 1 + 10
    labelled = [note["text"] for note in drawn["accuracy-size"]["layout"]["annotations"]]
    assert sorted(labelled) == sorted(entry.net for entry in comparison.entries if entry.smallest)


# The terminal


def printed(comparison: Comparison, **options: Any) -> str:
    out = io.StringIO()
    show(comparison, Console(file=out, highlight=False, **options))
    return out.getvalue()


def test_off_a_terminal_the_table_is_plain_and_whole() -> None:
    text = printed(compare({"small": SMALL, "large": LARGE}))
    assert "\x1b" not in text
    line = next(line for line in text.splitlines() if line.startswith("small/quantize "))
    expected = (
        r"small/quantize +result, int8 +91\.00 % +\d\d\.\d to 9\d\.\d % +\+1\.00 +93\.00 % +600 k +2\.40 M +2\.40 MB"
    )
    assert re.match(expected + r" +0\.400 ms +size, latency", line)


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_a_narrow_terminal_leaves_columns_out_rather_than_fold_names(width: int) -> None:
    text = printed(compare({"small": SMALL, "large": LARGE}), force_terminal=True, width=width, color_system=None)
    lines = [line for line in text.splitlines() if line.startswith(("small/", "large/"))]
    assert len(lines) == 10
    assert all(len(line) <= width for line in lines)
    assert all(re.search(r"\d\.\d\d % .* ms", line) for line in lines)


def test_names_write_nothing_to_a_terminal_but_themselves() -> None:
    evil = "\x1b[2J\x1b]0;x\x07[red]a[/red]\nsmall/quantize\u202e"
    text = printed(compare({evil: SMALL, "large": LARGE}), force_terminal=True, width=400, color_system=None)
    assert not set(text) & {"\x1b", "\x07", "\u202e"}
    assert "[red]a[/red]" in text
    assert not [line for line in text.splitlines() if line.startswith("small/quantize")]


# The verb


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


@pytest.fixture
def compress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Ended]:
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["compress", *map(str, words)])
        with as_it_was(), pytest.raises(SystemExit) as caught:
            cli.main()
        assert isinstance(caught.value.code, int)
        return Ended(caught.value.code, *capsys.readouterr())

    return run


def test_the_verb_prints_a_table_and_writes_a_page(tmp_path: Path) -> None:
    folders(tmp_path, SMALL, LARGE)
    out = done(tmp_path, "compare", "run0", "run1")
    assert "small/distill" in out
    assert out.endswith("page: compare.html\n")
    page = Page((tmp_path / "compare.html").read_text(encoding="utf-8"))
    assert "large/quantize" in page.text
    done(tmp_path, "compare", "run0", "run1", "--out", "new/page.html")
    assert (tmp_path / "new/page.html").read_bytes() == (tmp_path / "compare.html").read_bytes()
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["page.html"]


def test_json_is_all_that_is_printed(compress: Callable[..., Ended], tmp_path: Path) -> None:
    folders(tmp_path, SMALL, OTHER_DATA)
    found = compress("compare", "run0", "run1", "--json", "--out", "x.html")
    assert (found.code, found.err) == (0, "page: x.html\n")
    content = json.loads(found.out)
    assert content == json.loads(as_json(compare({"small": SMALL, "elsewhere": OTHER_DATA})))
    assert set(content) == {"runs", "entries", "warnings"}
    assert content["entries"][2]["gain"] == 1.5
    assert content["runs"][0]["teacher_model"] == "resnet18"


def damaged(where: Path, change: Callable[[str], str]) -> None:
    write(SMALL, where)
    (where / "report.json").write_text(change((where / "report.json").read_text()))


def test_bad_folders_are_named_all_at_once(compress: Callable[..., Ended], tmp_path: Path) -> None:
    folders(tmp_path, SMALL)
    (tmp_path / "empty").mkdir()
    found = compress("compare", "run0", "nowhere", "empty", "./run0")
    assert (found.code, found.out) == (2, "")
    assert found.err.splitlines() == [
        "error: nowhere is no run folder",
        "empty has no report.json: give the folder of a finished run",
        "run0 is given twice",
    ]
    assert not (tmp_path / "compare.html").exists()


def nan(text: str) -> str:
    return re.sub(r'"top1_onnx": [\d.]+', '"top1_onnx": NaN', text, count=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:300], "run/report.json is damaged or no report: the file: Invalid JSON"),
        (lambda text: "[]", "run/report.json is damaged or no report"),
        (lambda text: text.replace('"pass"', '"fine"'), "verdict: should be 'pass', 'fail' or 'untrained'"),
        (nan, "run/report.json is damaged: the accuracy or speed of teacher is no such number."),
        (lambda text: re.sub(r'"top1_onnx": [\d.]+', '"top1_onnx": 101', text), "of teacher is no such number"),
    ],
)
def test_a_damaged_report(change: Any, message: str, compress: Callable[..., Ended], tmp_path: Path) -> None:
    damaged(tmp_path / "run", change)
    found = compress("compare", "run")
    assert found.code == 4
    assert message in found.err
    assert "Traceback" not in found.err


@pytest.mark.parametrize(
    ("out", "code", "message"),
    [
        ("report.json", 2, "error: --out report.json: should be a file that ends in .html"),
        ("run0", 2, "error: --out run0: should be a file that ends in .html"),
        ("run0/report.json/x.html", 6, "error: run0/report.json/x.html cannot be written: "),
    ],
)
def test_a_page_that_cannot_be_written(
    out: str, code: int, message: str, compress: Callable[..., Ended], tmp_path: Path
) -> None:
    folders(tmp_path, SMALL)
    found = compress("compare", "run0", "--out", out)
    assert (found.code, found.out) == (code, "")
    assert found.err.startswith(message)


def test_no_folder_at_all(compress: Callable[..., Ended]) -> None:
    found = compress("compare")
    assert found.code == 2
    assert found.err.startswith("error: Missing argument 'RUN...'.")


def test_a_link_to_a_run_is_that_run(tmp_path: Path) -> None:
    folders(tmp_path, SMALL)
    (tmp_path / "again").symlink_to(tmp_path / "run0")
    with chdir(tmp_path), pytest.raises(Exception, match="again is given twice"):
        compare_runs([Path("run0"), Path("again")])


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("name", ["two", "hostile"])
def test_a_browser_draws_both_charts_without_complaint(name: str, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text(render(hostile() if name == "hostile" else compare({"small": SMALL, "large": LARGE})))
    options = "--headless --no-sandbox --disable-gpu --disable-background-networking --virtual-time-budget=5000"
    command = [str(BROWSER), *options.split(), "--enable-logging=stderr", f"--user-data-dir={tmp_path}", "--dump-dom"]
    ended = subprocess.run([*command, file.as_uri()], capture_output=True, text=True, timeout=60, check=True)
    assert "CONSOLE" not in ended.stderr
    drawn = re.sub(r"<script.*?</script>", "", ended.stdout, flags=re.DOTALL)
    ids = set(re.findall(r'<div class="chart js-plotly-plot" id="([\w-]+)"', drawn))
    assert ids == {"accuracy-size", "accuracy-latency"}
