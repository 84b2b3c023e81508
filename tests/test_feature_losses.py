import math
from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

from compress.config import OneOf
from compress.losses import LOSSES, Batch, Outputs
from compress.losses.attention import Attention
from compress.losses.base import Lesson
from compress.losses.cc import CC
from compress.losses.layers import key
from compress.losses.pkt import PKT
from compress.losses.rkd import RKD
from compress.losses.sp import SP

CLASSES, SAMPLES = 5, 30
ON_FEATURES = [name for name in LOSSES if "layers" in LOSSES[name].model_fields]


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def a_net(*features: torch.Tensor, places: tuple = (1, 2, 3, 4), seed: int = 0) -> Outputs:
    """Outputs with features at places, the stages counted from 1 unless told."""
    logits = 2 * drawn(len(features[0]), CLASSES, seed=seed)
    return Outputs(logits, {key(where): (each,) for where, each in zip(places, features, strict=False)})


def a_batch(student: Outputs, *teachers: Outputs) -> Batch:
    count = len(student.logits)
    return Batch(student, teachers, torch.arange(count) % CLASSES, torch.arange(count) * 2, epoch=0)


def a_lesson(batch: Batch) -> Lesson:
    return Lesson(batch, SAMPLES, CLASSES, torch.arange(SAMPLES) // 2 % CLASSES)


def built(loss: object, batch: Batch) -> nn.Module:
    """The loss with parameters of double precision, in training mode, the same each time."""
    torch.manual_seed(0)
    return loss.build(a_lesson(batch)).double().train()


def value(loss: object, batch: Batch) -> torch.Tensor:
    return built(loss, batch)(batch) if hasattr(loss, "build") else loss(batch)


def two(student: torch.Tensor, teacher: torch.Tensor, place: object = 1) -> Batch:
    return a_batch(a_net(student, places=(place,)), a_net(teacher, places=(place,), seed=1))


def halved(x: np.ndarray) -> np.ndarray:
    b, c, h, w = x.shape
    return x.reshape(b, c, h // 2, 2, w // 2, 2).mean((3, 5))


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_attention_is_the_distance_of_normalised_maps_of_squares():
    student, teacher = drawn(6, 3, 4, 4), drawn(6, 5, 8, 8, seed=1)
    maps = [unit((x**2).sum(1).reshape(6, 16)) for x in (student.numpy(), halved(teacher.numpy()))]
    expected = ((maps[0] - maps[1]) ** 2).mean()
    assert value(Attention(layers=1), two(student, teacher)).item() == pytest.approx(expected, rel=1e-9)
    assert value(Attention(layers=1), two(teacher, student)).item() == pytest.approx(expected, rel=1e-9)


def test_sp_is_the_distance_of_similarities_with_rows_of_length_one():
    student, teacher = drawn(6, 3, 4, 4), drawn(6, 5, 8, 8, seed=1)
    grams = [unit(x @ x.T) for x in (each.numpy().reshape(6, -1) for each in (student, teacher))]
    expected = ((grams[0] - grams[1]) ** 2).sum() / 36
    assert value(SP(layers=1), two(student, teacher)).item() == pytest.approx(expected, rel=1e-9)


def kernel(x: np.ndarray, gamma: float, order: int) -> np.ndarray:
    x = unit(x)
    terms = [(2 * gamma) ** p / math.factorial(p) * (x @ x.T) ** p for p in range(order + 1)]
    return math.exp(-2 * gamma) * sum(terms)


@pytest.mark.parametrize(("gamma", "order"), [(0.4, 2), (1.5, 5)])
def test_cc_is_the_distance_of_kernels(gamma, order):
    student, teacher = drawn(6, 9), drawn(6, 7, seed=1)
    kernels = [kernel(x.numpy(), gamma, order) for x in (student, teacher)]
    expected = ((kernels[0] - kernels[1]) ** 2).sum() / 36
    loss = CC(layers=1, gamma=gamma, order=order)
    assert value(loss, two(student, teacher)).item() == pytest.approx(expected, rel=1e-9)


def test_the_kernel_of_cc_nears_a_gaussian_one_of_features_of_length_one():
    x = unit(drawn(6, 9).numpy())
    squares = ((x[:, None] - x[None]) ** 2).sum(2)
    found = CC(gamma=0.4, order=20, layers=1)
    batch = two(torch.from_numpy(x), torch.ones(6, 4, dtype=torch.float64))  # all alike: a kernel of ones
    expected = ((np.exp(-0.4 * squares) - 1) ** 2).mean()
    assert value(found, batch).item() == pytest.approx(expected, rel=1e-9)


def test_cc_can_embed_both_nets_first():
    student, teacher = drawn(6, 9, 4, 4), drawn(6, 7, seed=1)
    batch = two(student, teacher)
    term = built(CC(layers=1, width=3), batch)
    part = term.parts[0]
    vectors = []
    for x, (layer,) in ((student.numpy().mean((2, 3)), part.mine), (teacher.numpy(), part.theirs)):
        vectors.append(x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy())
    expected = ((kernel(vectors[0], 0.4, 2) - kernel(vectors[1], 0.4, 2)) ** 2).mean()
    assert term(batch).item() == pytest.approx(expected, rel=1e-9)


def huber(x: float) -> float:
    return 0.5 * x**2 if abs(x) < 1 else abs(x) - 0.5


def distances(x: np.ndarray) -> np.ndarray:
    found = np.array([[np.linalg.norm(a - b) for b in x] for a in x])
    return found / (found.sum() / (len(x) * (len(x) - 1)))


def cosine(x: np.ndarray, at: int, one: int, other: int) -> float:
    if at in (one, other):
        return 0.0
    first, second = x[one] - x[at], x[other] - x[at]
    return float(first @ second / np.linalg.norm(first) / np.linalg.norm(second))


def test_rkd_is_the_huber_loss_of_distances_and_angles():
    student, teacher = drawn(5, 7), 3 * drawn(5, 9, seed=1)
    s, t = student.numpy(), teacher.numpy()
    far = sum(huber(a - b) for a, b in zip(distances(s).flat, distances(t).flat, strict=True)) / 25
    turned = sum(huber(cosine(s, *each) - cosine(t, *each)) for each in product(range(5), repeat=3)) / 125
    loss = value(RKD(layers=1), two(student, teacher))
    assert loss.item() == pytest.approx(25 * far + 50 * turned, rel=1e-9)
    only = value(RKD(layers=1, distance=2, angle=0), two(student, teacher))
    assert only.item() == pytest.approx(2 * far, rel=1e-9)


def test_rkd_asks_for_neither_scale_nor_place_nor_turn():
    teacher = drawn(5, 7)
    turn = torch.linalg.qr(drawn(7, 7, seed=3))[0]
    assert value(RKD(layers=1), two(3 + 0.1 * teacher @ turn, teacher)).item() == pytest.approx(0, abs=1e-12)


def chances(x: np.ndarray) -> np.ndarray:
    found = np.zeros((len(x), len(x)))
    for i, j in product(range(len(x)), repeat=2):
        if i != j:
            found[i, j] = (x[i] @ x[j] / np.linalg.norm(x[i]) / np.linalg.norm(x[j]) + 1) / 2
    return found / found.sum(1, keepdims=True)


def test_pkt_is_the_divergence_of_the_chances_to_be_neighbours():
    student, teacher = drawn(6, 9), drawn(6, 7, seed=1)
    q, p = chances(student.numpy()), chances(teacher.numpy())
    expected = sum(p[i, j] * np.log(p[i, j] / q[i, j]) for i, j in product(range(6), repeat=2) if i != j) / 36
    assert value(PKT(layers=1), two(student, teacher)).item() == pytest.approx(expected, rel=1e-4)  # EPS beside p and q


@pytest.mark.parametrize("loss", [Attention, SP, CC, RKD, PKT])
def test_a_loss_is_nothing_where_the_student_is_the_teacher_and_more_elsewhere(loss):
    x, y = drawn(6, 3, 4, 4), drawn(6, 3, 4, 4, seed=1)
    assert value(loss(layers=1), two(x, x)).item() == 0
    assert value(loss(layers=1), two(x, y)).item() > 0


@pytest.mark.parametrize("loss", [Attention, SP, CC, RKD, PKT])
def test_places_are_summed_over(loss):
    student, teacher = [drawn(6, 3, 4, 4), drawn(6, 5, 2, 2)], [drawn(6, 7, 8, 8, seed=1), drawn(6, 4, 4, 4, seed=1)]
    batch = a_batch(a_net(*student), a_net(*teacher))
    each = [value(loss(layers=place), batch).item() for place in (1, 2)]
    assert value(loss(layers=[1, 2]), batch).item() == pytest.approx(sum(each), rel=1e-9)


def features_of(name: str, how: str) -> Batch:
    """Features at the places of a loss, where gradients like to become NaN."""
    places = LOSSES[name]().layers

    def net(seed: int) -> Outputs:
        found = []
        for i, where in enumerate(places):
            shape = (6,) if where == "embedding" else (4 + i, max(8 >> i, 1), max(8 >> i, 1))
            x = drawn(6, *shape, seed=seed)
            x = {"zeros": 0 * x, "one image": x[:1].expand_as(x).clone(), "tiny": 1e-30 * x, "huge": 1e6 * x}.get(
                how, x
            )
            found.append(x.float().requires_grad_())
        outputs = a_net(*(found or [drawn(6, 1)]), places=places, seed=seed)
        return Outputs(outputs.logits.float().requires_grad_(), outputs.features)

    batch = a_batch(net(0), net(0 if how == "the teacher's" else 1))
    return batch if how != "a single image" else Batch(
        batch.student.rows(torch.tensor([0])), (batch.teachers[0].rows(torch.tensor([0])),), torch.tensor([0]),
        torch.tensor([0]), epoch=0,
    )  # fmt: skip


@pytest.mark.parametrize("how", ["zeros", "one image", "tiny", "huge", "the teacher's", "a single image"])
@pytest.mark.parametrize("name", ON_FEATURES)
def test_values_and_gradients_are_finite_at_the_edges(name, how):
    batch = features_of(name, how)
    term = built(LOSSES[name](), batch).float() if hasattr(LOSSES[name], "build") else LOSSES[name]()
    found = term(batch)
    assert found.isfinite()
    leaves = [batch.student.logits, *(x for group in batch.student.features.values() for x in group)]
    leaves = [x for x in leaves if x.requires_grad]
    parameters = [p for p in term.parameters() if p.requires_grad] if isinstance(term, nn.Module) else []
    gradients = torch.autograd.grad(found, leaves + parameters, allow_unused=True)
    assert all(each.isfinite().all() for each in gradients if each is not None)


@pytest.mark.parametrize("name", [name for name in ON_FEATURES if hasattr(LOSSES[name], "build")])
def test_a_loss_with_parameters_has_to_be_built(name):
    with pytest.raises(TypeError, match=f"{name} has parameters: call what its build"):
        LOSSES[name]()(features_of(name, ""))


@pytest.mark.parametrize(
    ("loss", "shapes", "said"),
    [
        (
            {"attention": {"layers": 1}},
            [(6,)],
            "it looks at maps (channels, height, width), and the student's features",
        ),
        ({"attention": {"layers": 1}}, [(6, 1, 1)], "every map that it compares has one pixel"),
        ({"hint": {"layers": "blocks"}}, [(9, 6)], "at 'blocks' have the shape (9, 6); name a stage or a convolution"),
        ({"review": {"layers": 1}}, [(9, 6)], "it looks at maps or vectors"),
        ({"fsp": {"layers": 1}}, [(6, 4, 4)], "layers name a single one; name at least two"),
        ({"fsp": {"layers": [1, "embedding"]}}, [(6, 4, 4), (6,)], "at 'embedding' have the shape (6)"),
        ({"self_distillation": {"layers": -1}}, [(6, 4, 4)], "there is a single one; name at least two"),
        ({"self_distillation": {"layers": [1, 2]}}, [(6, 4, 4), (9, 6)], "the student's features at '2'"),
    ],
)
def test_what_cannot_be_compared_is_said(loss, shapes, said):
    parsed = OneOf(LOSSES).parse(loss)
    net = a_net(*(drawn(2, *shape) for shape in shapes), places=parsed.layers)
    assert said in parsed.objection(a_lesson(a_batch(net, net)))


def test_which_of_several_teachers_does_not_fit_is_said():
    fits, not_so = a_net(drawn(2, 6, 4, 4)), a_net(drawn(2, 9, 6))
    assert "and teacher 2's features at '1'" in Attention(layers=1).objection(a_lesson(a_batch(fits, fits, not_so)))


def test_crd_wants_two_classes():
    batch = two(drawn(2, 6), drawn(2, 6), "embedding")
    labels = torch.tensor([3, -1, 3])
    said = LOSSES["crd"]().objection(Lesson(batch, 3, CLASSES, labels))
    assert said == "it tells an image from those of other classes, and the training images are of 1"
