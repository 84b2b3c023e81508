from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import jaxtyping
import numpy as np
import pytest
import torch
from torch import Tensor

from compress.config import Config
from compress.losses import KD, Batch, CrossEntropy, Outputs
from compress.losses.base import UNLABELLED, over_batches, over_teachers
from compress.weighting import Weight

CLASSES = 5


def drawn(seed: int, batch: int = 6) -> torch.Tensor:
    return 3 * torch.randn(batch, CLASSES, generator=torch.Generator().manual_seed(seed))


def a_batch(student: torch.Tensor, *teachers: torch.Tensor, labels=None, smoothing: float = 0.0) -> Batch:
    rows = torch.arange(len(student))
    return Batch(Outputs(student), tuple(map(Outputs, teachers)), labels, rows, 0, smoothing)


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_cross_entropy_is_the_smoothed_negative_log_likelihood(smoothing):
    logits, labels = drawn(0), torch.tensor([0, 1, 2, 3, 4, 0])
    target = (1 - smoothing) * np.eye(CLASSES)[labels.numpy()] + smoothing / CLASSES
    expected = -(target * np.log(softmax(logits.double().numpy()))).sum(1).mean()
    loss = CrossEntropy()(a_batch(logits, labels=labels, smoothing=smoothing))
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
def test_kd_is_the_divergence_of_softened_outputs_times_the_temperature_squared(temperature):
    student, teacher = drawn(1), drawn(2)
    p = softmax(teacher.double().numpy() / temperature)
    q = softmax(student.double().numpy() / temperature)
    expected = temperature**2 * (p * (np.log(p) - np.log(q))).sum(1).mean()
    loss = KD(temperature=temperature)(a_batch(student, teacher))
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_kd_takes_the_mean_over_teachers():
    student, first, second = drawn(1), drawn(2), drawn(3)
    each = [KD()(a_batch(student, teacher)).item() for teacher in (first, second)]
    assert KD()(a_batch(student, first, second)).item() == pytest.approx(np.mean(each), rel=1e-6)


def test_kd_counts_each_teacher_by_its_share_in_each_image():
    student, teachers = drawn(1), (drawn(2), drawn(3))
    shares = torch.tensor([[1.0, 0.0, 0.5, 0.25, 0.9, 0.3], [0.0, 1.0, 0.5, 0.75, 0.1, 0.7]])
    q = softmax(student.double().numpy() / 4)
    expected = 0.0
    for share, teacher in zip(shares.double().numpy(), teachers, strict=True):
        p = softmax(teacher.double().numpy() / 4)
        expected += 16 * (share * (p * np.log(p / q)).sum(1)).mean()
    batch = replace(a_batch(student, *teachers), shares=shares)
    assert KD(temperature=4)(batch).item() == pytest.approx(expected, rel=1e-4)


def test_a_batch_as_a_whole_counts_each_teacher_by_its_mean_share():
    shares = torch.tensor([[1.0, 0.0, 0.5, 0.25, 0.9, 0.3], [0.0, 1.0, 0.5, 0.75, 0.1, 0.7]])
    batch = a_batch(drawn(1), drawn(2), drawn(3))
    means = [drawn(2).mean().item(), drawn(3).mean().item()]
    assert over_batches(batch, lambda teacher: teacher.logits.mean()).item() == pytest.approx(np.mean(means))
    expected = np.average(means, weights=shares.double().numpy().mean(1))
    value = over_batches(replace(batch, shares=shares), lambda teacher: teacher.logits.mean())
    assert value.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("weight", [0, 0.3, {"warm_up": {"to": 2, "epochs": 5}}])
def test_a_loss_does_not_know_its_weight(weight):
    batch = a_batch(drawn(1), drawn(2), labels=torch.tensor([0, 1, 2, 3, 4, 0]))
    for loss in (KD, CrossEntropy):
        assert torch.equal(loss(weight=weight)(batch), loss()(batch))


def test_the_labelled_images_of_a_batch():
    rows = torch.arange(6)
    labels = torch.tensor([3, UNLABELLED, 1, UNLABELLED, UNLABELLED, 0])
    maps = torch.randn(6, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    shares = torch.stack([rows / 6, 1 - rows / 6])
    student = Outputs(drawn(1), {"2": (maps,)})
    batch = Batch(student, (Outputs(drawn(2)), Outputs(drawn(3))), labels, 10 + rows, 0, inputs=maps, shares=shares)
    found, kept = batch.labelled(), [0, 2, 5]
    assert found.labels.tolist() == [3, 1, 0]
    assert found.indices.tolist() == [10, 12, 15]
    assert torch.equal(found.student.logits, drawn(1)[kept])
    assert torch.equal(found.student.features["2"][0], maps[kept])
    assert torch.equal(found.teachers[1].logits, drawn(3)[kept])
    assert torch.equal(found.inputs, maps[kept])
    assert torch.equal(found.shares, shares[:, kept])
    assert len(replace(batch, labels=torch.full((6,), UNLABELLED)).labelled().labels) == 0


def test_kd_at_a_high_temperature_matches_centred_logits():
    # Hinton et al. 2015, eq. 4: the limit of the gradient is that of |v - z|²/(2 C) for logits of mean 0.
    student, teacher = drawn(1), drawn(2)
    gap = (student - student.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
    expected = (gap.double() ** 2).sum(1).mean() / (2 * CLASSES)
    loss = KD(temperature=300)(a_batch(student.double(), teacher.double()))
    assert loss.item() == pytest.approx(expected.item(), rel=0.02)


def test_kd_survives_logits_far_apart():
    student, teacher = torch.tensor([[1e4, 0.0]]), torch.tensor([[0.0, 1e4]])
    assert KD(temperature=1)(a_batch(student, teacher)).item() == pytest.approx(1e4)


def test_the_gradient_of_cross_entropy_is_probability_minus_target():
    logits, labels = drawn(4).requires_grad_(), torch.tensor([4, 3, 2, 1, 0, 4])
    CrossEntropy()(a_batch(logits, labels=labels)).backward()
    expected = (softmax(logits.detach().double().numpy()) - np.eye(CLASSES)[labels.numpy()]) / len(labels)
    np.testing.assert_allclose(logits.grad.numpy(), expected, atol=1e-6)


def test_annotated_shapes_are_checked_in_tests():
    with pytest.raises(jaxtyping.TypeCheckError, match="logits"):
        Outputs(torch.zeros(2, 3, 4))


def test_cross_entropy_without_labels_says_so():
    with pytest.raises(AssertionError, match="needs labels"):
        CrossEntropy()(a_batch(drawn(0)))


def test_the_loss_that_shows_how_to_add_one():
    text = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text().split("```python\n")[1].split("```")[0]
    names = {"Config": Config, "ClassVar": ClassVar, "Weight": Weight, "Batch": Batch, "Tensor": Tensor}
    names["over_teachers"] = over_teachers
    exec(text, names)
    student, first, second = drawn(1), drawn(2), drawn(3)
    value = names["L2"]()(a_batch(student, first, second))
    expected = np.mean([((student - each).double().numpy() ** 2).sum(1).mean() / 2 for each in (first, second)])
    assert value.item() == pytest.approx(expected)
