import numpy as np
import pytest
import torch
from PIL import Image

from compress.data import Preprocessing
from compress.data.pictures import in_memory, plain, read


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def shown(picture, tmp_path, name="picture.png", **options):
    """What `read` makes of a picture saved as a file, at 8 × 8."""
    path = tmp_path / name
    picture.save(path, **options)
    return read(str(path), Preprocessing(size=8))


def test_bilinear_enlarging_agrees_with_linear_interpolation():
    ramp = np.array([0, 80, 160, 240], dtype=np.uint8)
    image = np.tile(ramp, (4, 1))[None]
    expected = np.interp((np.arange(8) + 0.5) / 2 - 0.5, np.arange(4), ramp)
    ours = in_memory(image, Preprocessing(size=8, channels=1)).pixels[0, 0].numpy()
    np.testing.assert_allclose(ours, np.tile(expected, (8, 1)), atol=0.5)


def test_nearest_repeats_pixels():
    image = noise(1, 4, 4)
    ours = in_memory(image, Preprocessing(size=8, channels=1, interpolation="nearest")).pixels[0, 0].numpy()
    np.testing.assert_array_equal(ours, image[0].repeat(2, axis=0).repeat(2, axis=1))


def test_bicubic_differs_from_bilinear():
    image = noise(1, 8, 8)
    linear, cubic = (
        in_memory(image, Preprocessing(size=16, interpolation=name)).pixels for name in ("bilinear", "bicubic")
    )
    assert not torch.equal(linear, cubic)


def test_squash_crop_and_letterbox():
    wide = np.full((1, 8, 16), 200, dtype=np.uint8)
    wide[:, :, :4] = wide[:, :, -4:] = 100
    grey = {"size": 8, "channels": 1, "interpolation": "nearest"}
    squash, crop, letterbox = (
        in_memory(wide, Preprocessing(resize=resize, **grey)).pixels[0, 0].numpy()
        for resize in ("squash", "crop", "letterbox")
    )
    row = np.array([100, 100, 200, 200, 200, 200, 100, 100])
    np.testing.assert_array_equal(squash, np.tile(row, (8, 1)))
    np.testing.assert_array_equal(crop, np.full((8, 8), 200))
    np.testing.assert_array_equal(letterbox[2:6], np.tile(row, (4, 1)))
    assert not letterbox[[0, 1, 6, 7]].any()


def test_letterbox_of_a_hairline():
    line = np.full((1, 1, 300), 255, dtype=np.uint8)
    ours = in_memory(line, Preprocessing(size=8, channels=1, resize="letterbox")).pixels[0, 0].numpy()
    assert (ours == 255).sum() == 8


def test_colour_becomes_grey_by_luma():
    colour = noise(1, 8, 8, 3)
    ours = in_memory(colour, Preprocessing(size=8, channels=1)).pixels[0, 0].numpy()
    np.testing.assert_allclose(ours, colour[0] @ [0.299, 0.587, 0.114], atol=0.51)


def test_grey_becomes_colour_by_repetition():
    grey = noise(2, 8, 8)
    ours = in_memory(grey[..., None], Preprocessing(size=8)).pixels.numpy()
    np.testing.assert_array_equal(ours, grey[:, None].repeat(3, axis=1))


def test_rgb_file(tmp_path):
    pixels = noise(8, 8, 3)
    np.testing.assert_array_equal(shown(Image.fromarray(pixels), tmp_path), pixels.transpose(2, 0, 1))


def test_bilevel_file(tmp_path):
    bits = noise(8, 8) > 127
    ours = shown(Image.fromarray(bits), tmp_path)
    np.testing.assert_array_equal(ours, np.broadcast_to(bits * 255, (3, 8, 8)))


def test_sixteen_bit_file(tmp_path):
    deep = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    for name in ("deep.png", "deep.tif", "deep.pgm"):
        ours = shown(Image.fromarray(deep), tmp_path, name)
        np.testing.assert_allclose(ours[0], deep / 257, atol=0.51)


def test_palette_file(tmp_path):
    picture = Image.fromarray(noise(8, 8) % 3)
    picture.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    expected = np.eye(3, dtype=np.uint8)[np.asarray(picture)] * 255
    np.testing.assert_array_equal(shown(picture, tmp_path), expected.transpose(2, 0, 1))


def test_transparent_palette_entry_shows_white(tmp_path):
    picture = Image.fromarray(noise(8, 8) % 3)
    picture.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    palette = np.array([[255, 0, 0], [255, 255, 255], [0, 0, 255]])
    expected = palette[np.asarray(picture)].transpose(2, 0, 1)
    np.testing.assert_array_equal(shown(picture, tmp_path, transparency=1), expected)
    np.testing.assert_array_equal(shown(picture, tmp_path, transparency=b"\xff\x00\xff"), expected)


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_half_transparent_pixels_are_laid_over_white(tmp_path, mode):
    colour = (100, 128) if mode == "LA" else (100, 100, 100, 128)
    ours = shown(Image.new(mode, (8, 8), colour), tmp_path)
    np.testing.assert_allclose(ours, 100 * 128 / 255 + 255 * 127 / 255, atol=1)


def test_cmyk_jpeg(tmp_path):
    ours = shown(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), tmp_path, "cyan.jpg", quality=95)
    np.testing.assert_allclose(ours.reshape(3, -1).mean(axis=1), [0, 255, 255], atol=3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    # What a viewer shows, by the standard's words for where row 0 and column 0 of the stored picture stand.
    turn = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: np.rot90(a, -1)[:, ::-1][::-1, ::-1],
        8: lambda a: np.rot90(a),
    }[orientation]
    stored = noise(8, 8, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in ("photo.png", "photo.tif"):
        ours = shown(Image.fromarray(stored), tmp_path, name, exif=exif)
        np.testing.assert_array_equal(ours, turn(stored).transpose(2, 0, 1))


def test_damaged_exif_does_not_hide_the_picture(tmp_path):
    ours = shown(Image.new("RGB", (8, 8), "white"), tmp_path, "photo.jpg", exif=b"Exif\0\0garbage, not a TIFF")
    assert ours.min() == 255


def test_floating_point_pixels_are_refused():
    with pytest.raises(ValueError, match="floating-point numbers, whose range is not known"):
        plain(Image.new("F", (8, 8)))


def test_integers_beyond_sixteen_bits_are_refused():
    with pytest.raises(ValueError, match="reach from 70000 to 70000, beyond 16 bits"):
        plain(Image.new("I", (8, 8), 70_000))


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    ours = shown(frames[0], tmp_path, "moving.gif", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(ours[:, 0, 0], [255, 0, 0])
