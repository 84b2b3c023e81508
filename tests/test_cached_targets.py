"""A teacher's logits kept on disk: the same as the teacher's own, and never those of a file that is not what it was."""

import errno
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from compress.augment import Change, draw
from compress.data.base import InMemory
from compress.errors import ModelError, ResourceError
from compress.models.mobilenet_v1 import MobileNetV1
from compress.net import Spec, build
from compress.training import targets
from compress.training.targets import Targets, compute, find, layout_for

IMAGES, CLASSES = 7, 20
VIEWS_162 = {"kind": "shift_flip", "mirror": True, "size": 32}
VIEWS_50 = VIEWS_162 | {"size": 16}


def drawn(size: int, count: int = IMAGES) -> InMemory:
    random = torch.Generator().manual_seed(3)
    return InMemory(torch.randint(0, 256, (count, 3, size, size), generator=random).to(torch.uint8))


def plain(images: Tensor) -> Tensor:
    """Logits that need no net: where the first pixels are bright."""
    return images[:, 0].flatten(1)[:, :CLASSES].float() / 16


@pytest.fixture(scope="module")
def teacher():
    net = build(Spec(architecture=MobileNetV1(width=0.25), classes=CLASSES, image=(3, 32, 32)), seed=1).module.eval()
    with torch.no_grad():
        size = net(torch.zeros(1, 3, 32, 32) + torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
        gain = 12 / size.abs().max()  # an untrained net's logits are all about zero

    def ask(images: Tensor) -> Tensor:
        return gain * net(images.float() / 255)

    return ask


@pytest.fixture
def small(tmp_path) -> Targets:
    return compute(tmp_path, "k", plain, drawn(16), CLASSES, **VIEWS_50, batch=33)


def online(ask, images: InMemory, rows: Tensor, views: Tensor, size: int) -> np.ndarray:
    with torch.no_grad():
        return ask(Change.of_views("shift_flip", True, size, views).applied(images.pixels[rows])).numpy()


@pytest.fixture(scope="module")
def whole(tmp_path_factory, teacher):
    """All 162 views of a few images, and what the teacher says of them when it is asked."""
    kept = compute(tmp_path_factory.mktemp("whole"), "k", teacher, drawn(32), CLASSES, **VIEWS_162, batch=100)
    rows, views = torch.arange(IMAGES).repeat_interleave(162), torch.arange(162).repeat(IMAGES)
    return kept, rows, views, online(teacher, drawn(32), rows, views, 32)


def test_targets_on_all_views_are_the_teachers(whole):
    kept, rows, views, expected = whole
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    result = kept.logits(rows[order], views[order])
    assert result.dtype == torch.float32
    assert np.abs(expected).max() > 8
    assert np.abs(result.numpy() - expected[order]).max() <= 1e-2
    assert (result.numpy().argmax(1) == expected[order].argmax(1)).mean() >= 0.9999


def test_a_change_as_drawn_finds_its_targets(whole, teacher):
    kept = whole[0]
    rows = torch.tensor([4, 4, 0, 6, 2])
    change = draw(**VIEWS_162, count=5, random=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = teacher(change.applied(drawn(32).pixels[rows])).numpy()
    assert np.abs(kept.logits(rows, change.views()).numpy() - expected).max() <= 1e-2


def test_some_views_are_within_half_a_step_of_the_teachers(teacher, tmp_path):
    kept = compute(tmp_path, "k", teacher, drawn(32), CLASSES, **VIEWS_162, views=8, seed=5, batch=9)
    assert kept.views_of.shape == (IMAGES, 8)
    assert all(len(set(of_one)) == 8 for of_one in kept.views_of.tolist())
    assert len({tuple(sorted(of_one)) for of_one in kept.views_of.tolist()}) == IMAGES
    rows, views = torch.arange(IMAGES).repeat_interleave(8), kept.views_of.flatten()
    expected = online(teacher, drawn(32), rows, views, 32)
    off = np.abs(kept.logits(rows, views).numpy() - expected)
    step = (expected.max(1) - expected.min(1)) / 255
    assert (off <= 1.01 * step[:, None]).all()
    assert (off <= 0.501 * step[:, None]).mean() > 0.99
    assert (kept.logits(rows, views).numpy().argmax(1) == expected.argmax(1)).all()


def test_a_change_drawn_among_some_views_finds_its_targets(tmp_path):
    kept = compute(tmp_path, "k", plain, drawn(16), CLASSES, **VIEWS_50, views=6)
    rows = torch.randint(0, IMAGES, (40,), generator=torch.Generator().manual_seed(1))
    change = draw(**VIEWS_50, count=40, random=torch.Generator().manual_seed(2), among=kept.views_of[rows])
    expected = plain(change.applied(drawn(16).pixels[rows])).numpy()
    off = np.abs(kept.logits(rows, change.views()).numpy() - expected)
    assert (off <= 1.01 * np.ptp(expected, 1)[:, None] / 255).all()


def test_targets_of_one_image_and_one_view(teacher, tmp_path):
    kept = compute(tmp_path, "k", teacher, drawn(32, 1), CLASSES, **VIEWS_162, views=1)
    view = kept.views_of[0]
    expected = online(teacher, drawn(32, 1), torch.tensor([0]), view, 32)
    assert np.abs(kept.logits(torch.tensor([0]), view).numpy() - expected).max() < (np.ptp(expected) / 255)


def test_every_batch_size_and_folder_gives_the_same_file(tmp_path):
    for batch in (1, 33, 50, 5000):
        compute(tmp_path / str(batch), "k", plain, drawn(16), CLASSES, **VIEWS_50, views=6, batch=batch)
    contents = {(tmp_path / str(batch) / "k.targets").read_bytes() for batch in (1, 33, 50, 5000)}
    assert len(contents) == 1


def test_the_views_kept_follow_from_the_seed(tmp_path):
    first, same, other = (
        compute(tmp_path / str(i), "k", plain, drawn(16), CLASSES, **VIEWS_50, views=6, seed=seed).views_of
        for i, seed in enumerate([1, 1, 2])
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_a_teacher_that_sees_larger_images_sees_the_same_part(tmp_path):
    """One that looks at every second pixel of images twice as large says what one of the small images does."""
    large = InMemory(drawn(16).pixels.repeat_interleave(2, 2).repeat_interleave(2, 3))
    kept = compute(tmp_path, "k", lambda images: plain(images[..., ::2, ::2]), large, CLASSES, **VIEWS_50)
    rows, views = torch.arange(IMAGES).repeat_interleave(50), torch.arange(50).repeat(IMAGES)
    assert np.abs(kept.logits(rows, views).numpy() - online(plain, drawn(16), rows, views, 16)).max() <= 1e-2


@pytest.mark.parametrize("views", [None, 50, 400])
def test_as_many_views_as_there_are_or_more_are_all(views):
    layout = layout_for(IMAGES, CLASSES, "shift_flip", True, 16, views)
    assert (layout.views, layout.partial) == (50, False)
    assert layout.bytes == IMAGES * 50 * CLASSES * 2


def test_sizes_on_disk_are_those_foretold(small, tmp_path):
    assert (tmp_path / "k.targets").stat().st_size == layout_for(IMAGES, CLASSES, "auto", True, 16, None).bytes
    compute(tmp_path, "p", plain, drawn(16), CLASSES, **VIEWS_50, views=6)
    assert (tmp_path / "p.targets").stat().st_size == IMAGES * 6 * (4 + 8 + CLASSES)


def test_what_was_computed_is_found(small, tmp_path):
    found, reason = find(tmp_path, "k")
    assert reason is None
    assert torch.equal(found.records, small.records)
    assert found.views_of is None


def test_some_views_are_found(tmp_path):
    computed = compute(tmp_path, "k", plain, drawn(16), CLASSES, **VIEWS_50, views=6)
    found, _ = find(tmp_path, "k")
    assert torch.equal(found.views_of, computed.views_of)
    assert torch.equal(found.records, computed.records)


def test_where_there_is_nothing_nothing_is_found(tmp_path):
    assert find(tmp_path / "none", "k") == (None, None)


@pytest.mark.parametrize("where", [0, 1, 4001, -1])
def test_a_flipped_bit_is_found_out(where, small, tmp_path):
    file = tmp_path / "k.targets"
    content = bytearray(file.read_bytes())
    content[where] ^= 4
    file.write_bytes(content)
    found, reason = find(tmp_path, "k")
    assert found is None
    assert "k.targets is damaged: its SHA-256" in reason


def test_no_change_of_a_byte_of_the_description_passes(small, tmp_path):
    file = tmp_path / "k.targets.json"
    good = file.read_bytes()
    known = json.loads(good)
    for i in range(len(good)):
        file.write_bytes(good[:i] + bytes([good[i] ^ 1]) + good[i + 1 :])
        found, reason = find(tmp_path, "k")
        try:
            same = json.loads(file.read_bytes()) == known  # the blanks between
        except ValueError:
            same = False
        assert (found is not None and reason is None) if same else (found is None and "k.targets" in reason)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"[" * 100_000, b"\xff\xfe", b'{"layout": 3}'])
def test_a_description_that_is_none_is_found_out(content, small, tmp_path):
    (tmp_path / "k.targets.json").write_bytes(content)
    found, reason = find(tmp_path, "k")
    assert found is None
    assert "missing or damaged" in reason


@pytest.mark.parametrize("length", [0, 1, IMAGES * 50 * CLASSES * 2 - 1])
def test_a_truncated_file_is_found_out(length, small, tmp_path):
    os.truncate(tmp_path / "k.targets", length)
    found, reason = find(tmp_path, "k")
    assert found is None
    assert f"has {length:,} bytes where {IMAGES * 50 * CLASSES * 2:,} are due" in reason


@pytest.mark.parametrize("gone", ["k.targets", "k.targets.json"])
def test_half_of_a_pair_is_not_trusted(gone, small, tmp_path):
    (tmp_path / gone).unlink()
    found, reason = find(tmp_path, "k")
    assert found is None
    assert "missing or damaged" in reason


def test_anothers_file_under_this_name_is_found_out(tmp_path):
    compute(tmp_path, "other", plain, drawn(16), CLASSES, **VIEWS_50)
    for ending in ("targets", "targets.json"):
        (tmp_path / f"other.{ending}").rename(tmp_path / f"k.{ending}")
    found, reason = find(tmp_path, "k")
    assert found is None
    assert "made by another teacher" in reason


def test_what_is_not_trusted_is_replaced(small, tmp_path):
    good = small.records.clone()  # no longer the file, whose mapped pages go when it is cut
    os.truncate(tmp_path / "k.targets", 5)
    compute(tmp_path, "k", plain, drawn(16), CLASSES, **VIEWS_50)
    found, reason = find(tmp_path, "k")
    assert reason is None
    assert torch.equal(found.records, good)


def never(images: Tensor) -> Tensor:
    raise AssertionError("the teacher was asked")


@pytest.mark.parametrize(
    ("free", "views", "advice"),
    [(9000, None, "set `views` to at most 40"), (800, 6, "set `views` to at most 3"), (0, 6, "on a larger disk")],
)
def test_a_disk_too_small_is_said_before_the_teacher_is_asked(free, views, advice, monkeypatch, tmp_path):
    monkeypatch.setattr("compress.training.target_files.free_bytes", lambda folder: free)
    needed = IMAGES * (50 * 2 * CLASSES if views is None else views * (CLASSES + 12))
    with pytest.raises(ResourceError) as caught:
        compute(tmp_path / "run", "k", never, drawn(16), CLASSES, **VIEWS_50, views=views)
    for said in (f"{needed:,} bytes", f"{free:,} are free", advice, "`targets: online`"):
        assert said in str(caught.value)


def test_a_disk_that_is_just_large_enough_serves(monkeypatch, tmp_path):
    monkeypatch.setattr("compress.training.target_files.free_bytes", lambda folder: IMAGES * 50 * 2 * CLASSES)
    compute(tmp_path, "k", plain, drawn(16), CLASSES, **VIEWS_50)
    assert (tmp_path / "k.targets").stat().st_size == IMAGES * 50 * 2 * CLASSES


def test_a_disk_that_fills_up_leaves_nothing(monkeypatch, tmp_path):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match=r"k\.targets cannot be written: No space left on device"):
        compute(tmp_path, "k", plain, drawn(16), CLASSES, **VIEWS_50)
    assert [*tmp_path.iterdir()] == []


def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(ResourceError, match="cannot be written"):
        compute(tmp_path / "run", "k", never, drawn(16), CLASSES, **VIEWS_50)


def test_an_interrupted_computation_leaves_nothing(tmp_path):
    calls = []

    def interrupted(images: Tensor) -> Tensor:
        calls.append(len(images))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return plain(images)

    with pytest.raises(KeyboardInterrupt):
        compute(tmp_path, "k", interrupted, drawn(16), CLASSES, **VIEWS_50, batch=40)
    assert calls == [40, 40, 40]
    assert [*tmp_path.iterdir()] == []


KILLED = """
import os, signal, sys, torch
from pathlib import Path
from compress.data.base import InMemory
from compress.training.targets import compute
calls = []
def ask(images):
    calls.append(1)
    if len(calls) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return torch.zeros(len(images), 20)
images = InMemory(torch.zeros(7, 3, 16, 16, dtype=torch.uint8))
compute(Path(sys.argv[1]), "k", ask, images, 20, kind="shift_flip", mirror=True, size=16, batch=40)
"""


def test_a_killed_computation_leaves_nothing_under_its_name(tmp_path):
    code = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=Path(__file__).parent.parent).returncode
    assert code == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == ["k.targets.unfinished"]
    assert find(tmp_path, "k") == (None, None)
    compute(tmp_path, "k", plain, drawn(16), CLASSES, **VIEWS_50)
    assert {path.name for path in tmp_path.iterdir()} == {"k.targets", "k.targets.json"}


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1e5])
def test_logits_that_cannot_be_kept_name_their_images(bad, tmp_path):
    def broken(images: Tensor) -> Tensor:
        broken.calls += 1
        logits = plain(images)
        if broken.calls == 4:
            logits[0, 3] = bad
        return logits

    broken.calls = 0
    with pytest.raises(ModelError, match=r"on training images 3 to 3 is (nan|inf|100000), and below 60000"):
        compute(tmp_path, "k", broken, drawn(16), CLASSES, **VIEWS_50, batch=50)
    assert [*tmp_path.iterdir()] == []


def test_a_teacher_of_other_classes_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"are \(50, 20\) where \(50, 10\) are due"):
        compute(tmp_path, "k", plain, drawn(16), 10, **VIEWS_50, batch=50)


@pytest.mark.parametrize("kind", ["affine", "crop_flip"])
def test_endless_views_are_refused(kind, tmp_path):
    with pytest.raises(ValueError, match=f"no end to the views that {kind}"):
        compute(tmp_path, "k", never, drawn(16), CLASSES, kind=kind, mirror=True, size=16)


def test_a_view_that_is_not_there_is_refused(small, tmp_path):
    with pytest.raises(ValueError, match="not all of these views are kept"):
        small.logits(torch.tensor([0, 1]), torch.tensor([0, 50]))
    few = compute(tmp_path, "p", plain, drawn(16), CLASSES, **VIEWS_50, views=6)
    other = next(view for view in range(50) if view not in few.views_of[0].tolist())
    with pytest.raises(ValueError, match="draw among"):
        few.logits(torch.tensor([0]), torch.tensor([other]))


def test_events_say_how_far_it_is(monkeypatch, tmp_path):
    monkeypatch.setattr(targets, "EVENT_EVERY_S", 0)
    events = []
    compute(tmp_path, "k", plain, drawn(16), CLASSES, **VIEWS_50, batch=100, emit=events.append)
    assert [event["done"] for event in events] == [100, 200, 300, 350]
    assert all(event == {"event": "targets", "done": event["done"], "total": 350, "bytes": 14_000} for event in events)


def test_the_teacher_gets_batches_and_no_gradients(tmp_path):
    sizes, weight = [], torch.ones((), requires_grad=True)

    def ask(images: Tensor) -> Tensor:
        assert images.dtype == torch.uint8
        sizes.append(len(images))
        return weight * plain(images)

    compute(tmp_path, "k", ask, drawn(16), CLASSES, **VIEWS_50, batch=64)
    assert sizes == [64] * 5 + [30]


def test_writing_into_targets_never_reaches_the_file(small, tmp_path):
    before = (tmp_path / "k.targets").read_bytes()
    small.records.zero_()
    assert (tmp_path / "k.targets").read_bytes() == before


def test_on_the_cpu_nothing_is_copied(small):
    assert small.to(torch.device("cpu")).records.data_ptr() == small.records.data_ptr()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("views", [None, 6])
def test_a_gpu_gives_the_same(views, tmp_path):
    device = torch.device("cuda")
    kept = compute(tmp_path, "k", plain, drawn(16), CLASSES, **VIEWS_50, views=views)
    there = compute(tmp_path / "gpu", "k", plain, drawn(16), CLASSES, **VIEWS_50, views=views, device=device)
    assert torch.equal(kept.records, there.records)
    rows = torch.tensor([0, 5, 6])
    which = torch.tensor([3, 4, 0]) if views is None else kept.views_of[rows, torch.tensor([0, 5, 1])]
    for resident in (kept.to(device), replace(kept, device=device)):
        result = resident.logits(rows, which)
        assert result.device.type == "cuda"
        assert torch.equal(result.cpu(), kept.logits(rows, which))
