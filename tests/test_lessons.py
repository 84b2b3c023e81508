"""What a report says of its teachers, from the figures alone."""

from compress.row import Latency, Row
from compress.running.conclusion import best_teacher, lessons


def row(net: str, top1: float, params: int = 1000, error: float = 1.0) -> Row:
    return Row(
        net=net, stage=net.split("-")[0], top1=top1, top1_low=top1 - error, top1_high=top1 + error, top5=100.0,
        top1_onnx=top1, agreement=100.0, samples=500, params=params, macs=1, flops=2, bytes=1,
        latency_ms=Latency(1.0, 1.0, 1.0), throughput=1.0, seconds=1.0, onnx="models/x.onnx", int8=False,
    )  # fmt: skip


def said(*teachers: Row, baseline: float = 90.0, distilled: float | None = 91.0) -> list[str]:
    student = None if distilled is None else row("distill", distilled)
    return list(lessons(teachers, row("baseline", baseline), student))


def test_a_good_teacher_whose_student_gains_is_not_spoken_of():
    assert said(row("teacher", 95.0, params=9000)) == []


def test_a_teacher_that_is_no_better_is_named():
    found = said(row("teacher", 95.0), row("teacher-2", 90.0))
    assert found == [
        "the teacher-2 (90.0 %) is no better than the baseline (90.0 %), so there is little to learn from it"
    ]


def test_a_teacher_far_above_a_student_that_gains_nothing_is_a_gap():
    (found,) = said(row("teacher", 95.0, params=9000), distilled=90.0)
    assert found.startswith("the teacher is 5.0 points better than the baseline, and yet the distilled net (90.0 %)")
    assert "too wide for a student of 9 times fewer parameters" in found


def test_a_gap_is_wide_only_beyond_chance_and_size():
    assert said(row("teacher", 95.0, params=3900), distilled=90.0) == []
    assert said(row("teacher", 91.9, params=9000), distilled=90.0) == []  # the intervals overlap
    assert said(row("teacher", 95.0, params=9000), distilled=90.1) == []
    assert said(row("teacher", 95.0, params=9000), distilled=None) == []


def test_the_best_of_several_teachers_counts():
    teachers = [row("teacher", 93.0), row("teacher-2", 95.0), row("teacher-3", 95.0)]
    assert best_teacher(teachers) == "teacher-2"
    assert best_teacher([]) is None
