import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from compress.data.base import InMemory, Split
from compress.edits.quantizers import ActivationQuantizer
from compress.errors import DataError, TrainingError
from compress.losses import KD, CrossEntropy
from compress.recipe import Training, optimizer_for, schedule_for
from compress.training.averaging import update_average
from compress.training.loop import batch_size_for
from compress.training.objective import Tutor
from compress.training.predicting import accuracy, predict
from compress.training.train import Progress, fit

CPU = torch.device("cpu")
LABELS = (CrossEntropy(),)
PLAIN = {"optimizer": "sgd", "momentum": 0.0, "schedule": "constant", "lr": 0.1, "augment": "none", "weight_decay": 0.0}


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(0.5),
            nn.Linear(8, 4),
        )


def linear(data) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(data.image), data.classes))


def train(data, module, losses=LABELS, *, seed=0, teachers=(), emit=None, after_epoch=None, **keys):
    progress = Progress("distill") if emit is None else Progress("distill", emit)
    training = Training(**keys)
    fit(
        module,
        data,
        training,
        losses,
        tutors=[Tutor(teacher) for teacher in teachers],
        device=CPU,
        seed=seed,
        progress=progress,
        after_epoch=after_epoch,
    )
    return module


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


EVERYTHING = {
    "epochs": 2,
    "batch_size": 16,
    "augment": "affine",
    "dropout": 0.3,
    "ema": 0.9,
    "clip": 1.0,
    "label_smoothing": 0.1,
    "l1": 1e-5,
}


def test_the_same_seed_gives_the_same_bits(images):
    first, again = (state(train(images, network(), seed=7, **EVERYTHING)) for _ in range(2))
    assert same(first, again)


def test_another_seed_gives_other_weights(images):
    assert not same(
        state(train(images, network(), seed=7, epochs=1)), state(train(images, network(), seed=8, epochs=1))
    )


def test_the_random_state_of_the_process_plays_no_part(images):
    torch.manual_seed(1)
    first = state(train(images, network(), **EVERYTHING))
    before = torch.random.get_rng_state()
    again = state(train(images, network(), **EVERYTHING))
    assert same(first, again)
    assert torch.equal(before, torch.random.get_rng_state())


def test_no_epochs_change_nothing(images):
    module = network().train()
    before = state(module)
    train(images, module, epochs=0)
    assert same(before, state(module))
    assert not module.training


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"label_smoothing": 0.2},
        {"l1": 0.01},
        {"weight_decay": 0.1},
        {"clip": 0.05},
        {"label_smoothing": 0.1, "l1": 0.003, "weight_decay": 0.01, "clip": 0.2},
    ],
)
def test_a_step_is_the_one_on_paper(images, keys):
    module = linear(images)
    weight, bias = (p.detach().double().numpy().copy() for p in module.parameters())
    pixels = images.train.images[np.arange(len(images.train))]
    x = images.inputs(pixels).flatten(1).double().numpy()
    smoothing, l1 = keys.get("label_smoothing", 0), keys.get("l1", 0)
    target = (1 - smoothing) * np.eye(4)[images.train.labels] + smoothing / 4
    error = (softmax(x @ weight.T + bias) - target) / len(x)
    to_weight, to_bias = error.T @ x + l1 * np.sign(weight), error.sum(0)
    norm = np.sqrt((to_weight**2).sum() + (to_bias**2).sum())
    shrink = min(1, keys.get("clip", np.inf) / norm)
    decayed = shrink * to_weight + keys.get("weight_decay", 0) * weight
    train(images, module, epochs=1, batch_size=64, **PLAIN | keys)
    np.testing.assert_allclose(module[1].weight.detach().numpy(), weight - 0.1 * decayed, atol=1e-5)
    np.testing.assert_allclose(module[1].bias.detach().numpy(), bias - 0.1 * shrink * to_bias, atol=1e-5)


def test_dropout_is_replaced_while_training_only(images):
    module, seen = network(), []
    module[5].register_forward_hook(lambda layer, *_: seen.append((layer.training, layer.p)))
    train(images, module, epochs=1, batch_size=32, dropout=0.125)
    assert (True, 0.125) in seen
    assert (True, 0.5) not in seen
    assert module[5].p == 0.5


def test_the_moving_average_forgets_its_start_sooner(images):
    module, kept = linear(images), []
    kept.append(module[1].weight.detach().clone())
    train(
        images,
        module,
        epochs=12,
        batch_size=64,
        ema=0.5,
        after_epoch=lambda _: kept.append(module[1].weight.detach().clone()),
        **PLAIN,
    )
    average = kept[0].double()
    for step, weight in enumerate(kept[1:], start=1):
        decay = min(0.5, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * weight
    assert (1 + 1) / (10 + 1) < 0.5 < (1 + 12) / (10 + 12)
    torch.testing.assert_close(module[1].weight.detach().double(), average, rtol=0, atol=1e-6)


def rounding(value: float) -> nn.Sequential:
    module = nn.Sequential(nn.Linear(2, 2), ActivationQuantizer(), nn.BatchNorm1d(2))
    for tensor in module.state_dict().values():
        tensor.fill_(value)
    return module


def test_ranges_and_counters_are_copied_where_weights_and_statistics_are_averaged():
    average = rounding(1)
    update_average(average, rounding(5), decay=0.75)
    found = {name: value.flatten()[0].item() for name, value in average.state_dict().items()}
    copied = {"1.scale": 5, "1.zero_point": 5, "2.num_batches_tracked": 5}
    assert found == dict.fromkeys(found, 2) | copied


def test_ranges_set_after_the_last_epoch_stay_with_the_moving_average(images):
    module = nn.Sequential(ActivationQuantizer(), *linear(images))
    train(images, module, epochs=1, ema=0.9, after_epoch=lambda _: module[0].set_range(0, 510))
    assert module[0].scale.item() == 2.0


@pytest.mark.parametrize(
    ("keys", "decay"), [({"optimizer": "adamw"}, 0.05), ({"optimizer": "sgd"}, 5e-4), ({"weight_decay": 0.2}, 0.2)]
)
def test_only_weights_decay(keys, decay):
    module = network()
    module[0].weight.requires_grad_(False)
    names = {id(p): name for name, p in module.named_parameters()}
    groups = optimizer_for(module, Training(**keys)).param_groups
    found = {group["weight_decay"]: {names[id(p)] for p in group["params"]} for group in groups}
    assert found == {decay: {"6.weight"}, 0.0: {"1.weight", "1.bias", "6.bias"}}


def rates(steps: int, **keys) -> list[float]:
    training = Training(lr=0.1, **keys)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1, 0.9)
    schedule, found = schedule_for(optimizer, training, steps), []
    for _ in range(training.epochs * steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


WARM = [0.1 * (i + 1) / 9 for i in range(8)]  # two epochs of four steps


def test_cosine_falls_to_nothing_after_its_warm_up():
    whole = [0.05 * (1 + math.cos(math.pi * i / 20)) for i in range(20)]
    assert rates(4, epochs=5, schedule="cosine") == pytest.approx(whole)
    rest = [0.05 * (1 + math.cos(math.pi * i / 12)) for i in range(12)]
    assert rates(4, epochs=5, schedule="cosine", warmup=2) == pytest.approx(WARM + rest)


@pytest.mark.parametrize("milestones", [(3, 4), (1, 4)])
def test_step_falls_at_its_milestones(milestones):
    whole = [0.1 * 0.1 ** sum(i // 4 >= m for m in milestones) for i in range(20)]
    keys = {"epochs": 5, "schedule": "step", "milestones": milestones}
    assert rates(4, **keys) == pytest.approx(whole)
    assert rates(4, **keys, warmup=2) == pytest.approx(WARM + whole[8:])


def test_constant_stays():
    assert rates(4, epochs=5, schedule="constant") == pytest.approx([0.1] * 20)
    assert rates(4, epochs=5, schedule="constant", warmup=2) == pytest.approx(WARM + [0.1] * 12)


def test_one_cycle_rises_and_falls_by_cosines():
    # Smith & Topin 2018 with cosines: from lr/25 up to lr in the first quarter, then down to lr/250,000.
    def between(low, high, part):
        return high + (low - high) * (1 + math.cos(math.pi * part)) / 2

    peak, last = 0.25 * 41 - 1, 40
    rise = [between(0.004, 0.1, i / peak) for i in range(40) if i <= peak]
    fall = [between(0.1, 0.1 / 250_000, (i - peak) / (last - peak)) for i in range(40) if i > peak]
    assert rates(8, epochs=5) == pytest.approx(rise + fall)
    assert int(np.argmax(rates(8, epochs=5, warmup=2.5))) == pytest.approx(20, abs=1)


@pytest.mark.parametrize("steps", range(1, 13))
@pytest.mark.parametrize("schedule", ["one_cycle", "cosine", "constant"])
def test_any_number_of_steps_has_rates(schedule, steps):
    for warmup in (0, 0.5, 1, 9):
        found = rates(steps, epochs=1, schedule=schedule, warmup=warmup)
        assert all(0 < rate <= 0.1 + 1e-12 for rate in found)


@pytest.mark.parametrize(("momentum", "lowest", "highest"), [(0.9, 0.85, 0.95), (0.5, 0.45, 0.55), (0.0, 0.0, 0.0)])
def test_one_cycle_moves_momentum_around_the_one_given(momentum, lowest, highest):
    training = Training(epochs=1, optimizer="sgd", momentum=momentum, lr=0.1)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1, momentum)
    schedule, found = schedule_for(optimizer, training, 39), []
    for _ in range(39):
        found.append(optimizer.param_groups[0]["momentum"])
        optimizer.step()
        schedule.step()
    assert (min(found), max(found)) == pytest.approx((lowest, highest))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"schedule": "step"}, "schedule 'step' needs milestones"),
        ({"milestones": (3,)}, "milestones belong to schedule 'step', not to 'one_cycle'"),
        ({"nesterov": True}, "nesterov needs optimizer 'sgd'"),
        ({"nesterov": True, "optimizer": "sgd", "momentum": 0}, "nesterov needs optimizer 'sgd'"),
        ({"batch_size": 1}, "greater than or equal to 2"),
        ({"epochs": -1}, "greater than or equal to 0"),
        ({"lr": 0}, "greater than 0"),
        ({"learning_rate": 0.1}, "no such key"),
    ],
)
def test_what_cannot_work_is_refused(keys, message):
    with pytest.raises(ValidationError, match=message):
        Training(**keys)


def test_batches_are_full_and_no_larger_than_the_data():
    assert batch_size_for(100, 32) == 32
    assert batch_size_for(5, 32) == 5
    with pytest.raises(DataError, match="one training image, and batch-norm cannot"):
        batch_size_for(1, 32)


def test_an_epoch_leaves_out_the_batch_that_is_not_full(images):
    module, sizes = network(), []
    module.register_forward_hook(lambda m, inputs, _: sizes.append(len(inputs[0])) if m.training else None)
    train(images, module, epochs=2, batch_size=24)
    assert sizes == [24] * 4


def test_the_teacher_is_left_alone_and_sees_what_the_student_sees(images):
    student, teacher = network(1), network(2).train()
    before, seen = state(teacher), {"student": [], "teacher": []}
    student.register_forward_hook(lambda m, x, _: seen["student"].append(x[0].clone()) if m.training else None)
    teacher.register_forward_hook(lambda m, x, y: seen["teacher"].append((m.training, x[0].clone(), y.requires_grad)))
    train(images, student, [CrossEntropy(weight=0.1), KD()], teachers=[teacher], epochs=1, augment="shift")
    assert same(before, state(teacher))
    assert all(p.grad is None for p in teacher.parameters())
    assert {(training, gradient) for training, _, gradient in seen["teacher"]} == {(False, False)}
    # At first it is shown two black images, to see whether it fits the student.
    taught = [inputs for _, inputs, _ in seen["teacher"] if len(inputs) > 2]
    assert len(taught) == 2
    for mine, theirs in zip(seen["student"], taught, strict=True):
        assert torch.equal(mine, theirs)


def test_a_student_learns_what_its_teacher_says(images):
    teacher = linear(images)
    with torch.no_grad():
        teacher[1].weight.normal_(generator=torch.Generator().manual_seed(0))
    keys = {"epochs": 30, "batch_size": 16, "lr": 0.02, "augment": "none"}
    student = train(images, linear(images), [KD(weight=1)], teachers=[teacher], **keys)
    theirs, mine = (predict(m, images, images.train, CPU).argmax(1) for m in (teacher, student))
    assert (theirs == mine).float().mean() > 0.95


class Broken(CrossEntropy):
    """A loss that is not finite, as no paper proposes (1900)."""

    name = "broken"

    def __call__(self, batch):
        return super().__call__(batch) * float("nan")


def spoil(module: nn.Module, name: str) -> nn.Module:
    with torch.no_grad():
        module.get_parameter(name).view(-1)[0] = float("nan")
    return module


def failure(data, module, *args, **keys) -> str:
    with pytest.raises(TrainingError) as caught:
        train(data, module, *args, epochs=2, **keys)
    return str(caught.value)


def test_a_bad_weight_is_named(images):
    message = failure(images, spoil(network(), "6.bias"))
    assert message == (
        "stage distill: a value of 6.bias is not finite in epoch 1, after 3 returns to the last good state. "
        "Lower training.lr (now 0.003) or set training.clip, for example to 1.0"
    )


def test_bad_images_are_named(images):
    message = failure(replace(images, std=(1e-45,) * 3), network())
    assert "a value of the images is not finite in epoch 1" in message
    assert "See that data.std (now 1.4013e-45, " in message or "See that data.std (now 1e-45, " in message


def test_a_bad_teacher_is_named(images):
    teachers = [network(1), spoil(network(2), "6.bias")]
    message = failure(images, network(), [KD()], teachers=teachers)
    assert "a value of teacher 2's logits is not finite" in message
    assert "Train this teacher again" in message


def test_a_bad_loss_is_named(images):
    assert "a value of the loss broken is not finite" in failure(images, network(), [CrossEntropy(), Broken()])


def test_a_rate_that_is_too_high_is_found_by_the_end_of_the_epoch(images):
    keys = {"optimizer": "sgd", "schedule": "constant", "lr": 1e38, "batch_size": 16}
    message = failure(images, network(), **keys)
    assert "is not finite in epoch 1" in message
    assert "Lower training.lr (now 1e+38)" in message


def test_a_bad_weight_of_the_last_epoch_is_found_too(images):
    module = network()
    with pytest.raises(TrainingError, match=r"6\.bias is not finite after the last step"):
        train(images, module, epochs=1, after_epoch=lambda _: spoil(module, "6.bias"))


def test_every_epoch_is_told(images):
    events, module = [], network()
    train(images, module, epochs=3, batch_size=16, emit=events.append, augment="none")
    epochs = [event for event in events if event["event"] == "epoch"]
    assert [(e["stage"], e["epoch"], e["epochs"], e["step"], e["steps"]) for e in epochs] == [
        ("distill", i, 3, 4, 4) for i in (1, 2, 3)
    ]
    last = epochs[-1]
    assert last["val_accuracy"] == accuracy(predict(module, images, images.val, CPU), images.val.labels)
    assert last["left_s"] == 0
    assert last["images_per_s"] == pytest.approx(64 / last["seconds"])
    assert 0 < last["loss"] < 5
    assert epochs[0]["left_s"] > 0


def test_long_epochs_are_told_on_the_way(images, monkeypatch):
    monkeypatch.setattr("compress.training.loop.STEP_EVENT_EVERY_S", -1)
    events = []
    train(images, network(), epochs=1, batch_size=16, emit=events.append)
    assert [(e["event"], e["step"]) for e in events] == [*(("step", i) for i in (1, 2, 3, 4)), ("epoch", 4)]
    assert "val_accuracy" not in events[0]


def test_predicting_leaves_every_layer_in_its_mode(images):
    module = network().train()
    module[1].eval()
    logits = predict(module, images, images.test, CPU, batch=24)
    assert [layer.training for layer in module] == [True, False, True, True, True, True, True]
    assert logits.shape == (64, 4)
    whole = predict(copy.deepcopy(module), images, images.test, CPU, batch=64)
    torch.testing.assert_close(logits, whole)


def test_nothing_to_predict_is_no_error(images):
    empty = Split(InMemory(torch.zeros(0, 3, 16, 16, dtype=torch.uint8)), np.zeros(0, dtype=np.int64))
    logits = predict(network(), images, empty, CPU)
    assert logits.shape == (0, 4)
    assert accuracy(logits, empty.labels) == 0.0
