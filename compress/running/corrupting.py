"""How the nets of a run hold out on corrupted test images: teachers, baseline and students beside each other."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from compress.data.base import Data
from compress.events import Listener, ignore
from compress.measure.corruptions import Corruption
from compress.measure.robustness import Corrupter, Robustness, mean_top1
from compress.report import UnderCorruption
from compress.running.proof import Proof, Prover


@dataclass(frozen=True)
class Subject:
    """A net's name, its file's proof, the images that it sees, and the folder where its figures are kept."""

    net: str
    proof: Proof
    data: Data
    kept: Path


def under_corruption(
    settings: Robustness, subjects: Sequence[Subject], prover: Prover, seed: int, tell: Listener = ignore
) -> tuple[UnderCorruption, ...]:
    """A line for each net, in order; none where there are no test images.

    A net that sees other images than the rest is measured on its own, corrupted as fits their size.
    """
    found: dict[str, dict[Corruption, float]] = {}
    for data in {id(subject.data): subject.data for subject in subjects}.values():
        those = [subject for subject in subjects if subject.data is data and len(data.test)]
        corrupter = Corrupter(data, settings, prover.config.input, seed, prover.threads, tell)
        files = {subject.net: prover.out / subject.proof.onnx for subject in those}
        found |= corrupter(files, {subject.net: subject.kept for subject in those})
    return tuple(
        UnderCorruption(
            net=subject.net,
            clean=subject.proof.accuracy.top1_onnx,
            noise=found[subject.net].get("noise"),
            blur=found[subject.net].get("blur"),
            contrast=found[subject.net].get("contrast"),
            mean=mean_top1(found[subject.net]),
            severity=settings.severity,
        )
        for subject in subjects
        if subject.net in found
    )
