"""Small pictures for a report: PNG in base64, as they stand in a page."""

import base64
import io

import numpy as np
from PIL import Image
from torch import Tensor

SIDES = (96, 72, 56, 40, 28)
MOST_BYTES = 12_000  # of one PNG; twelve of them are 200 kB as base64


def thumbnail(image: Tensor) -> str:
    """An image (C, H, W) uint8 as PNG in base64: at most 96 pixels wide and high, fewer where that takes too much.

    One channel is grey; of more than three the first three are shown, of two the first.
    """
    channels = image.shape[0]
    pixels = image[:3] if channels >= 3 else image[:1]
    array: np.ndarray = np.ascontiguousarray(pixels.permute(1, 2, 0).cpu().numpy())
    picture = Image.fromarray(array if channels >= 3 else array[:, :, 0])
    content = b""
    for side in SIDES:
        small = picture.copy()
        small.thumbnail((side, side), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        small.save(buffer, format="PNG", optimize=True)
        content = buffer.getvalue()
        if len(content) <= MOST_BYTES:
            break
    return base64.b64encode(content).decode()
