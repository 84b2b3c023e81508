"""What several seeds of one pipeline come to: every net proven on its file, the accuracies' mean and spread."""

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from compress.errors import ExportError
from compress.events import Listener
from compress.report import OverSeeds
from compress.running.kept import Finished
from compress.running.proof import Proof, Prover, require_agreement

BASELINE = "baseline"


@dataclass(frozen=True)
class Repeated:
    """A net of the run by its name, with its proof, and what every further seed made in its place."""

    net: str
    first: Finished
    proof: Proof
    again: tuple[Finished, ...]


def over_seeds(
    nets: Sequence[Repeated], prover: Prover, tell: Listener, warn: Callable[[str], None], *, judged: bool
) -> tuple[OverSeeds, ...]:
    """Export what further seeds made to `models/seeds/`, measure the files, and compare with the run's own.

    The baseline must be among the nets. `warn` gets what only a further seed has to say; where `judged`, also that a
    file predicts other classes than its net.
    """
    proofs: dict[str, list[Proof]] = {}
    for each in nets:
        proofs[each.net] = [each.proof]
        for k, result in enumerate(each.again, start=1):
            name = name_of_repeat(each.net, k)
            tell({"event": "exporting", "net": name})
            path = f"models/{name}.{'int8.onnx' if result.net.int8 else 'onnx'}"
            proof = prover.prove(result.net, name, path, result.folder, result.key)
            proofs[each.net].append(proof)
            for text in said(each, result, proof, name, judged):
                warn(text)
    return spread({net: [(proof.onnx, proof.accuracy.top1_onnx) for proof in found] for net, found in proofs.items()})


def said(net: Repeated, result: Finished, proof: Proof, name: str, judged: bool) -> Iterator[str]:
    """What a further seed's net and file have to say that the run's own did not."""
    for text in result.warnings:
        if text not in net.first.warnings:
            yield f"{result.stage}: {text}"
    for text in proof.warnings:
        if text not in net.proof.warnings:
            yield f"{name}: {text}"
    if judged:
        try:
            require_agreement(name, proof)
        except ExportError as error:
            yield str(error)


def spread(measured: Mapping[str, Sequence[tuple[str, float]]]) -> tuple[OverSeeds, ...]:
    """Mean, sample standard deviation and standard error of each net's accuracies, and of its gains.

    `measured` has for each net, the baseline among them, its file and accuracy (per cent) for at least two seeds, in
    the same order. A gain is the mean of the differences to the baseline of the same seed: what a seed does to both
    falls out of it, and its standard error is that of these paired differences.
    """
    reference = [value for _, value in measured[BASELINE]]
    found = []
    for net, files in measured.items():
        values = [value for _, value in files]
        gains = [mine - theirs for mine, theirs in zip(values, reference, strict=True)]
        found.append(
            OverSeeds(
                net=net,
                values=tuple(values),
                onnx=tuple(path for path, _ in files),
                mean=statistics.fmean(values),
                std=statistics.stdev(values),
                standard_error=standard_error(values),
                gain=None if net == BASELINE else statistics.fmean(gains),
                gain_standard_error=None if net == BASELINE else standard_error(gains),
            )
        )
    return tuple(found)


def standard_error(values: Sequence[float]) -> float:
    """Of the mean of at least two values: their sample standard deviation by the root of their number."""
    return statistics.stdev(values) / math.sqrt(len(values))


def name_of_repeat(net: str, k: int) -> str:
    """What the net of the k-th further seed is called in `models` and `predictions`, k from 1."""
    return f"seeds/{net}-{k}"
