"""From a picture, in a file or an array, to the uint8 pixels that a net sees."""

import os
import stat
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from compress.data.base import InMemory, Preprocessing
from compress.files.image_files import formats

FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}

# What Pillow's decoders raise for damaged files, as far as their source shows.
UNREADABLE = (
    OSError,
    ValueError,
    SyntaxError,
    TypeError,
    AttributeError,
    RuntimeError,
    ArithmeticError,
    LookupError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)
MAX_PIXELS = 2**26  # 8192 x 8192; a decoded one takes 256 MiB
MAX_BYTES = 2**29  # of a file, which some decoders take into memory whole

# Pillow warns of a bomb and goes on decoding it, up to twice the size that it warns of.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


def read(path: str, prep: Preprocessing) -> np.ndarray:
    """The picture in a file as uint8 (channels, size, size), upright as its EXIF orientation says.

    Raises one of UNREADABLE where the file cannot be decoded; `reason` puts it into words. Of an animation it
    reads the first frame.
    """
    with opened(path) as picture:
        picture.load()
        return pixels(plain(upright(picture)), prep)


def try_out(path: str) -> None:
    """Decode a picture only to see whether it can be, as cheaply as its format allows; raises like `read`."""
    with opened(path) as picture:
        picture.draft(None, (1, 1))  # of a JPEG all bytes are read, but an eighth of the pixels made
        picture.load()
        plain(upright(picture))


@contextmanager
def opened(path: str) -> Iterator[Image.Image]:
    """A picture of which the header is read; raises one of UNREADABLE for what is never decoded."""
    require_file(path)
    with Image.open(path, formats=formats()) as picture:
        if picture.width * picture.height > MAX_PIXELS:
            raise ValueError(
                f"it has {picture.width} x {picture.height} pixels, more than are decoded ({MAX_PIXELS:,})"
            )
        yield picture


def require_file(path: str) -> int:
    """The size of an ordinary file in bytes, between 1 and `MAX_BYTES`; raises OSError, or ValueError for any other."""
    about = os.stat(path)
    if not stat.S_ISREG(about.st_mode):
        raise ValueError("it is no ordinary file")  # reading a pipe would never end
    if about.st_size == 0:
        raise ValueError("the file is empty")
    if about.st_size > MAX_BYTES:
        raise ValueError(f"the file has {about.st_size:,} bytes, more than are read ({MAX_BYTES:,})")
    return about.st_size


def reason(error: Exception) -> str:
    """Why a picture could not be read, in a few words."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image in a known format"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__


def upright(picture: Image.Image) -> Image.Image:
    """The picture turned as its EXIF orientation says."""
    try:
        return ImageOps.exif_transpose(picture)
    except UNREADABLE:
        return picture  # damaged EXIF says nothing about the orientation, and the pixels have been read


def plain(picture: Image.Image) -> Image.Image:
    """Any of Pillow's modes as 8-bit grey (`L`) or `RGB`; what is transparent shows white, as on a page.

    Raises ValueError for pixels whose range is unknown.
    """
    if picture.mode == "I" or picture.mode.startswith("I;16"):
        return _eight_bits(picture)
    if picture.mode == "F":
        raise ValueError("its pixels are floating-point numbers, whose range is not known")
    if picture.has_transparency_data:
        page = Image.new("RGBA", picture.size, "white")
        page.alpha_composite(picture.convert("RGBA"))
        return page.convert("RGB")
    return picture.convert("L" if picture.mode in ("1", "L") else "RGB")


def _eight_bits(picture: Image.Image) -> Image.Image:
    """16-bit grey, which Pillow's own conversion would clip at 255, scaled from 0..65535 to 0..255."""
    deep = np.asarray(picture).astype(np.int64)
    if deep.min() < 0 or deep.max() > 65535:
        raise ValueError(f"its pixels reach from {deep.min()} to {deep.max()}, beyond 16 bits")
    return Image.fromarray(((deep + 128) // 257).astype(np.uint8))


def pixels(picture: Image.Image, prep: Preprocessing) -> np.ndarray:
    """An `L` or `RGB` picture as uint8 (channels, size, size).

    Grey becomes colour by repetition, colour becomes grey by ITU-R BT.601 luma.
    """
    if prep.channels == 1:
        picture = picture.convert("L")
    array = np.asarray(_fit(picture, prep))
    planes = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    return np.broadcast_to(planes, (prep.channels, prep.size, prep.size))


def _fit(picture: Image.Image, prep: Preprocessing) -> Image.Image:
    """The picture at size × size; see `Preprocessing.resize`."""
    size, (width, height), kernel = prep.size, picture.size, FILTERS[prep.interpolation]
    if prep.resize == "crop":
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        return picture.resize((size, size), kernel, box=(left, top, left + side, top + side))
    if prep.resize == "letterbox":
        scale = size / max(width, height)
        inner = max(1, round(width * scale)), max(1, round(height * scale))
        canvas = Image.new(picture.mode, (size, size))
        canvas.paste(picture.resize(inner, kernel), ((size - inner[0]) // 2, (size - inner[1]) // 2))
        return canvas
    return picture.resize((size, size), kernel)


def in_memory(images: np.ndarray, prep: Preprocessing) -> InMemory:
    """uint8 images (n, H, W), (n, H, W, 1) or (n, H, W, 3) at the net's size and channels."""
    if images.ndim == 4 and images.shape[3] == 1:
        images = images[..., 0]
    fitted = np.empty((len(images), prep.channels, prep.size, prep.size), dtype=np.uint8)
    for slot, image in zip(fitted, images, strict=True):
        slot[:] = pixels(Image.fromarray(image), prep)
    return InMemory(torch.from_numpy(fitted))
