"""How often a net is right, and how sure one can be of that."""

import math
from dataclasses import dataclass

import numpy as np

Z_95 = 1.959963984540054  # the normal distribution's 97.5 % quantile


def top_k(logits: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Share of images (per cent) whose label is among the k largest of `logits` (n, classes); 0 for no images.

    With fewer than k classes it is the share for all of them. Ties count for the class with the lower index.
    """
    if not len(labels):
        return 0.0
    best = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    return 100 * float((best == labels[:, None]).any(axis=1).mean())


def wilson(top1: float, samples: int) -> tuple[float, float]:
    """The 95 % score interval (Wilson 1927, JASA 22:209, eq. 3) of an accuracy in per cent, as (low, high)."""
    if not samples:
        return 0.0, 100.0
    p, z = top1 / 100, Z_95
    centre = p + z * z / (2 * samples)
    spread = z * math.sqrt(p * (1 - p) / samples + z * z / (4 * samples**2))
    scale = 100 / (1 + z * z / samples)
    return max(0.0, (centre - spread) * scale), min(100.0, (centre + spread) * scale)


@dataclass(frozen=True)
class Accuracy:
    """What a PyTorch net and its file say about the test images; shares in per cent."""

    top1: float
    top1_low: float
    top1_high: float
    top1_onnx: float
    top5: float
    agreement: float
    samples: int


def judge(torch_logits: np.ndarray, onnx_logits: np.ndarray, labels: np.ndarray) -> Accuracy:
    """Compare a net's and its file's logits (n, classes) with the labels (n,) and with each other."""
    top1 = top_k(torch_logits, labels, 1)
    same = torch_logits.argmax(1) == onnx_logits.argmax(1)
    low, high = wilson(top1, len(labels))
    return Accuracy(
        top1=top1,
        top1_low=low,
        top1_high=high,
        top1_onnx=top_k(onnx_logits, labels, 1),
        top5=top_k(onnx_logits, labels, 5),
        agreement=100 * float(same.mean()) if len(labels) else 0.0,
        samples=len(labels),
    )
