"""Stages and the target that the files are made for: what a stage takes over from it, and where the two disagree."""

from collections.abc import Iterator
from typing import Any

from compress.edits.ranges import Dynamic
from compress.export.targets import Target, refusals
from compress.stages.base import Stage
from compress.stages.factorize import Factorize
from compress.stages.prune import Prune
from compress.stages.quantize import Quantize
from compress.stages.search import Search


def for_target(stage: Stage, target: Target) -> Stage:
    """The stage with the number formats and the alignment that a target wants, where it gives none itself."""
    update: dict[str, Any] = {}
    if isinstance(stage, Quantize) and target.quantizes:
        defaults = {"weights": target.weights[0], "activations": target.activations[0]}
        update = {key: value for key, value in defaults.items() if getattr(stage, key) is None}
    elif isinstance(stage, Prune | Factorize | Search) and stage.align is None and target.align is not None:
        update = {"align": target.align}
    return stage.model_copy(update=update) if update else stage  # type: ignore[attr-defined]


def against_target(stage: Stage, target: Target, opset: int) -> Iterator[str]:
    """What a stage asks for and a target does not take: `.key: why`, or `: why` for the whole stage."""
    if isinstance(stage, Quantize) and not target.quantizes:
        reason = f"target {target.name} takes no int8 file: {target.why_not['quantize']}"
        yield f": {reason}; leave the stage out or change export.target"
    elif isinstance(stage, Quantize):
        ranges = "dynamic" if isinstance(stage.ranges, Dynamic) else "static"
        asked = {"weights": stage.weights, "activations": stage.activations, "ranges": ranges}
        for key, why in refusals(target, opset, asked):
            yield f".{key}: {why}"
    elif isinstance(stage, Prune | Factorize | Search) and target.align and (stage.align or 0) % target.align:
        yield f".align: target {target.name} wants multiples of {target.align}, not {stage.align}"


def against_itself(stage: Stage) -> Iterator[str]:
    """Options of one stage that exclude each other: `.key: why`."""
    if not isinstance(stage, Quantize) or stage.learn == "none":
        return
    if stage.method == "ptq":
        yield f".learn: {stage.learn} learns scales in training, and method ptq trains nothing; set method: qat"
    if isinstance(stage.ranges, Dynamic):
        yield f".learn: {stage.learn} learns ranges, and dynamic ones are not kept; leave out one of the two"
