import jaxtyping
import numpy as np
import pytest
import torch

from compress.losses import KD, Batch, CrossEntropy, Outputs

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
    loss = CrossEntropy(weight=0.3)(a_batch(logits, labels=labels, smoothing=smoothing))
    assert loss.item() == pytest.approx(0.3 * expected, rel=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
def test_kd_is_the_divergence_of_softened_outputs_times_the_temperature_squared(temperature):
    student, teacher = drawn(1), drawn(2)
    p = softmax(teacher.double().numpy() / temperature)
    q = softmax(student.double().numpy() / temperature)
    expected = temperature**2 * (p * (np.log(p) - np.log(q))).sum(1).mean()
    loss = KD(temperature=temperature, weight=0.9)(a_batch(student, teacher))
    assert loss.item() == pytest.approx(0.9 * expected, rel=1e-4)


def test_kd_takes_the_mean_over_teachers():
    student, first, second = drawn(1), drawn(2), drawn(3)
    each = [KD(weight=1)(a_batch(student, teacher)).item() for teacher in (first, second)]
    assert KD(weight=1)(a_batch(student, first, second)).item() == pytest.approx(np.mean(each), rel=1e-6)


def test_kd_at_a_high_temperature_matches_centred_logits():
    # Hinton et al. 2015, eq. 4: the limit of the gradient is that of |v - z|²/(2 C) for logits of mean 0.
    student, teacher = drawn(1), drawn(2)
    gap = (student - student.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
    expected = (gap.double() ** 2).sum(1).mean() / (2 * CLASSES)
    loss = KD(temperature=300, weight=1)(a_batch(student.double(), teacher.double()))
    assert loss.item() == pytest.approx(expected.item(), rel=0.02)


def test_kd_survives_logits_far_apart():
    student, teacher = torch.tensor([[1e4, 0.0]]), torch.tensor([[0.0, 1e4]])
    assert KD(temperature=1, weight=1)(a_batch(student, teacher)).item() == pytest.approx(1e4)


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
