"""Every form of distillation as a stage, for one recipe of training."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compress.losses import LOSSES
from compress.recipe import Training
from compress.stages import STAGES
from compress.stages.base import Stage

HARD: dict[str, Any] = {"cross_entropy": {"weight": 1.0}}
ALONE = "alone"
# The weights that the papers or their authors' code have beside the loss, where they are not 1 · cross-entropy.
BESIDE: Mapping[str, Any] = {
    "kd": {"cross_entropy": {"weight": 0.1}},
    "multi_level": {"cross_entropy": {"weight": 0.1}},
}


@dataclass(frozen=True)
class Form:
    """One way of teaching: a stage's name and what a pipeline file would say of it, but for the training.

    `cached`: it needs the teacher's logits alone, which can be kept. `needs`: how many teachers there are.
    """

    name: str
    stage: str
    says: Mapping[str, Any]
    needs: int = 0
    cached: bool = False

    def with_training(self, training: Training, views: int | None) -> Stage:
        """The stage; a form of logits looks its teacher's up, on `views` views of each image."""
        says = dict(self.says)
        if "phases" in says:
            says["phases"] = shared_out(says["phases"], training.epochs)
        if self.cached:
            says |= {"targets": "cached"} | ({} if views is None else {"views": views})
        if self.stage == "born_again":  # one generation is one more training of the same length
            says |= {"generations": 1}
        return STAGES[self.stage].model_validate(says | {"training": training})  # type: ignore[attr-defined,no-any-return]


def shared_out(phases: list[dict[str, Any]], epochs: int) -> list[dict[str, Any]]:
    """Phases with their parts of all epochs, at least one each, the last taking what is left."""
    parts = [max(1, round(epochs * phase["part"])) for phase in phases[:-1]]
    parts.append(max(1, epochs - sum(parts)))
    return [
        {"losses": phase["losses"], "training": {"epochs": part}} for phase, part in zip(phases, parts, strict=True)
    ]


def forms() -> dict[str, Form]:
    """All that there are, the student alone first."""
    kd = {"kd": {"weight": 0.9}}
    taught = [
        Form(
            name,
            "distill",
            {"losses": [BESIDE.get(name, HARD), name]},
            needs=1,
            cached=not getattr(loss.model_validate({}), "layers", ()),  # type: ignore[attr-defined]
        )
        for name, loss in LOSSES.items()
        if loss.needs_teacher
    ]
    progressive = [
        {"part": 0.2, "losses": ["hint"]},
        {"part": 0.2, "losses": [HARD, {"hint": {"layers": -1}}]},
        {"part": 0.4, "losses": [BESIDE["kd"], kd]},
        {"part": 0.2, "losses": [HARD]},
    ]
    every = [
        Form(ALONE, "distill", {"losses": [HARD]}),
        *taught,
        Form("self_distillation", "distill", {"losses": [HARD, "self_distillation"]}),
        Form("mutual", "mutual", {}),
        Form("born_again", "born_again", {}),
        Form("two_teachers", "distill", {"losses": [BESIDE["kd"], kd], "blend": "confidence"}, needs=2, cached=True),
        Form("progressive", "distill", {"phases": progressive}, needs=1),
    ]
    return {form.name: form for form in every if form.stage in STAGES}
