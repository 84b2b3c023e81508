import math

import numpy as np
import pytest
import torch

from compress.augment import Change, augmented, chosen, draw, views

KINDS = ["none", "shift", "affine", "shift_flip", "crop_flip"]


def seeded(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    return torch.randint(0, 256, (5, 3, 16, 16), generator=seeded(0)).to(torch.uint8)


def ramp(count: int, size: int = 16) -> torch.Tensor:
    """Images that grow brighter from left to right."""
    row = torch.linspace(60, 250, size).to(torch.uint8)
    return row.expand(count, 3, size, size).contiguous()


def sampled(image: np.ndarray, transform: np.ndarray) -> np.ndarray:
    """An image (C, H, W) seen through a 2×3 affine map of coordinates from -1 to 1, bilinear, edges repeated."""
    _, height, width = image.shape
    y, x = np.meshgrid((2 * np.arange(height) + 1) / height - 1, (2 * np.arange(width) + 1) / width - 1, indexing="ij")
    u = transform[0, 0] * x + transform[0, 1] * y + transform[0, 2]
    v = transform[1, 0] * x + transform[1, 1] * y + transform[1, 2]
    column = np.clip(((u + 1) * width - 1) / 2, 0, width - 1)
    row = np.clip(((v + 1) * height - 1) / 2, 0, height - 1)
    top, left = np.floor(row).astype(int), np.floor(column).astype(int)
    down, right = np.minimum(top + 1, height - 1), np.minimum(left + 1, width - 1)
    a, b = row - top, column - left
    image = image.astype(float)
    above = (1 - b) * image[:, top, left] + b * image[:, top, right]
    below = (1 - b) * image[:, down, left] + b * image[:, down, right]
    return (1 - a) * above + a * below


def cut(image: np.ndarray, row: int, column: int, pad: int) -> np.ndarray:
    """An image (C, H, W) framed in black by `pad` pixels, and cut from that row and column on at its own size."""
    framed = np.pad(image, ((0, 0), (pad, pad), (pad, pad)))
    return framed[:, row : row + image.shape[1], column : column + image.shape[2]]


def test_shift_cuts_from_a_black_frame(pictures):
    rows, columns = torch.randint(0, 5, (2, len(pictures), 1), generator=seeded()).numpy()[..., 0]
    expected = [cut(image, y, x, 2) for image, y, x in zip(pictures.numpy(), rows, columns, strict=True)]
    result = augmented(pictures, "shift", mirror=True, random=seeded())
    np.testing.assert_array_equal(result.numpy(), np.stack(expected))


def test_shift_flip_mirrors_what_is_drawn_after_the_cuts(pictures):
    random = seeded()
    rows, columns = torch.randint(0, 5, (2, len(pictures), 1), generator=random).numpy()[..., 0]
    drawn = torch.rand(len(pictures), generator=random).numpy() < 0.5
    assert 0 < drawn.sum() < len(drawn)
    cuts = [cut(image, y, x, 2) for image, y, x in zip(pictures.numpy(), rows, columns, strict=True)]
    expected = [image[:, :, ::-1] if turn else image for image, turn in zip(cuts, drawn, strict=True)]
    result = augmented(pictures, "shift_flip", mirror=True, random=seeded())
    np.testing.assert_array_equal(result.numpy(), np.stack(expected))


def test_affine_is_a_small_move_turn_and_zoom(pictures):
    angle, zoom, x, y = 2 * torch.rand(4, len(pictures), generator=seeded()).double().numpy() - 1
    result = augmented(pictures, "affine", mirror=True, random=seeded()).numpy().astype(int)
    for i, image in enumerate(pictures.numpy()):
        a, z = math.radians(10 * angle[i]), 1 + 0.1 * zoom[i]
        moved = np.array([
            [z * np.cos(a), -z * np.sin(a), x[i] / 8],
            [z * np.sin(a), z * np.cos(a), y[i] / 8],
        ])  # fmt: skip
        assert np.abs(result[i] - sampled(image, moved)).max() < 0.51


def test_crops_take_a_part_of_the_area_and_of_the_aspect_ratio(pictures):
    random = seeded()
    draws = [torch.rand(len(pictures), generator=random).double().numpy() for _ in range(4)]
    area, ratio = 0.35 + 0.65 * draws[0], np.exp(np.log(3 / 4) + (np.log(4 / 3) - np.log(3 / 4)) * draws[1])
    width, height = np.minimum(np.sqrt(area * ratio), 1), np.minimum(np.sqrt(area / ratio), 1)
    x, y = (1 - width) * (2 * draws[2] - 1), (1 - height) * (2 * draws[3] - 1)
    result = augmented(pictures, "crop_flip", mirror=False, random=seeded()).numpy().astype(int)
    for i, image in enumerate(pictures.numpy()):
        part = np.array([[width[i], 0, x[i]], [0, height[i], y[i]]])
        assert np.abs(result[i] - sampled(image, part)).max() < 0.51


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [1, 3])
def test_bytes_in_bytes_out(kind, channels, pictures):
    grey = pictures[:, :channels]
    result = augmented(grey, kind, mirror=True, random=seeded())
    assert result.shape == grey.shape
    assert result.dtype == torch.uint8


@pytest.mark.parametrize("kind", ["auto", *KINDS])
@pytest.mark.parametrize("size", [16, 96])
def test_what_must_not_be_mirrored_never_is(kind, size):
    images = ramp(40, size)
    rising = augmented(images, kind, mirror=False, random=seeded()).float().mean((1, 2))
    middle = rising[:, size // 4 : -size // 4]  # `shift` brings in black at the sides
    assert (middle[:, -1] > middle[:, 0]).all()


@pytest.mark.parametrize("kind", ["shift_flip", "crop_flip"])
def test_half_of_what_may_be_mirrored_is(kind):
    rising = augmented(ramp(400), kind, mirror=True, random=seeded()).float().mean((1, 2))
    share = (rising[:, 4] > rising[:, 11]).float().mean().item()
    assert 0.4 < share < 0.6


@pytest.mark.parametrize("kind", KINDS)
def test_all_chance_comes_from_the_generator_given(kind, pictures):
    before = torch.get_rng_state()
    first, again = (augmented(pictures, kind, mirror=True, random=seeded(9)) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("kind", "mirror", "size", "expected"),
    [
        ("auto", False, 32, "shift"),
        ("auto", True, 32, "shift_flip"),
        ("auto", True, 96, "crop_flip"),
        ("auto", False, 224, "crop_flip"),
        ("none", True, 224, "none"),
        ("affine", True, 32, "affine"),
    ],
)
def test_auto_looks_at_the_data(kind, mirror, size, expected):
    assert chosen(kind, mirror, size) == expected


@pytest.mark.parametrize(
    ("kind", "mirror", "size", "expected"),
    [
        ("none", True, 32, 1),
        ("shift", True, 32, 81),
        ("shift_flip", True, 32, 162),
        ("shift_flip", False, 32, 81),
        ("auto", True, 32, 162),
        ("auto", False, 16, 25),
        ("auto", True, 96, None),
        ("affine", True, 32, None),
        ("crop_flip", False, 32, None),
        ("shift_flip", True, 7, 2),
    ],
)
def test_views_are_counted(kind, mirror, size, expected):
    assert views(kind, mirror, size) == expected


def test_each_of_the_162_views_is_its_cut_and_its_mirror_image():
    image = torch.randint(0, 256, (3, 32, 32), generator=seeded()).to(torch.uint8)
    change = Change.of_views("shift_flip", True, 32, torch.arange(162))
    cuts = [cut(image.numpy(), y, x, 4) for y in range(9) for x in range(9)]
    expected = np.stack(cuts + [each[:, :, ::-1] for each in cuts])
    assert len(np.unique(expected.reshape(162, -1), axis=0)) == 162
    np.testing.assert_array_equal(change.applied(image.expand(162, 3, 32, 32)).numpy(), expected)
    assert torch.equal(change.views(), torch.arange(162))


@pytest.mark.parametrize("mirror", [True, False])
@pytest.mark.parametrize("kind", ["none", "shift", "shift_flip"])
def test_the_views_of_a_change_make_the_same_change(kind, mirror):
    images = torch.randint(0, 256, (2000, 1, 16, 16), generator=seeded()).to(torch.uint8)
    change = draw(kind, mirror, 16, len(images), seeded())
    again = Change.of_views(kind, mirror, 16, change.views())
    assert torch.equal(again.applied(images), change.applied(images))
    assert change.views().unique().tolist() == list(range(views(kind, mirror, 16)))


@pytest.mark.parametrize("kind", ["affine", "crop_flip"])
def test_endless_views_have_no_index(kind):
    with pytest.raises(ValueError, match=f"no end to the views that {kind}"):
        draw(kind, True, 32, 3, seeded()).views()
    with pytest.raises(ValueError, match=f"no end to the views that {kind}"):
        Change.of_views(kind, True, 32, torch.tensor([0]))


@pytest.mark.parametrize("view", [-1, 162])
def test_a_view_that_is_none_is_refused(view):
    with pytest.raises(ValueError, match="from 0 to 161"):
        Change.of_views("shift_flip", True, 32, torch.tensor([0, view]))


def test_drawn_among_some_views_each_is_as_likely():
    among = torch.tensor([[3, 99, 161], [0, 7, 80]]).repeat(1500, 1)
    drawn = draw("shift_flip", True, 32, 3000, seeded(), among=among).views()
    for image, allowed in enumerate(among[:2].tolist()):
        of_this = drawn[image::2].tolist()
        assert set(of_this) == set(allowed)
        assert all(abs(of_this.count(view) - 500) < 4 * math.sqrt(1500 * 2 / 9) for view in allowed)


@pytest.mark.parametrize(("size", "factor"), [(64, 2), (48, 1.5), (16, 0.5)])
def test_images_of_another_size_move_in_proportion(size, factor):
    images = torch.randint(0, 256, (40, 1, size, size), generator=seeded(1)).to(torch.uint8)
    change = draw("shift_flip", True, 32, 40, seeded())
    pad = int(4 * factor)
    for image, (y, x), turn, got in zip(
        images.numpy(), change.offsets.T.tolist(), change.mirrored, change.applied(images).numpy(), strict=True
    ):
        row, column = (pad + int(np.rint((offset - 4) * factor)) for offset in (y, x))
        expected = cut(image, row, column, pad)
        np.testing.assert_array_equal(got, expected[:, :, ::-1] if turn else expected)


@pytest.mark.parametrize("kind", ["affine", "crop_flip"])
def test_a_smooth_image_of_another_size_shows_the_same_part(kind):
    change = draw(kind, True, 32, 20, seeded())
    waves = [
        (127 + 100 * torch.sin(torch.linspace(-1, 1, size) * 2)).to(torch.uint8).expand(20, 1, size, size)
        for size in (32, 64)
    ]
    small, large = (change.applied(wave.contiguous()).float() for wave in waves)
    averaged = torch.nn.functional.avg_pool2d(large, 2)
    assert (averaged - small)[..., 4:-4, 4:-4].abs().max() < 8
    assert (small - waves[0].float()).abs().max() > 20


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["shift", "shift_flip"])
def test_shifted_images_lie_channels_last(kind, channels, pictures):
    result = augmented(pictures[:, :channels], kind, mirror=True, random=seeded())
    assert result.permute(0, 2, 3, 1).is_contiguous()


@pytest.mark.parametrize("kind", KINDS)
def test_the_images_given_stay_as_they_are(kind, pictures):
    before = pictures.clone()
    augmented(pictures, kind, mirror=True, random=seeded())
    assert torch.equal(pictures, before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", ["shift", "shift_flip"])
def test_a_gpu_cuts_the_same(kind, pictures):
    results = (augmented(images, kind, mirror=True, random=seeded()).cpu() for images in (pictures, pictures.cuda()))
    assert torch.equal(*results)


@pytest.mark.parametrize("kind", ["shift", "shift_flip", "affine", "crop_flip"])
def test_a_device_is_never_asked_for_what_is_on_it(kind):
    """Tensors without values have none to wait for: any look at one would raise."""
    images = torch.empty(4, 3, 32, 32, dtype=torch.uint8, device="meta")
    result = draw(kind, True, 32, 4, seeded()).applied(images)
    assert (result.shape, result.dtype, result.device) == (images.shape, images.dtype, images.device)
