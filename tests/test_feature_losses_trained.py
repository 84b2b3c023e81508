import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_feature_losses import CLASSES, SAMPLES, a_batch, a_lesson, a_net, built, drawn, halved, two, unit, value
from torch import nn

from compress.losses import LOSSES, Batch, Outputs
from compress.losses.adversarial import Adversarial
from compress.losses.base import Lesson
from compress.losses.crd import CRD, Contrast
from compress.losses.fsp import FSP
from compress.losses.hint import Hint
from compress.losses.review import Review
from compress.losses.self_distillation import SelfDistillation


def numbers(module: nn.Module) -> list[np.ndarray]:
    """A module's parameters in their order."""
    return [parameter.detach().numpy() for parameter in module.parameters()]


def normalised(x: np.ndarray) -> np.ndarray:
    """Batch normalization as it starts: with the scale 1 and the shift 0."""
    mean, variance = x.mean((0, 2, 3), keepdims=True), x.var((0, 2, 3), keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-5)


def mixed(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return np.einsum("bchw,oc->bohw", x, weight[:, :, 0, 0])


def test_a_hint_without_a_regressor_is_the_mean_square():
    student, teacher = drawn(6, 5, 8, 8), drawn(6, 5, 4, 4, seed=1)
    expected = ((halved(student.numpy()) - teacher.numpy()) ** 2).mean()
    assert value(Hint(layers=1), two(student, teacher)).item() == pytest.approx(expected, rel=1e-9)
    assert value(Hint(layers=1), two(teacher, teacher)).item() == 0


def test_a_hint_goes_through_a_convolution_where_channels_differ():
    student, teacher = drawn(6, 3, 4, 4), drawn(6, 5, 8, 8, seed=1)
    batch = two(student, teacher)
    term = built(Hint(layers=1), batch)
    weight, *_ = numbers(term)
    assert weight.shape == (5, 3, 1, 1)
    expected = ((normalised(mixed(student.numpy(), weight)) - halved(teacher.numpy())) ** 2).mean()
    assert term(batch).item() == pytest.approx(expected, rel=1e-9)


def test_a_hint_takes_a_vector_for_a_map_of_one_pixel():
    student, teacher = drawn(6, 5, 4, 4), drawn(6, 5, seed=1)
    expected = ((student.numpy().mean((2, 3)) - teacher.numpy()) ** 2).mean()
    assert value(Hint(layers=1), two(student, teacher)).item() == pytest.approx(expected, rel=1e-9)


def test_every_teacher_has_adapters_of_its_own():
    student = a_net(drawn(6, 3, 4, 4))
    teachers = [a_net(drawn(6, width, 4, 4, seed=width)) for width in (5, 7)]
    batch = a_batch(student, *teachers)
    term = built(Hint(layers=1), batch)
    weights = [numbers(part)[0] for part in term.parts]
    each = []
    for weight, teacher in zip(weights, teachers, strict=True):
        mine = normalised(mixed(student.features["1"][0].numpy(), weight))
        each.append(((mine - teacher.features["1"][0].numpy()) ** 2).mean((1, 2, 3)))
    shares = np.random.default_rng(0).dirichlet([1, 1], 6).T
    assert term(batch).item() == pytest.approx(np.mean(each), rel=1e-9)
    weighed = Batch(student, tuple(teachers), None, batch.indices, 0, shares=torch.from_numpy(shares))
    assert term(weighed).item() == pytest.approx((shares * np.array(each)).sum(0).mean(), rel=1e-9)


def products(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    b, m, h, w = before.shape
    found = np.zeros((b, m, after.shape[1]))
    for row in range(h):
        for column in range(w):
            found += before[:, :, None, row, column] * after[:, None, :, row, column] / (h * w)
    return found


def test_fsp_is_the_distance_of_products_of_two_layers():
    student = [drawn(6, 3, 8, 8), drawn(6, 5, 4, 4), drawn(6, 2, 4, 4)]
    teacher = [drawn(6, 3, 4, 4, seed=1), drawn(6, 5, 4, 4, seed=1), drawn(6, 2, 8, 8, seed=1)]
    s, t = ([x.numpy() for x in net] for net in (student, teacher))
    first = products(halved(s[0]), s[1]) - products(t[0], t[1])
    second = products(s[1], s[2]) - products(t[1], halved(t[2]))
    batch = a_batch(a_net(*student), a_net(*teacher))
    expected = (first**2).mean() + (second**2).mean()
    assert value(FSP(layers=[1, 2, 3]), batch).item() == pytest.approx(expected, rel=1e-9)
    assert value(FSP(layers=[1, 2, 3]), a_batch(a_net(*student), a_net(*student))).item() == 0


def test_fsp_adapts_the_channels_of_both_layers():
    student, teacher = [drawn(6, 3, 8, 8), drawn(6, 4, 4, 4)], [drawn(6, 5, 4, 4, seed=1), drawn(6, 7, 4, 4, seed=1)]
    batch = a_batch(a_net(*student), a_net(*teacher))
    term = built(FSP(layers=[1, 2]), batch)
    first, second = (numbers(adapter)[0] for adapter in term.parts[0].adapters)
    before, after = normalised(mixed(student[0].numpy(), first)), normalised(mixed(student[1].numpy(), second))
    gap = products(halved(before), after) - products(teacher[0].numpy(), teacher[1].numpy())
    assert term(batch).item() == pytest.approx((gap**2).mean(), rel=1e-9)


def around(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """A 3x3 convolution with zeros around the map."""
    h, w = x.shape[2:]
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    taps = [(i, j, padded[:, :, i : i + h, j : j + w]) for i in range(3) for j in range(3)]
    return sum(np.einsum("bchw,oc->bohw", shifted, weight[:, :, i, j]) for i, j, shifted in taps)


def context(gap: np.ndarray) -> float:
    """Hierarchical context loss of maps of 8 or of 2 pixels."""
    levels = [(1, gap)]
    if gap.shape[2] == 8:
        levels += [(1 / 2, halved(gap)), (1 / 4, halved(halved(gap))), (1 / 8, gap.mean((2, 3)))]
    else:
        levels += [(1 / 2, gap.mean((2, 3)))]
    return sum(weight * (x**2).mean() for weight, x in levels) / sum(weight for weight, _ in levels)


def test_review_fuses_from_the_deepest_stage_up():
    student, teacher = [drawn(6, 3, 4, 4), drawn(6, 4, 1, 1)], [drawn(6, 5, 8, 8, seed=1), drawn(6, 7, 2, 2, seed=1)]
    batch = a_batch(a_net(*student), a_net(*teacher))
    term = built(Review(layers=[1, 2]), batch)
    deep, shallow = term.parts[0].fusions
    assert deep.attend is None
    left = normalised(mixed(student[1].numpy(), numbers(deep.enter)[0])).repeat(2, 2).repeat(2, 3)
    deepest = normalised(around(left, numbers(deep.leave)[0]))
    x, y = normalised(mixed(student[0].numpy(), numbers(shallow.enter)[0])), left.repeat(2, 2).repeat(2, 3)
    weight, bias = numbers(shallow.attend)
    here = 1 / (1 + np.exp(-mixed(np.concatenate([x, y], 1), weight) - bias[:, None, None]))
    fused = (here[:, :1] * x + here[:, 1:] * y).repeat(2, 2).repeat(2, 3)
    found = normalised(around(fused, numbers(shallow.leave)[0]))
    expected = context(found - teacher[0].numpy()) + context(deepest - teacher[1].numpy())
    assert term(batch).item() == pytest.approx(expected, rel=1e-9)


def embedded(x: torch.Tensor, layer: nn.Module) -> np.ndarray:
    weight, bias = numbers(layer)
    return unit(x.numpy() @ weight.T + bias)


def contrasted(v: np.ndarray, memory: np.ndarray, chosen: np.ndarray, z: float | None) -> tuple[float, float]:
    scores = np.exp(np.einsum("bw,bkw->bk", v, memory[chosen]) / 0.07)
    z = z or scores.mean() * len(memory)
    p, c = scores / z, (chosen.shape[1] - 1) / len(memory)
    same, others = np.log(p[:, 0] / (p[:, 0] + c)), np.log(c / (p[:, 1:] + c)).sum(1)
    return -(same + others).mean(), z


def test_crd_is_noise_contrastive_estimation_against_both_memories(monkeypatch):
    student, teacher = drawn(4, 9), drawn(4, 7, seed=1)
    batch = two(student, teacher, "embedding")
    term = built(CRD(width=6, negatives=3), batch)
    contrast = term.parts[0].contrasts[0]
    others = torch.randint(0, SAMPLES, (4, 3), generator=torch.Generator().manual_seed(5))
    monkeypatch.setattr(Contrast, "others", lambda self, labels: others)
    chosen = np.concatenate([batch.indices.numpy()[:, None], others.numpy()], 1)
    vectors = [embedded(x, layer) for x, layer in zip((student, teacher), contrast.embeddings, strict=True)]
    memories, z = contrast.memories.numpy().copy(), [None, None]
    for _ in range(2):  # the second time with the first one's Z and what the memories have become
        expected, z = zip(*(contrasted(vectors[i], memories[1 - i], chosen, z[i]) for i in (0, 1)), strict=True)
        assert term(batch).item() == pytest.approx(sum(expected), rel=1e-5)  # EPS beside c
        for memory, vector in zip(memories, vectors, strict=True):
            memory[batch.indices] = unit(0.5 * memory[batch.indices] + 0.5 * vector)
        np.testing.assert_allclose(contrast.memories.numpy(), memories, atol=1e-12)
    assert {"contrasts.0.memories", "contrasts.0.log_normalizers"} <= term.parts[0].state_dict().keys()


def test_crd_draws_images_of_other_classes_alone():
    labels = torch.tensor([2, 0, 1, -1, 1, 0, 2, 2, -1, 0])
    contrast = Contrast(CRD(negatives=10_000), Lesson(two(drawn(2, 4), drawn(2, 4)), 10, 4, labels), 4, 4)
    assert contrast.negatives == 5  # eight labelled images, three in the largest class
    contrast.negatives = 3000
    torch.manual_seed(0)
    drawn_now = contrast.others(torch.tensor([0, 1, 2]))
    for own, found in enumerate(drawn_now):
        allowed = [i for i, label in enumerate(labels.tolist()) if label not in (own, -1)]
        counts = torch.bincount(found, minlength=10)
        assert torch.nonzero(counts).flatten().tolist() == allowed
        # Six standard deviations of a share of 1/len(allowed) among 3000.
        share = 1 / len(allowed)
        assert (counts[allowed] / 3000 - share).abs().max() < 6 * math.sqrt(share * (1 - share) / 3000)


def test_crd_stays_finite_at_a_temperature_near_nothing():
    batch = two(drawn(4, 9), drawn(4, 7, seed=1), "embedding")
    assert value(CRD(temperature=1e-4), batch).isfinite()


def judged(x: np.ndarray, module: nn.Module) -> np.ndarray:
    a, b, c, d, e, f = numbers(module)
    for weight, bias in ((a, b), (c, d)):
        x = x @ weight.T + bias
        x = np.where(x > 0, x, 0.2 * x)
    return 1 / (1 + np.exp(-(x @ e.T + f)))


def test_the_adversarial_loss_is_that_of_both_players():
    student, teacher = a_net(drawn(6, 1)), a_net(drawn(6, 1), seed=1)
    batch = a_batch(student, teacher)
    term = built(Adversarial(hidden=8), batch)
    real, fake = (judged(net.logits.numpy(), term.parts[0].discriminators[0]) for net in (teacher, student))
    expected = -(np.log(real) + np.log(1 - fake) + np.log(fake)).mean()
    assert term(batch).item() == pytest.approx(expected, rel=1e-9)
    for parameter in term.parameters():
        nn.init.zeros_(parameter)
    assert term(batch).item() == pytest.approx(3 * math.log(2))


def test_each_player_learns_for_itself():
    logits = drawn(6, CLASSES).requires_grad_()
    teacher = a_net(drawn(6, 1), seed=1)
    batch = a_batch(Outputs(logits), teacher)
    term = built(Adversarial(hidden=8), batch)
    judge = term.parts[0].discriminators[0]
    parameters = list(judge.parameters())
    found = torch.autograd.grad(term(batch), [logits, *parameters])
    fooled = F.binary_cross_entropy_with_logits(judge(logits), torch.ones(6, 1, dtype=torch.float64))
    told = sum(
        F.binary_cross_entropy_with_logits(judge(x), torch.full((6, 1), float(real), dtype=torch.float64))
        for x, real in ((teacher.logits, 1), (logits.detach(), 0))
    )
    expected = [*torch.autograd.grad(fooled, [logits]), *torch.autograd.grad(told, parameters)]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_an_adversary_can_look_at_features():
    student, teacher = drawn(6, 3, 4, 4), drawn(6, 5, seed=1)
    batch = two(student, teacher)
    term = built(Adversarial(layers=1, hidden=8), batch)
    weight, bias = numbers(term.parts[0].adapters[0])
    judge = term.parts[0].discriminators[0]
    real, fake = judged(teacher.numpy(), judge), judged(student.numpy().mean((2, 3)) @ weight.T + bias, judge)
    assert term(batch).item() == pytest.approx(-(np.log(real) + np.log(1 - fake) + np.log(fake)).mean(), rel=1e-9)


def log_softmax(x: np.ndarray) -> np.ndarray:
    return x - np.log(np.exp(x).sum(1, keepdims=True))


def test_self_distillation_teaches_an_exit_by_labels_answers_and_features():
    shallow, deep = drawn(6, 3, 8, 8).requires_grad_(), drawn(6, 4, 4, 4).requires_grad_()
    net = a_net(shallow, deep)
    logits = net.logits.requires_grad_()
    batch = Batch(Outputs(logits, net.features), (), torch.arange(6) % CLASSES, torch.arange(6), epoch=0)
    term = built(SelfDistillation(layers=[1, 2], hint=0.01), batch)
    weight, bias = numbers(term.classify[0])
    mapped = normalised(mixed(halved(shallow.detach().numpy()), numbers(term.enter[0])[0]))
    reached = np.maximum(mapped, 0).mean((2, 3))
    own, answers = reached @ weight.T + bias, logits.detach().numpy()
    hard = -log_softmax(own)[np.arange(6), np.arange(6) % CLASSES].mean()
    p, q = log_softmax(answers / 3), log_softmax(own / 3)
    soft = 9 * (np.exp(p) * (p - q)).sum(1).mean()
    near = ((reached - deep.detach().numpy().mean((2, 3))) ** 2).sum(1).mean()
    loss = term(batch)
    assert loss.item() == pytest.approx(0.9 * hard + 0.1 * soft + 0.01 * near, rel=1e-9)
    loss.backward()
    assert shallow.grad.abs().sum() > 0
    assert deep.grad is None
    assert logits.grad is None


FALLING = [name for name in LOSSES if "layers" in LOSSES[name].model_fields and name != "adversarial"]


@pytest.mark.parametrize("name", FALLING)  # of the adversarial one each player raises the other's part
def test_training_brings_a_loss_down(name):
    places = LOSSES[name]().layers
    shapes = [(6,) if where == "embedding" else (5, max(8 >> i, 2), max(8 >> i, 2)) for i, where in enumerate(places)]
    mine = [nn.Parameter(drawn(8, *shape)) for shape in shapes]
    logits = nn.Parameter(drawn(8, CLASSES))
    taught = a_net(*(drawn(8, *shape, seed=1) for shape in shapes), places=places, seed=1)

    def batch() -> Batch:
        features = a_net(*mine, places=places).features
        return a_batch(Outputs(logits, features), taught)

    torch.manual_seed(0)
    term = LOSSES[name]()
    if hasattr(term, "build"):
        term = term.build(a_lesson(batch())).double().train()
    beside = list(term.parameters()) if isinstance(term, nn.Module) else []
    optimizer = torch.optim.Adam([*mine, logits, *beside], 0.03)
    values = []
    for _ in range(60):
        loss = term(batch())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < 0.7 * values[0]


def test_the_student_comes_to_answer_as_the_teacher_does_where_a_discriminator_tells_them_apart():
    logits, teacher = nn.Parameter(drawn(64, CLASSES)), 2 + drawn(64, CLASSES, seed=1)
    batch = a_batch(Outputs(logits), Outputs(teacher))
    term = built(Adversarial(hidden=16), batch)
    optimizer = torch.optim.Adam([logits, *term.parameters()], 0.02)
    for _ in range(200):
        optimizer.zero_grad()
        term(batch).backward()
        optimizer.step()
    before, after = ((x - teacher).mean(0).norm().item() for x in (drawn(64, CLASSES), logits.detach()))
    assert after < 0.5 * before
