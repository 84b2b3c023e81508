"""The losses on logits, each beside its paper's equation in NumPy's float64."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from compress.config import Config, OneOf, described
from compress.losses import LOSSES, Batch, Outputs
from compress.losses.dist import DIST
from compress.losses.dkd import DKD
from compress.losses.kd import KD
from compress.losses.l2 import L2
from compress.losses.logit_standardization import LogitStandardization, z_scores
from compress.losses.multi_level import MultiLevel

Array = np.ndarray
CLASSES, COUNT = 7, 5


def drawn(seed: int, count: int = COUNT, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(count, CLASSES, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def a_batch(student: torch.Tensor, *teachers: torch.Tensor, labels=None, shares=None) -> Batch:
    rows = torch.arange(len(student))
    labels = rows % CLASSES if labels is None else labels
    return Batch(Outputs(student), tuple(map(Outputs, teachers)), labels, rows, 0, shares=shares)


# The papers' equations, for one teacher: what each image, and what the batch as a whole, adds to the loss.


def softmax(logits: Array) -> Array:
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def divergences(p: Array, q: Array) -> Array:
    """KL(p ‖ q) of each row."""
    return (p * np.log(p / q)).sum(1)


def squared(student: Array, teacher: Array, labels: Array) -> tuple[Array, float]:
    return ((student - teacher) ** 2).sum(1) / 2, 0.0


def decoupled(student: Array, teacher: Array, labels: Array, alpha=1.0, beta=8.0, t=4.0) -> tuple[Array, float]:
    q, p = softmax(student / t), softmax(teacher / t)
    values = []
    for i, k in enumerate(labels):
        yes_or_no = [np.array([[x[i, k], 1 - x[i, k]]]) for x in (p, q)]
        others = [np.delete(x[i], k)[None] / (1 - x[i, k]) for x in (p, q)]
        values.append(alpha * divergences(*yes_or_no)[0] + beta * divergences(*others)[0])
    return t**2 * np.array(values), 0.0


def related(student: Array, teacher: Array, labels: Array, beta=2.0, gamma=2.0, t=4.0) -> tuple[Array, float]:
    q, p = softmax(student / t), softmax(teacher / t)
    inter = np.array([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(q, p, strict=True)])
    intra = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(q.T, p.T, strict=True)])
    return t**2 * beta * inter, t**2 * gamma * intra


def scored(logits: Array) -> Array:
    return (logits - logits.mean(1, keepdims=True)) / logits.std(1, keepdims=True)


def standardized(student: Array, teacher: Array, labels: Array, t=2.0) -> tuple[Array, float]:
    return t**2 * divergences(softmax(scored(teacher) / t), softmax(scored(student) / t)), 0.0


def multi_level(student: Array, teacher: Array, labels: Array, seen=lambda z: z) -> tuple[Array, float]:
    images, batch = np.zeros(len(student)), 0.0
    for t in (2, 3, 4, 5, 6):
        images += t**2 * divergences(softmax(seen(teacher) / t), softmax(seen(student) / t))
        q, p = softmax(student / t), softmax(teacher / t)
        for a, b in itertools.product(range(len(q)), repeat=2):
            batch += (p[a] @ p[b] - q[a] @ q[b]) ** 2 / len(q)
        for a, b in itertools.product(range(q.shape[1]), repeat=2):
            batch += (p[:, a] @ p[:, b] - q[:, a] @ q[:, b]) ** 2 / q.shape[1]
    return images, batch


@dataclass(frozen=True)
class Case:
    loss: Config
    equation: Callable[[Array, Array, Array], tuple[Array, float]]


CASES = {
    "l2": Case(L2(), squared),
    "dkd": Case(DKD(), decoupled),
    "dkd, another": Case(
        DKD(alpha=0.5, beta=2, temperature=1.5), lambda s, t, y: decoupled(s, t, y, alpha=0.5, beta=2, t=1.5)
    ),
    "dist": Case(DIST(), related),
    "dist, another": Case(DIST(beta=1, gamma=3, temperature=1), lambda s, t, y: related(s, t, y, beta=1, gamma=3, t=1)),
    "logit_standardization": Case(LogitStandardization(), standardized),
    "logit_standardization, another": Case(
        LogitStandardization(temperature=5), lambda s, t, y: standardized(s, t, y, t=5)
    ),
    "multi_level": Case(MultiLevel(), multi_level),
    "multi_level, standardized": Case(MultiLevel(standardized=True), lambda s, t, y: multi_level(s, t, y, seen=scored)),
}
every = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_value_is_that_of_the_papers_equation(case, dtype):
    student, teacher, labels = drawn(1), drawn(2), torch.tensor([0, 6, 3, 3, 1])
    images, batch = case.equation(student.numpy(), teacher.numpy(), labels.numpy())
    value = case.loss(a_batch(student.to(dtype), teacher.to(dtype), labels=labels))
    assert value.item() == pytest.approx(images.mean() + batch, rel=1e-12 if dtype == torch.float64 else 2e-4)


@every
def test_several_teachers_count_by_their_shares(case):
    student, teachers, labels = drawn(1), [drawn(2), drawn(3), drawn(4)], torch.tensor([0, 6, 3, 3, 1])
    terms = [case.equation(student.numpy(), teacher.numpy(), labels.numpy()) for teacher in teachers]
    alike = np.mean([images.mean() + batch for images, batch in terms])
    assert case.loss(a_batch(student, *teachers, labels=labels)).item() == pytest.approx(alike)
    shares = torch.rand(3, COUNT, generator=torch.Generator().manual_seed(5)) + 0.1
    shares = shares / shares.sum(0)
    given = [shares[i].double().numpy() for i in range(3)]
    expected = sum((s * images).mean() + s.mean() * batch for s, (images, batch) in zip(given, terms, strict=True))
    value = case.loss(a_batch(student, *teachers, labels=labels, shares=shares))
    assert value.item() == pytest.approx(expected, rel=1e-6)


@every
@pytest.mark.parametrize("right", [True, False], ids=["teacher right", "teacher wrong"])
def test_the_gradient_is_that_of_the_value(case, right):
    student, teacher = drawn(1, count=3).requires_grad_(), drawn(2, count=3)
    labels = teacher.argmax(1) if right else teacher.argmin(1)
    assert torch.autograd.gradcheck(lambda z: case.loss(a_batch(z, teacher, labels=labels)), (student,))


def apart(student: float, teacher: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits with one class far above the others, another for the teacher."""
    columns = torch.arange(COUNT) % CLASSES
    one, other = (torch.nn.functional.one_hot(c % CLASSES, CLASSES).float() for c in (columns, columns + 1))
    return student * one, teacher * other


constant = torch.zeros(COUNT, CLASSES)
some = drawn(8).float()
EXTREMES = {
    "far apart": apart(1e4, 1e4),
    "far apart the other way": apart(-1e4, 1e4),
    "a sure teacher": apart(1.0, 1e4),
    "a sure student": apart(1e4, 1.0),
    "both sure of the same": (apart(1e4, 0)[0], apart(1e4, 0)[0]),
    "equal": (some, some),
    "equal images": (some[:1].expand(COUNT, -1), some[1:2].expand(COUNT, -1)),
    "equal images, the same": (some[:1].expand(COUNT, -1), some[:1].expand(COUNT, -1)),
    "a constant student": (constant, some),
    "a constant teacher": (some, constant),
    "both constant": (constant, constant),
    "a single image": (some[:1], some[1:2]),
}


@every
@pytest.mark.parametrize("extreme", EXTREMES.values(), ids=EXTREMES)
def test_values_and_gradients_are_finite_whatever_the_logits(case, extreme):
    student = extreme[0].clone().requires_grad_()
    teacher = extreme[1].clone().requires_grad_()
    for labels in (extreme[1].argmax(1), extreme[1].argmin(1)):
        value = case.loss(a_batch(student, teacher, labels=labels))
        value.backward()
        assert torch.isfinite(value)
        assert torch.isfinite(student.grad).all()
        assert student.grad.abs().max() < 1e5
        assert teacher.grad is None


@every
def test_where_the_student_equals_the_teacher_there_is_nothing_to_learn(case):
    student, teacher = drawn(1).requires_grad_(), drawn(1)
    value = case.loss(a_batch(student, teacher))
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-9)
    np.testing.assert_allclose(student.grad.numpy(), 0, atol=1e-9)


@every
def test_a_few_steps_lead_to_the_teacher(case):
    student, batch = drawn(1).requires_grad_(), a_batch(drawn(1), drawn(2))
    optimizer = torch.optim.Adam([student], lr=0.1)
    values = []
    for _ in range(200):
        optimizer.zero_grad()
        values.append(case.loss(replace(batch, student=Outputs(student))))
        values[-1].backward()
        optimizer.step()
    assert values[-1] < 0.05 * values[0]


@pytest.mark.parametrize("true", [0, 3])
def test_soft_labels_are_the_two_parts_of_dkd_the_second_times_what_the_teacher_leaves_over(true):
    """Zhao et al. 2022, eq. 6: KD = TCKD + (1 - p(true class)) · NCKD, for each image."""
    student, teacher = drawn(1, count=1), drawn(2, count=1)
    batch = a_batch(student, teacher, labels=torch.tensor([true]))
    first, second = (DKD(alpha=a, beta=b, temperature=4)(batch) for a, b in ((1, 0), (0, 1)))
    left = 1 - softmax(teacher.numpy() / 4)[0, true]
    assert (first + left * second).item() == pytest.approx(KD(temperature=4)(batch).item())


def test_dkd_teaches_the_other_classes_of_a_teacher_that_is_sure():
    """Where probabilities are rounded, p(true class) = 1 in float32, their logarithms still are not."""
    student, teacher = drawn(1).float(), drawn(2).float()
    labels = torch.tensor([0, 1, 2, 3, 4])
    teacher[range(COUNT), labels] += 200.0
    assert (teacher / 4).softmax(1)[range(COUNT), labels].eq(1).all()
    others = [
        divergences(softmax(np.delete(t, k)[None] / 4), softmax(np.delete(s, k)[None] / 4))[0]
        for t, s, k in zip(teacher.double().numpy(), student.double().numpy(), labels.numpy(), strict=True)
    ]
    value = DKD(alpha=0, beta=1)(a_batch(student, teacher, labels=labels))
    assert value.item() == pytest.approx(16 * np.mean(others), rel=1e-4)


def test_dkd_without_labels_says_so():
    with pytest.raises(AssertionError, match="needs labels"):
        DKD()(replace(a_batch(drawn(1), drawn(2)), labels=None))


def test_a_student_of_another_range_has_learnt_all_there_is():
    teacher = drawn(2)
    batch = a_batch(0.2 * teacher + 5, teacher)
    assert LogitStandardization()(batch).item() == pytest.approx(0, abs=1e-9)
    # At a high temperature probabilities are linear in the logits, and a correlation of 1 is all that DIST wants.
    assert DIST(beta=1, gamma=0, temperature=100)(batch).item() / 100**2 < 1e-3
    assert KD()(batch).item() > 0.5


def test_z_scores_of_logits_that_hardly_differ_stay_small():
    logits = 1e-4 * drawn(1)
    expected = (logits - logits.mean(1, keepdim=True)) / 0.01
    torch.testing.assert_close(z_scores(logits), expected)


def test_dist_of_a_batch_of_one_image_counts_its_classes_as_unrelated():
    student, teacher = drawn(1, count=1), drawn(2, count=1)
    loss = DIST(beta=0, gamma=1, temperature=4)
    assert loss(a_batch(student, teacher)).item() == pytest.approx(16)


def test_multi_level_grows_with_the_batch_as_its_paper_has_it():
    """The same images k times over: instances as before, the batch's term k times, the classes' k² times."""
    student, teacher = drawn(1), drawn(2)
    images, _ = multi_level(student.numpy(), teacher.numpy(), np.arange(COUNT))
    once, thrice = (
        MultiLevel()(a_batch(student.repeat(k, 1), teacher.repeat(k, 1))).item() - images.mean() for k in (1, 3)
    )
    batch = classes = 0.0
    for t in (2, 3, 4, 5, 6):
        q, p = softmax(student.numpy() / t), softmax(teacher.numpy() / t)
        batch += ((p @ p.T - q @ q.T) ** 2).sum() / COUNT
        classes += ((p.T @ p - q.T @ q) ** 2).sum() / CLASSES
    assert once == pytest.approx(batch + classes)
    assert thrice == pytest.approx(3 * batch + 9 * classes)


DEFAULTS = [
    (L2, {"weight": 0.1}),
    (DKD, {"alpha": 1, "beta": 8, "temperature": 4, "weight": 1}),
    (DIST, {"beta": 2, "gamma": 2, "temperature": 4, "weight": 1}),
    (LogitStandardization, {"temperature": 2, "weight": 9}),
    (MultiLevel, {"temperatures": (2, 3, 4, 5, 6), "standardized": False, "weight": 0.9}),
]


@pytest.mark.parametrize(("loss", "fields"), DEFAULTS)
def test_defaults_are_the_papers(loss, fields):
    assert loss().model_dump() == fields


ERRORS = [
    ({"kd": {"temperature": 0}}, "kd.temperature: should be greater than 0, not 0"),
    ({"dkd": {"temperature": 0}}, "dkd.temperature: should be greater than 0, not 0"),
    ({"dkd": {"beta": -8}}, "dkd.beta: should be greater than or equal to 0, not -8"),
    ({"dist": {"temperature": 0}}, "dist.temperature: should be greater than 0, not 0"),
    (
        {"logit_standardization": {"temperature": 0}},
        "logit_standardization.temperature: should be greater than 0, not 0",
    ),
    ({"multi_level": {"temperatures": [4, 0]}}, "multi_level.temperatures.1: should be greater than 0, not 0"),
    ({"multi_level": {"temperature": 4}}, "multi_level.temperature: no such key. Did you mean 'temperatures'?"),
    ({"l2": {"temperature": 4}}, "l2.temperature: no such key. Known: weight"),
    ({"multilevel": {}}, "the file: no 'multilevel' here. Did you mean 'multi_level'?"),
]


@pytest.mark.parametrize(("raw", "said"), ERRORS, ids=[said[:40] for _, said in ERRORS])
def test_a_field_that_cannot_be_is_named(raw, said):
    with pytest.raises((ValidationError, ValueError)) as caught:
        OneOf(LOSSES).parse(raw)
    error = caught.value
    assert (described(error) if isinstance(error, ValidationError) else [f"the file: {error}"]) == [said]
