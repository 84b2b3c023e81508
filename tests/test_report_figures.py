"""What a report claims against its own figures: noise, intervals, axes, labels, and sentences that stand alone."""

import re
from dataclasses import replace

import numpy as np
import pytest
from made_reports import BASELINE, CORRUPTED, DETAILED, FULL, PRUNED, QUANTIZED, RICH, TEACHER, VARIANTS, row
from page import Page

from compress.measure.confusion import changes
from compress.report import (
    Curve,
    Limit,
    Report,
    bars,
    charts,
    headlines,
    html,
    labels,
    markdown,
    model_card,
    plots,
    tables,
    timing,
    waterfall,
    wording,
)  # fmt: skip
from compress.report.comparison import compare
from compress.report.comparison_page import nets, render
from compress.row import Control, Latency

OTHER_DATA = FULL.environment | {"data_fingerprint": "aaaaaaaaaaaa"}


def timed(ms: float, control: Control | None) -> Report:
    """A run whose result takes so long, its baseline 0.712 ms."""
    result = replace(QUANTIZED, latency_ms=Latency(ms, ms, ms))
    return replace(FULL, rows=(TEACHER, BASELINE, result), control=control)


@pytest.mark.parametrize(
    ("ms", "control", "differ"),
    [
        (0.55, None, True),
        (0.55, Control("quantize", 1.0, 0.25), True),  # 1.29 times as fast
        (0.55, Control("quantize", 1.0, 0.44), False),
        (0.55, Control("quantize", 1.35, 0.1), False),  # one file differs from itself by more
        (0.55, Control("quantize", 1 / 1.35, 0.1), False),
        (0.95, Control("quantize", 1.0, 0.40), False),
        (0.95, Control("quantize", 1.0, 0.30), True),
    ],
)
def test_no_part_of_a_report_claims_what_the_control_denies(ms: float, control: Control | None, differ: bool) -> None:
    report = timed(ms, control)
    card = headlines.headlines(report)[1]
    assert bool(re.search("faster|slower", wording.sentence(report))) is differ
    assert ("as fast" in wording.sentence(report)) is not differ
    assert (card.word in ("faster", "slower")) is differ
    assert (card.figure, card.word[:12]) == ("≈ 1×", "within noise") or differ
    line = next(cells for cells in timing.table(report).body if cells[0] == "quantize")
    assert (line[4] != "the same") is differ
    latency = waterfall.waterfalls(report)[-1]
    assert (latency.steps[1].kind != "same") is differ
    slower = [text for text in wording.warnings(report) if text.startswith("int8 is slower")]
    assert not slower or not timing.same(report, ms, TEACHER.latency_ms.p50)


def test_the_control_never_contradicts_itself() -> None:
    text = timing.control(replace(FULL, control=Control("quantize", 1.223, 0.167)))
    assert "differ by 22.3 %. Differences up to 22.3 % between two files mean nothing here" in text
    assert "noisy machine (22 %)" in text
    text = timing.control(replace(FULL, control=Control("quantize", 0.8, 0.167)))
    assert "differ by 25.0 %. Differences up to 25.0 %" in text


@pytest.mark.parametrize(("ms", "said"), [(0.69, "3 % faster"), (0.74, "4 % slower"), (0.60, "1.2× faster")])
def test_no_difference_is_called_1_0_times(ms: float, said: str) -> None:
    assert [cells[4] for cells in timing.table(timed(ms, None)).body if cells[0] == "quantize"] == [said]


def test_missed_limits_in_one_sentence_can_be_told_apart() -> None:
    keys = ("max_accuracy_drop", "max_bytes", "max_bytes_ratio", "max_macs_ratio", "max_latency_ratio")
    report = replace(FULL, verdict="fail", budget=tuple(Limit(key, 1, 2, False) for key in keys))
    assert wording.judgement(report) == (
        "5 of the 5 limits of the budget are missed: accuracy, file size, file size against the baseline, MACs against "
        "the baseline and latency against the baseline."
    )
    assert set(wording.MISSED) == set(wording.LIMITS) == set(keys)


@pytest.mark.parametrize(("curves", "said"), [((), "Nothing was trained"), (FULL.curves, "no more than a trial")])
def test_a_smoke_run_is_not_said_to_have_trained_nothing(curves: tuple[Curve, ...], said: str) -> None:
    report = replace(RICH, verdict="untrained", curves=curves, robustness=CORRUPTED)
    assert said in wording.judgement(report)
    assert said in wording.robustness(report)
    text = markdown.render(report, ())
    assert "chance" not in text.split("## What changed for the user")[1].split("##")[0]


def wilson(top1: float, samples: int) -> tuple[float, float]:
    """The roots of (p - q)^2 = z^2 q (1 - q) / n in q, per cent (Wilson 1927)."""
    p, z2 = top1 / 100, 1.959963984540054**2
    low, high = np.sort(np.roots([1 + z2 / samples, -(2 * p + z2 / samples), p * p]).real)
    return 100 * float(low), 100 * float(high)


def test_intervals_are_those_of_the_accuracy_beside_them() -> None:
    odd = replace(QUANTIZED, top1=99.5, top1_low=99.0, top1_high=99.9, top1_onnx=90.0)
    report = replace(FULL, rows=(TEACHER, BASELINE, odd), alternatives=())
    low, high = wilson(90.0, odd.samples)
    for scatter in (charts.accuracy_size(report), charts.accuracy_latency(report)):
        assert (scatter.points[-1].low, scatter.points[-1].high) == pytest.approx((low, high))
    assert f"| 90.00 % | {low:.1f} to {high:.1f} % |" in model_card.render(report)
    (entry,) = (each for each in compare({"a": report}).entries if each.role == "result")
    assert (entry.low, entry.high) == pytest.approx((low, high))


def test_corrupted_accuracies_come_with_how_far_they_are_known() -> None:
    report = replace(FULL, robustness=CORRUPTED)
    values = [value for line in CORRUPTED for value in (line.noise, line.blur) if value is not None]
    widest = max(high - low for low, high in (wilson(value, 540) for value in values)) / 2
    assert f"known to about ±{widest:.1f} points at worst" in wording.severity(report)


def test_an_axis_that_does_not_begin_at_0_says_so() -> None:
    for fall in waterfall.waterfalls(FULL):
        assert fall.x_title.endswith("not from 0") is (fall.x_range[0] > 0) is (fall.key == "accuracy")
    low = replace(FULL, rows=(replace(BASELINE, top1_onnx=0.1), replace(QUANTIZED, top1_onnx=40.0)), teacher=None)
    assert waterfall.waterfalls(low)[0].x_title == "Top-1 of the file (%)"


@pytest.mark.parametrize("epochs", [1, 2, 40])
def test_an_axis_of_epochs_begins_where_training_does(epochs: int) -> None:
    records = tuple({"epoch": e, "loss": 1 / e, "accuracy": 50.0, "val_accuracy": 50.0} for e in range(1, epochs + 1))
    figures = plots.figures(replace(FULL, curves=(Curve("distill", records),)))
    for key in ("curves-loss", "curves-accuracy"):
        low, high = figures[key]["layout"]["xaxis"]["range"]
        assert 0 < low < 1
        assert epochs < high <= epochs + 1
        assert figures[key]["data"][0]["marker"]["size"] == (8 if epochs == 1 else 4)


def test_of_many_classes_only_those_are_drawn_that_changed() -> None:
    truth = np.arange(100).repeat(2)
    after = truth.copy()
    after[[0, 10, 11]] = 99
    found = changes(("a", "b"), truth, truth, after, [str(k) for k in range(100)])
    assert [each.name for each in bars.shown_classes(found)] == ["5", "0"]
    page = Page(html.render(replace(FULL, changes=found))).text
    assert "The 2 classes that changed most" in page
    same = replace(FULL, changes=changes(("a", "b"), truth, truth, truth, [str(k) for k in range(100)]))
    assert "classes" not in plots.figures(same)
    assert 'id="classes"' not in html.render(same)


def crossings(scatter: charts.Scatter, texts: list[str], width: float) -> list[tuple[str, str]]:
    """Which label's line runs through which other label, found by walking along it."""
    found = []
    (left, right), (low, high) = np.log(scatter.x_range), scatter.y_range
    at = [
        ((np.log(p.x) - left) / (right - left) * width, (high - p.y) / (high - low) * labels.PLOT_HEIGHT)
        for p in scatter.points
    ]
    for i, ((x, y), (dx, dy)) in enumerate(zip(at, scatter.offsets, strict=True)):
        if labels.touches((dx, dy)):
            continue
        for j, ((ox, oy), (ex, ey)) in enumerate(zip(at, scatter.offsets, strict=True)):
            half = labels.LETTER * len(texts[j]) / 2 - 1
            walk = ((x + dx * t - ox - ex, y + dy * t - oy - ey) for t in np.linspace(0, 1, 200))
            if i != j and any(abs(across) < half and abs(down) < 6 for across, down in walk):
                found.append((texts[i], texts[j]))
    return found


CROWDED = (
    row("teacher", 99.07, 93_971_000, 5.28), row("baseline", 99.44, 8_900_000, 0.706),
    row("distill", 99.26, 8_900_000, 0.699), row("prune", 99.07, 3_300_000, 0.285),
    row("quantize", 98.70, 1_020_000, 0.221, int8=True),
)  # fmt: skip


@pytest.mark.parametrize("width", labels.PLOT_WIDTHS)
@pytest.mark.parametrize("rows", [CROWDED, FULL.rows, (TEACHER, BASELINE, PRUNED, QUANTIZED)])
def test_no_line_to_a_label_runs_through_another(rows, width: float) -> None:
    beside = replace(rows[-1], net="quantize-ptq", stage="ptq", top1_onnx=98.89)
    report = replace(FULL, rows=rows, alternatives=(beside,))
    for scatter in (charts.accuracy_size(report), charts.accuracy_latency(report)):
        assert crossings(scatter, [point.name for point in scatter.points], width) == []


def test_the_count_of_crossings_counts() -> None:
    scatter = charts.accuracy_size(FULL)
    through = tuple((60.0, 0.0) if i else (-300.0, 1.0) for i in range(len(scatter.points)))
    level = tuple(replace(point, y=99.0) for point in scatter.points)
    texts = [point.name for point in scatter.points]
    assert crossings(replace(scatter, points=level, offsets=through), texts, 440) != []


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("the teacher is weak", "The teacher is weak."), ("made-up images stand in", "Made-up images stand in."),
        ("quantize keeps a layer", "quantize keeps a layer."), ("prune: Too narrow.", "prune: Too narrow."),
        ("models/a.onnx is slow (2 %)", "models/a.onnx is slow (2 %)."), ("int8 is slow", "int8 is slow."), ("", ""),
        ("Ask why?", "Ask why?"),
    ],
)  # fmt: skip
def test_warnings_and_notes_are_sentences(text: str, shown: str) -> None:
    report = replace(FULL, warnings=(text,), notes=(text,))
    assert wording.warnings(report) == wording.notes(report) == (shown,)


def test_what_took_no_time_of_its_own_has_none() -> None:
    assert tables.figures(replace(QUANTIZED, seconds=0.0))[-1] == "–"


def test_tables_of_the_text_say_what_they_are() -> None:
    text = markdown.render(DETAILED["rich"], ())
    assert "Mistakes made more often, in test images:\n\n| Class |" in text
    assert "Milliseconds of one run: EPYC, 1 thread, batch 1:\n\n| Net |" in text
    assert "What ONNX Runtime computes in float:\n\n| Name |" in text


def test_a_figure_stays_with_its_unit() -> None:
    page = html.render(RICH).split("<main>")[1].split("</main>")[0]
    for shown in ("0.311\u00a0ms", "1.13\u00a0MB", "98.33\u00a0%", "44.1\u00a0dB", "1\u00a0min 25\u00a0s"):
        assert shown in page
    assert not re.search(r"\d (?:ms|MB|kB|dB)\b", re.sub(r"<pre.*?</pre>", "", page, flags=re.DOTALL))


def test_a_comparison_shows_colours_of_what_it_draws() -> None:
    page = render(compare({"one": FULL, "two": FULL, "three": replace(FULL, environment=OTHER_DATA)}))
    legend = page.split('<p class="legend" aria-hidden="true">')[1].split("</p>")[0]
    assert ("one" in legend, "two" in legend, "three" in legend) == (True, True, False)
    equal = replace(VARIANTS["two rows"], rows=(BASELINE, replace(QUANTIZED, top1_onnx=BASELINE.top1_onnx)))
    assert [line[4] for line in nets(compare({"one": equal})).body] == ["–", "±0.00"]
