import dataclasses

import pytest

from compress.pipeline import Budget
from compress.row import Latency, Row
from compress.running.verdict import at_chance, judge_budget, judge_run

BASELINE = Row(
    net="baseline",
    stage="train",
    top1=97.0,
    top1_low=95.0,
    top1_high=98.0,
    top5=100.0,
    top1_onnx=97.0,
    agreement=100.0,
    samples=540,
    params=1000,
    macs=2000,
    flops=4000,
    bytes=8000,
    latency_ms=Latency(4.0, 5.0, 6.0),
    throughput=250.0,
    seconds=1.0,
    onnx="models/baseline.onnx",
    int8=False,
)
RESULT = dataclasses.replace(
    BASELINE,
    net="quantize",
    top1=99.0,
    top1_onnx=96.0,
    macs=1000,
    bytes=1000,
    latency_ms=Latency(1.0, 9.0, 9.0),
    int8=True,
)


@pytest.mark.parametrize(
    ("limit", "kept", "missed", "measured"),
    [
        ("max_accuracy_drop", 1.0, 0.99, 1.0),  # of the file's accuracy, not of PyTorch's
        ("max_bytes", 1000, 999, 1000),
        ("max_bytes_ratio", 0.125, 0.12, 0.125),
        ("max_macs_ratio", 0.5, 0.49, 0.5),
        ("max_latency_ratio", 0.25, 0.24, 0.25),  # of the medians
    ],
)
def test_each_limit_is_held_against_the_baseline(limit, kept, missed, measured):
    for value, ok in ((kept, True), (missed, False)):
        (line,) = judge_budget(Budget(**{limit: value}), RESULT, BASELINE)
        assert (line.limit, line.value, line.measured, line.ok) == (limit, value, measured, ok)


def test_limits_stand_in_the_order_of_the_file_and_only_those_given():
    lines = judge_budget(Budget(max_macs_ratio=0.6, max_accuracy_drop=2), RESULT, BASELINE)
    assert [line.limit for line in lines] == ["max_accuracy_drop", "max_macs_ratio"]
    assert judge_budget(Budget(), RESULT, BASELINE) == ()


def test_rounding_of_percentages_misses_no_limit():
    result, baseline = (dataclasses.replace(BASELINE, top1_onnx=100 * share) for share in (0.974, 0.984))
    (line,) = judge_budget(Budget(max_accuracy_drop=1.0), result, baseline)
    assert line.measured > 1.0
    assert line.ok


def test_a_net_without_macs_has_a_ratio_of_one():
    (line,) = judge_budget(Budget(max_macs_ratio=1), RESULT, dataclasses.replace(BASELINE, macs=0))
    assert line.measured == 1.0


def test_chance_is_what_the_interval_does_not_exclude():
    # Wilson's lower bounds for 15 and 16 of 100 are 9.31 and 10.10 %.
    assert at_chance(dataclasses.replace(RESULT, top1_onnx=15.0, samples=100), classes=10)
    assert not at_chance(dataclasses.replace(RESULT, top1_onnx=16.0, samples=100), classes=10)


def test_the_verdict():
    met = judge_budget(Budget(max_bytes=1000), RESULT, BASELINE)
    missed = judge_budget(Budget(max_bytes=999), RESULT, BASELINE)
    guessing = dataclasses.replace(RESULT, top1_onnx=15.0, samples=100)
    assert judge_run(met, RESULT, 10, trained=True) == "pass"
    assert judge_run(missed, RESULT, 10, trained=True) == "fail"
    assert judge_run(met, guessing, 10, trained=True) == "fail"
    assert judge_run(missed, guessing, 10, trained=False) == "untrained"
