"""Common corruptions of images: noise, blur and loss of contrast, each in five severities.

Hendrycks & Dietterich 2019, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations",
arXiv:1903.12261, appendix B. The paper names the corruptions; their strengths are those in the code that its authors
made ImageNet-C (224 pixels), Tiny-ImageNet-C (64) and CIFAR-10-C (32) with, whose pixels are cut off to whole numbers.
"""

import math
from typing import Literal, get_args

import numpy as np

Corruption = Literal["noise", "blur", "contrast"]
CORRUPTIONS: tuple[Corruption, ...] = get_args(Corruption)
SEVERITIES = 5

# For images of so many pixels a side: severities 1 to 5 of each. `noise` is a standard deviation in units of the 0..1
# range, `blur` one in pixels, `contrast` the factor that is left of the distance to the mean.
PUBLISHED: dict[int, dict[Corruption, tuple[float, ...]]] = {
    32: {
        "noise": (0.04, 0.06, 0.08, 0.09, 0.10),
        "blur": (0.4, 0.6, 0.7, 0.8, 1.0),
        "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
    },
    64: {
        "noise": (0.04, 0.08, 0.12, 0.15, 0.18),
        "blur": (0.5, 0.75, 1.0, 1.25, 1.5),
        "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),
    },
    224: {
        "noise": (0.08, 0.12, 0.18, 0.26, 0.38),
        "blur": (1.0, 2.0, 3.0, 4.0, 6.0),
        "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),
    },
}
REACH = 4.0  # standard deviations after which the blur's kernel ends
ROUNDING = 1e-3  # what float32 may take from a whole number must not cost it a whole level


def published_size(pixels: int) -> int:
    """The size for which strengths were published that is nearest in ratio to images of so many pixels a side."""
    return min(PUBLISHED, key=lambda size: abs(math.log(size / pixels)))


def corrupted(
    images: np.ndarray, corruption: Corruption, severity: int, random: np.random.Generator | None = None
) -> np.ndarray:
    """uint8 images (n, C, H, W) under a corruption of severity 1 to 5, as uint8 of the same shape.

    `noise` adds to every value an independent normal one, drawn from `random`, which it needs; images drawn one batch
    after another get what they get all at once. `blur` convolves with a Gaussian, border pixels repeated. `contrast`
    draws all values of a channel towards their mean in that image. The input is left as it is.
    """
    strength = PUBLISHED[published_size(min(images.shape[2:]))][corruption][severity - 1]
    pixels = images.astype(np.float32)
    if corruption == "noise":
        assert random is not None, "noise needs a generator"
        pixels += 255 * strength * random.standard_normal(pixels.shape, dtype=np.float32)
    elif corruption == "blur":
        from scipy.ndimage import gaussian_filter  # here, because reading a pipeline should not wait for it

        pixels = gaussian_filter(pixels, (0, 0, strength, strength), mode="nearest", truncate=REACH)
    else:
        mean = pixels.mean(axis=(2, 3), keepdims=True, dtype=np.float64).astype(np.float32)
        pixels = (pixels - mean) * strength + mean
    whole: np.ndarray = np.clip(pixels + ROUNDING, 0, 255).astype(np.uint8)
    return whole
