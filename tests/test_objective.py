"""The sum that a student minimises: its terms, its layers, its teachers, and what is refused."""

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from tiny import Tiny
from torch import Tensor, nn

from compress.config import Config
from compress.data.base import Data, InMemory
from compress.errors import ConfigError
from compress.losses import KD, CrossEntropy, Outputs
from compress.losses.attention import Attention
from compress.losses.base import UNLABELLED, Batch
from compress.losses.crd import CRD
from compress.losses.fsp import FSP
from compress.losses.hint import Hint
from compress.losses.self_distillation import SelfDistillation
from compress.losses.sp import SP
from compress.recipe import Training, optimizer_for
from compress.training.objective import Objective, Tutor, shares_of
from compress.training.targets import compute
from compress.training.train import Progress, fit
from compress.weighting import Weight

CPU = torch.device("cpu")


def tiny(width: int = 8, seed: int = 0, classes: int = 4) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Tiny(width=width)(classes, (3, 16, 16)).eval()


def objective(data: Data, losses: Any, *teachers: nn.Module | Tutor, student: nn.Module | None = None, **more: Any):
    tutors = [each if isinstance(each, Tutor) else Tutor(each) for each in teachers]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Objective(tiny() if student is None else student, data, losses, tutors, CPU, **more)


def asked(found: Objective, data: Data, epoch: int = 0, rows: Any = range(16), labels: Tensor | None = None):
    """The sum for some training images."""
    rows = torch.tensor(list(rows))
    images = data.inputs(data.train.images[rows.numpy() % len(data.train)])
    if labels is None:
        labels = torch.from_numpy(data.labels)[rows]
    with found.open():
        with torch.no_grad():
            taught = tuple(found.said(i, images) for i in range(len(found.tutors)))
        return found(found.module, images, taught, labels, rows, epoch)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def hard(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Cross-entropy of each image."""
    return -np.log(softmax(logits)[np.arange(len(labels)), labels])


def soft(student: np.ndarray, teacher: np.ndarray, t: float = 4.0) -> np.ndarray:
    """T² · KL(teacher ‖ student) of each image."""
    p, q = softmax(teacher / t), softmax(student / t)
    return t**2 * (p * np.log(p / q)).sum(1)


def logits(module: nn.Module, data: Data, count: int = 16) -> np.ndarray:
    with torch.no_grad():
        return module(data.inputs(data.train.images[np.arange(count)])).double().numpy()


class Counting(Config):
    """The mean of the student's logits, counting how often it is asked and of how many images."""

    name: ClassVar[str] = "counting"
    needs_teacher: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = False
    calls: ClassVar[list[int]] = []
    weight: Weight = 1.0

    def __call__(self, batch: Batch) -> Tensor:
        self.calls.append(len(batch.student.logits))
        return batch.student.logits.mean()


class CountingLabels(Counting):
    """The same of those with labels."""

    name: ClassVar[str] = "counting_labels"
    needs_labels: ClassVar[bool] = True


@pytest.fixture(autouse=True)
def _calls() -> None:
    Counting.calls.clear()


def test_the_sum_is_each_losss_value_times_its_weight(images: Data) -> None:
    teacher = tiny(12, seed=5)
    losses = (CrossEntropy(weight=0.3), KD(weight=0.7), KD(temperature=2, weight=1.5))
    student = tiny()
    found = asked(objective(images, losses, teacher, student=student), images)
    s, t, labels = logits(student, images), logits(teacher, images), images.train.labels[:16]
    values = [hard(s, labels).mean(), soft(s, t).mean(), soft(s, t, 2.0).mean()]
    assert [name for name, _ in found.terms] == ["cross_entropy", "kd", "kd"]
    assert [term.item() for _, term in found.terms] == pytest.approx(values, rel=1e-4)
    assert found.total.item() == pytest.approx(np.dot([0.3, 0.7, 1.5], values), rel=1e-4)


def test_label_smoothing_reaches_the_losses(images: Data) -> None:
    student = tiny()
    found = asked(objective(images, (CrossEntropy(),), student=student, label_smoothing=0.2), images)
    log = np.log(softmax(logits(student, images)))
    target = 0.8 * np.eye(4)[images.train.labels[:16]] + 0.2 / 4
    assert found.total.item() == pytest.approx(-(target * log).sum(1).mean(), rel=1e-4)


@pytest.mark.parametrize(
    ("weight", "expected"),
    [
        ({"warm_up": {"to": 8, "epochs": 4}}, [2, 4, 6, 8, 8, 8]),
        ({"decay": {"start": 2, "to": 1, "epochs": 4}}, [2, 1.75, 1.5, 1.25, 1, 1]),
        ({"decay": {"start": 2, "epochs": 2, "shape": "cosine"}}, [2, 1, 0, 0, 0, 0]),
        ({"window": {"value": 3, "first": 2, "last": 4}}, [0, 3, 3, 3, 0, 0]),
    ],
)
def test_weights_follow_their_schedules_through_the_epochs(images: Data, weight: Any, expected: list[float]) -> None:
    student = tiny()
    losses = (CrossEntropy(weight=0.5), Counting(weight=weight))
    built = objective(images, losses, student=student)
    value, mean = hard(logits(student, images), images.train.labels[:16]).mean(), logits(student, images).mean()
    for epoch, each in enumerate(expected):
        Counting.calls.clear()
        found = asked(built, images, epoch)
        assert found.total.item() == pytest.approx(0.5 * value + each * mean, rel=1e-4)
        assert len(Counting.calls) == (1 if each else 0)  # what does not count is not computed


def test_an_epoch_in_which_nothing_counts_moves_nothing(images: Data) -> None:
    student = tiny()
    before = student.head.weight.clone()
    weight = {"window": {"value": 1, "first": 2}}
    training = Training(epochs=1, batch_size=16, lr=0.1)
    fit(student, images, training, (CrossEntropy(weight=weight),), device=CPU, seed=0, progress=Progress("x"))
    assert torch.equal(student.head.weight, before)


# Parameters of the losses


def test_adapters_are_on_the_optimiser_and_learn(images: Data) -> None:
    losses = (CrossEntropy(), Hint(layers=-1, weight=10.0))
    built = objective(images, losses, tiny(12, seed=5))
    shapes = {tuple(parameter.shape) for parameter in built.parameters}
    assert (12, 8, 1, 1) in shapes
    optimizer = optimizer_for(built.module, Training(), beside=built.parameters)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert {id(p) for p in (*built.parameters, *built.module.parameters())} == held
    regressor = next(p for p in built.parameters if p.dim() == 4)
    before = regressor.detach().clone()
    asked(built, images).total.backward()
    optimizer.step()
    assert (regressor - before).abs().max() > 0


def test_losses_without_parameters_have_none(images: Data) -> None:
    built = objective(images, (CrossEntropy(), KD(), Attention(layers=-1)), tiny(12))
    assert (built.parameters, built.modules) == ([], [])


def test_what_a_loss_draws_follows_from_the_seed_of_the_process(images: Data) -> None:
    drawn = [objective(images, (Hint(layers=-1),), tiny(12)).parameters[0] for _ in range(2)]
    assert torch.equal(*drawn)


# Teachers


@pytest.mark.parametrize("blend", ["mean", (3.0, 1.0), "confidence"])
def test_several_teachers_count_by_their_shares(images: Data, blend: Any) -> None:
    """Zhang et al. 2022, eq. 3: the teacher further from the truth counts less, image by image."""
    student, teachers = tiny(), [tiny(12, seed=5), tiny(12, seed=6)]
    for teacher in teachers:
        teacher.head.weight.data *= 20  # so that they are sure of something
    found = asked(objective(images, (KD(),), *teachers, student=student, blend=blend), images)
    s, t = logits(student, images), [logits(teacher, images) for teacher in teachers]
    labels = images.train.labels[:16]
    terms = np.stack([soft(s, each) for each in t])
    e = np.exp(np.stack([hard(each, labels) for each in t]))
    shares = {"mean": np.full((2, 16), 0.5), "confidence": 1 - e / e.sum(0)}.get(blend, np.array([[0.75], [0.25]]))
    assert np.allclose(shares.sum(0), 1)
    assert found.total.item() == pytest.approx(0.9 * (shares * terms).sum(0).mean(), rel=1e-3)


def test_confidence_of_three_teachers_is_the_papers() -> None:
    random = np.random.default_rng(0)
    taught = [3 * random.standard_normal((5, 4)) for _ in range(3)]
    labels = np.array([0, 3, 1, 1, 2])
    losses = np.stack([hard(each, labels) for each in taught])
    expected = (1 - np.exp(losses) / np.exp(losses).sum(0)) / (3 - 1)
    shares = shares_of("confidence", [Outputs(torch.from_numpy(t).float()) for t in taught], torch.from_numpy(labels))
    assert np.abs(shares.numpy() - expected).max() < 1e-5
    assert np.allclose(shares.sum(0), 1)
    assert (shares.argmax(0).numpy() == losses.argmin(0)).all()


def test_without_a_label_the_surest_teacher_counts_most() -> None:
    random = np.random.default_rng(0)
    taught = [3 * random.standard_normal((4, 5)) for _ in range(2)]
    labels = np.array([2, UNLABELLED, UNLABELLED, 4])
    p = [softmax(each) for each in taught]
    doubt = np.stack([-(each * np.log(each)).sum(1) for each in p])
    known = labels != UNLABELLED
    doubt[:, known] = np.stack([hard(each[known], labels[known]) for each in taught])
    expected = 1 - np.exp(doubt) / np.exp(doubt).sum(0)
    outputs = [Outputs(torch.from_numpy(each).float()) for each in taught]
    assert np.abs(shares_of("confidence", outputs, torch.from_numpy(labels)).numpy() - expected).max() < 1e-5
    unknown = shares_of("confidence", outputs, None)
    assert np.abs(unknown.numpy()[:, ~known] - expected[:, ~known]).max() < 1e-5


@pytest.mark.parametrize("blend", ["mean", "confidence", (0.5,)])
def test_a_single_teacher_is_all_there_is(blend: Any) -> None:
    assert shares_of(blend, [Outputs(torch.zeros(3, 2))], torch.zeros(3, dtype=torch.int64)) is None


def feature(module: nn.Module, data: Data) -> np.ndarray:
    """What goes into the pooling."""
    found = []
    handle = module.pool.register_forward_pre_hook(lambda _, taken: found.append(taken[0].detach().double().numpy()))
    logits(module, data)
    handle.remove()
    return found[0]


def looked_at(x: np.ndarray) -> np.ndarray:
    q = (x**2).sum(1).reshape(len(x), -1)
    return q / np.linalg.norm(q, axis=1, keepdims=True)


def alike(x: np.ndarray) -> np.ndarray:
    g = x.reshape(len(x), -1) @ x.reshape(len(x), -1).T
    return g / np.linalg.norm(g, axis=1, keepdims=True)


@pytest.mark.parametrize("blend", ["mean", (3.0, 1.0), "confidence"])
def test_teachers_share_features_as_they_share_logits(images: Data, blend: Any) -> None:
    """Attention (a term for each image) by each image's shares, SP (a term for the batch) by their mean."""
    student, teachers = tiny(), [tiny(12, seed=5), tiny(6, seed=6)]
    losses = (Attention(layers=-1, weight=1.0), SP(layers=-1, weight=1.0))
    found = asked(objective(images, losses, *teachers, student=student, blend=blend), images)
    mine, theirs = feature(student, images), [feature(teacher, images) for teacher in teachers]
    each = np.stack([((looked_at(mine) - looked_at(t)) ** 2).mean(1) for t in theirs])
    whole = np.array([((alike(mine) - alike(t)) ** 2).mean() for t in theirs])
    e = np.exp(np.stack([hard(logits(t, images), images.train.labels[:16]) for t in teachers]))
    shares = {"mean": np.full((2, 16), 0.5), "confidence": 1 - e / e.sum(0)}.get(blend)
    if shares is None:
        shares = np.repeat([[0.75], [0.25]], 16, 1)
    expected = [(shares * each).sum(0).mean(), (shares.mean(1) * whole).sum()]
    assert [term.item() for _, term in found.terms] == pytest.approx(expected, rel=1e-3)


def test_teachers_are_in_evaluation_mode_and_get_no_gradient(images: Data) -> None:
    teachers = [tiny(12, seed=5).train(), tiny(6, seed=6).train()]
    modes, states = [], [{k: v.clone() for k, v in teacher.state_dict().items()} for teacher in teachers]
    handles = [t.register_forward_hook(lambda m, _, given: modes.append((m.training, given.requires_grad)))
               for t in teachers]  # fmt: skip
    losses = (CrossEntropy(), KD(), Hint(layers=-1, weight=1.0))
    tutors = [Tutor(teacher) for teacher in teachers]
    training = Training(epochs=1, batch_size=16, lr=0.01)
    fit(tiny(), images, training, losses, tutors=tutors, device=CPU, seed=0, progress=Progress("x"))
    for handle in handles:
        handle.remove()
    assert len(modes) >= 2 * 4
    assert set(modes) == {(False, False)}
    assert all(p.grad is None for teacher in teachers for p in teacher.parameters())
    assert all(torch.equal(v, s[k]) for t, s in zip(teachers, states, strict=True) for k, v in t.state_dict().items())


def test_a_teacher_that_nothing_listens_to_is_not_run(images: Data) -> None:
    class Silent(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError("it was asked")

    built = objective(images, (CrossEntropy(),), Silent(), blend=(0.5, 0.5))
    assert (built.tutors, built.runs_teachers) == ((), False)


def test_kept_outputs_need_no_teacher_unless_a_loss_looks_inside(images: Data, tmp_path: Any) -> None:
    teacher = tiny(12)
    kept = compute(tmp_path, "k", lambda x: x[:, 0, 0, :4].float(), images.train.images, 4, kind="none", mirror=False,
                   size=16)  # fmt: skip
    assert not objective(images, (KD(),), Tutor(teacher, targets=kept)).runs_teachers
    assert objective(images, (KD(),), Tutor(teacher, targets=kept), tiny(6), blend="mean").runs_teachers
    assert objective(images, (KD(), Attention(layers=-1)), Tutor(teacher, targets=kept)).runs_teachers


def test_self_distillation_needs_no_teacher(images: Data) -> None:
    layers = ["stem", "middle", "back"]
    built = objective(images, (CrossEntropy(), SelfDistillation(layers=layers)))
    found = asked(built, images)
    assert [name for name, _ in found.terms] == ["cross_entropy", "self_distillation"]
    assert torch.isfinite(found.total)
    assert len(built.parameters) == 2 * 5  # two exits of convolution, batch-norm and linear layer
    student = tiny()
    training = Training(epochs=2, batch_size=16, lr=0.01)
    fit(student, images, training, built.losses, device=CPU, seed=0, progress=Progress("x"))
    assert set(student.state_dict()) == set(tiny().state_dict())
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in student.modules())


# Images without labels


@pytest.fixture
def beside(images: Data) -> Data:
    """The same with 16 images more, of which nobody has said what they show."""
    return replace(images, unlabelled=InMemory(images.val.images[np.arange(16)]))


def test_losses_on_labels_see_labelled_images_alone(images: Data, beside: Data) -> None:
    student, teacher = tiny(), tiny(12, seed=5)
    losses = (CountingLabels(), Counting(), CrossEntropy(weight=0.5), KD(weight=2.0))
    rows = [0, 70, 3, 64, 79, 5]  # the training images are the first 64
    assert beside.samples == 80
    labels = torch.from_numpy(beside.labels)[rows]
    assert (labels == UNLABELLED).tolist() == [False, True, False, True, True, False]
    found = asked(objective(beside, losses, teacher, student=student), beside, rows=rows)
    assert Counting.calls == [3, 6]
    s, t = (logits(net, images, 64)[np.array(rows) % 64] for net in (student, teacher))
    known = [0, 2, 5]
    terms = {name: term.item() for name, term in found.terms}
    assert terms["cross_entropy"] == pytest.approx(hard(s[known], labels.numpy()[known]).mean(), rel=1e-4)
    assert terms["kd"] == pytest.approx(soft(s, t).mean(), rel=1e-3)


def test_shares_and_features_follow_the_labelled_images(images: Data, beside: Data) -> None:
    teachers = [tiny(12, seed=5), tiny(6, seed=6)]
    losses = (CRD(layers="back", negatives=8, weight=1.0), Attention(layers="back"))
    built = objective(beside, losses, *teachers, blend="confidence")
    found = asked(built, beside, rows=[0, 70, 3, 64, 79, 5])
    assert torch.isfinite(found.total)
    found.total.backward()
    # The memories are of all images that have an index, with labels or without.
    assert {tuple(b.shape) for b in built.terms[0].buffers() if b.dim() == 3} == {(2, 80, 128)}


def test_a_batch_without_any_label_works(images: Data, beside: Data) -> None:
    losses = (CountingLabels(), CrossEntropy(), KD(), SelfDistillation(layers=["stem", "back"]))
    found = asked(objective(beside, losses, tiny(12), blend="mean"), beside, rows=range(64, 80))
    assert [name for name, _ in found.terms] == ["kd"]
    assert torch.isfinite(found.total)
    assert Counting.calls == []


def test_all_images_count_where_all_have_labels(images: Data) -> None:
    asked(objective(images, (CountingLabels(),)), images)
    assert Counting.calls == [16]


# What is refused


def refusal(data: Data, losses: Any, *teachers: nn.Module, **more: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        objective(data, losses, *teachers, **more)
    return str(caught.value).split("\n  ")


class Objecting(Counting):
    """Never content."""

    name: ClassVar[str] = "objecting"

    def objection(self, lesson: Any) -> str:
        assert lesson.example.student.logits.shape == (2, lesson.classes)
        assert (lesson.samples, len(lesson.labels)) == (64, 64)
        return f"it does not like {lesson.classes} classes"


@pytest.mark.parametrize(
    ("losses", "widths", "more", "said"),
    [
        ((Hint(layers=[7]),), (12,), {}, "losses.hint.layers: student: no stage 7: it has 1 (of 8 pixels)"),
        ((Hint(layers="stm.0"),), (12,), {}, "losses.hint.layers: teacher: no layer 'stm.0'. Near: stem.0"),
        (
            (Hint(layers={"student": "stem", "teacher": "stom"}),), (12, 6), {},
            "losses.hint.layers: teacher 2: no layer 'stom'. Near: stem",
        ),
        (
            (Hint(layers={"student": "stem.*", "teacher": "middle"}),), (12,), {},
            "layers 'stem.* and middle': 3 layers of the student and 1 of the teacher; give a pattern",
        ),
        ((KD(),), (12, 6), {"blend": (0.5, 0.2, 0.3)}, "blend: 3 weights for 2 teachers; give one for each"),
        ((KD(),), (12,), {"blend": (0.5, 0.5)}, "blend: 2 weights for 1 teacher; give one for each"),
        ((KD(),), (12, 6), {"blend": (1.0,)}, "blend: 1 weight for 2 teachers; give one for each"),
        ((Objecting(),), (), {}, "losses.objecting: it does not like 4 classes"),
        ((FSP(layers=-1),), (12,), {}, "losses.fsp: it compares the flow from one layer to another, and layers name"),
        ((Attention(layers="embedding"),), (12,), {}, "losses.attention: it looks at maps (channels, height, width)"),
        (
            (SelfDistillation(layers=-1),), (), {},
            "losses.self_distillation: the last of its layers teaches the ones before, and there is a single one",
        ),
    ],
)  # fmt: skip
def test_refused(images: Data, losses: Any, widths: Any, more: Any, said: str) -> None:
    lines = refusal(images, losses, *(tiny(width) for width in widths), **more)
    assert any(line.startswith(said) for line in lines), lines


def test_a_teacher_of_other_classes_is_refused(images: Data) -> None:
    (line,) = refusal(images, (KD(),), tiny(12, classes=6))
    assert line == (
        "teacher: it knows 6 classes and the student 4; a teacher must have been trained on the student's classes"
    )


def test_all_that_is_wrong_is_said_together(images: Data) -> None:
    losses = (KD(), Hint(layers=[9]), Attention(layers=["stem.9", "back"]), Attention(layers=["stem.9"]))
    lines = refusal(images, losses, tiny(12, classes=6), tiny(6), tiny(6, classes=3), blend=(0.5, 0.5))
    roles = ("student", "teacher 1", "teacher 2", "teacher 3")
    expected = [f"losses.hint.layers: {role}: no stage 9" for role in roles]
    expected += [f"losses.attention.layers: {role}: no layer 'stem.9'" for role in roles]
    expected += ["teacher 1: it knows 6 classes", "teacher 3: it knows 3 classes", "blend: 2 weights for 3 teachers"]
    assert len(lines) == len(expected)
    assert all(line.startswith(start) for line, start in zip(lines, expected, strict=True)), lines


def test_objections_come_together(images: Data) -> None:
    lines = refusal(images, (Objecting(), FSP(layers=-1), KD()), tiny(12))
    assert [line.split(":")[0] for line in lines] == ["losses.objecting", "losses.fsp"]


def test_what_is_refused_leaves_the_net_as_it_was(images: Data) -> None:
    student = tiny().train()
    refusal(images, (Hint(layers=[9]),), tiny(12), student=student)
    assert student.training
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in student.modules())


def test_the_students_random_state_and_modes_stay(images: Data) -> None:
    student = tiny().train()
    state = {name: value.clone() for name, value in student.state_dict().items()}
    built = objective(images, (CrossEntropy(), Hint(layers=-1)), tiny(12), student=student)
    assert student.training
    assert all(torch.equal(value, state[name]) for name, value in student.state_dict().items())
    term = built.terms[1]
    term.eval()
    with built.open():
        assert term.training
