import math

import numpy as np
import pytest
import torch

from compress.augment import augmented, chosen, mirrored, resized_crops, shifted, turned

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


def test_shift_cuts_from_a_black_frame(pictures):
    pad = 2
    rows, columns = torch.randint(0, 2 * pad + 1, (2, len(pictures), 1), generator=seeded()).numpy()[..., 0]
    framed = np.pad(pictures.numpy(), ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    expected = [framed[i, :, y : y + 16, x : x + 16] for i, (y, x) in enumerate(zip(rows, columns, strict=True))]
    np.testing.assert_array_equal(shifted(pictures, pad, seeded()).numpy(), np.stack(expected))


def test_mirrored_turns_the_drawn_ones(pictures):
    drawn = torch.rand(len(pictures), generator=seeded()).numpy() < 0.5
    assert 0 < drawn.sum() < len(drawn)
    expected = [image[:, :, ::-1] if turn else image for image, turn in zip(pictures.numpy(), drawn, strict=True)]
    np.testing.assert_array_equal(mirrored(pictures, seeded()).numpy(), np.stack(expected))


def test_affine_is_a_small_move_turn_and_zoom(pictures):
    angle, zoom, x, y = 2 * torch.rand(4, len(pictures), generator=seeded()).double().numpy() - 1
    result = turned(pictures, seeded()).numpy().astype(int)
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
    result = resized_crops(pictures, seeded()).numpy().astype(int)
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
