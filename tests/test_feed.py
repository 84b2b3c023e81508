"""Training images on their way to the device: the right ones in the right order, wherever they come from."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from compress.data.base import Data, InMemory, Preprocessing, Subset
from compress.data.files import Files, decoded
from compress.errors import DataError
from compress.training.feed import Feed, Joined, feeds_of, joined

CPU = torch.device("cpu")


def drawn(count: int, seed: int = 0, size: int = 8) -> InMemory:
    random = torch.Generator().manual_seed(seed)
    return InMemory(torch.randint(0, 256, (count, 3, size, size), generator=random).to(torch.uint8))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("files")
    paths = []
    for i, pixels in enumerate(drawn(6, seed=3).pixels):
        paths.append(str(folder / f"{i}.png"))
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(paths[-1])
    return Files(tuple(paths), Preprocessing(size=8))


@pytest.mark.parametrize("indices", [[0, 9, 4, 5, 8, 1], [9, 8, 5], [3, 0], [5, 5, 0, 5], []])
def test_joined_images_come_in_the_order_asked_for(indices: list[int]) -> None:
    first, second = drawn(5), drawn(5, seed=1)
    expected = torch.cat([first.pixels, second.pixels])[indices]
    both = Joined(first, second)
    assert len(both) == 10
    assert torch.equal(both[np.array(indices, dtype=np.int64)], expected)


def test_images_in_memory_and_in_files_can_stand_beside_each_other(files: Files) -> None:
    both = Joined(Subset(drawn(9), np.array([7, 2])), files)
    found = both[np.array([5, 0, 2, 1])]
    assert torch.equal(found[[1, 3]], drawn(9).pixels[[7, 2]])
    assert torch.equal(found[[0, 2]], decoded([files.paths[3], files.paths[0]], files.prep)[0])


@pytest.mark.parametrize("source", ["memory", "subset", "joined", "files"])
def test_a_feed_gives_each_batch_its_images(source: str, files: Files) -> None:
    memory = drawn(10)
    chosen = np.array([9, 1, 4, 7, 0, 2])
    images = {
        "memory": memory,
        "subset": Subset(memory, chosen),
        "joined": Joined(Subset(memory, chosen), drawn(4, seed=1)),
        "files": files,
    }[source]
    batches = torch.split(torch.randperm(6, generator=torch.Generator().manual_seed(0)), 4)
    feed = Feed(images, CPU)
    for _ in range(2):  # an epoch, and another
        found = list(feed(batches))
        assert [len(each) for each in found] == [4, 2]
        assert all(torch.equal(each, images[rows.numpy()]) for each, rows in zip(found, batches, strict=True))
        assert all(each.dtype == torch.uint8 for each in found)


def test_what_is_done_to_a_batch_does_not_reach_the_images() -> None:
    feed = Feed(drawn(4), CPU)
    (batch,) = feed([torch.tensor([0, 1])])
    batch.zero_()
    (again,) = feed([torch.tensor([0, 1])])
    assert torch.equal(again, drawn(4).pixels[:2])


def test_workers_give_the_same_images_and_say_what_they_cannot_read(files: Files, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    broken = replace(files, paths=(*files.paths, str(tmp_path / "bad.png")))
    good = [torch.tensor(rows) for rows in ([4, 0], [1, 5], [2, 3])]
    found: list[torch.Tensor] = []
    with pytest.raises(DataError) as caught:
        found.extend(Feed(broken, CPU, workers=2)([*good, torch.tensor([0, 6])]))
    assert len(found) == 3
    assert all(torch.equal(each, files[rows.numpy()]) for each, rows in zip(found, good, strict=True))
    assert str(caught.value) == (
        f"1 image file cannot be read; repair or remove:\n  {tmp_path / 'bad.png'}: not an image in a known format\n"
        "or leave out with `damaged: skip`"
    )


def test_unlabelled_images_follow_the_labelled_ones(images: Data) -> None:
    more = drawn(5, size=16)
    data = replace(images, unlabelled=more)
    assert joined(images) is images.train.images
    assert (data.samples, len(joined(data))) == (69, 69)
    assert data.labels[:64].tolist() == images.train.labels.tolist()
    assert data.labels[64:].tolist() == [-1] * 5
    assert torch.equal(joined(data)[np.array([66, 3])], torch.stack([more.pixels[2], images.train.images[[3]][0]]))
    few = data.smaller(3)
    assert (few.samples, few.labels.tolist()[3:]) == (6, [-1] * 3)
    assert torch.equal(joined(few)[np.array([5])], more.pixels[2:3])


def test_there_is_a_feed_for_the_student_and_for_each_view(images: Data) -> None:
    view = replace(images, train=images.val)
    feeds = feeds_of(images, [None, view, None, images], CPU)
    rows = torch.tensor([3, 1])
    found = [next(iter(feed([rows]))) for feed in feeds]
    expected = [images.train, images.val, images.train]
    assert all(torch.equal(each, split.images[rows.numpy()]) for each, split in zip(found, expected, strict=True))
