"""The stage in which students learn together, from the labels and from each other."""

import copy
from collections.abc import Sequence
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from compress.config import Config, OneOf
from compress.errors import ModelError, TrainingError
from compress.losses import LOSSES, CrossEntropy, Loss
from compress.losses.base import UNLABELLED, Batch, Lesson, soft_divergence
from compress.models import MODELS, Architecture
from compress.net import Net, Spec, build, probe
from compress.recipe import Training
from compress.stages.base import Env, teach
from compress.stages.born_again import fresh, validation
from compress.training.finite import first_non_finite
from compress.weighting import Weight, at


class Mutual(Config):
    """Students learn together and teach each other (Zhang et al. 2018, arXiv:1706.00384).

    `peers` are models that learn beside the student, with weights drawn anew; left out it is one of the student's own
    architecture, not pruned. Each of the K nets minimises its cross-entropy with the labels, the student whatever its
    `losses` are, plus `weight` times the mean over the K - 1 others of T² · KL(other ‖ it) at `temperature` T; none
    gets a gradient from what it says to another. The student starts from the net given, or, `from_scratch`, from
    drawn weights as all do in the paper. All take their step at once, while in the paper one follows the other.

    Each peer is measured beside the way. Optimiser, rate, decay, `clip` and label smoothing of `training` are common
    to all; `ema`, `l1`, `bn_l1` and `dropout` are the student's alone. Of unlabelled images they learn from each other.
    """

    name: ClassVar[str] = "mutual"
    peers: tuple[Annotated[Architecture, OneOf(MODELS)], ...] = ()
    temperature: Annotated[float, Field(gt=0)] = 1.0
    weight: Weight = 1.0
    from_scratch: bool = False
    losses: tuple[Annotated[Loss, OneOf(LOSSES)], ...] = (CrossEntropy(),)
    training: Training = Training()

    def __call__(self, net: Net, env: Env) -> Net:
        student = Net(net.spec, copy.deepcopy(net.module))
        if self.from_scratch and self.training.epochs:
            student = fresh(net, env.seed)
        peers = drawn(self.peers or (net.spec.architecture,), net.spec, env.seed)
        cohort = Cohort([peer.module for peer in peers], self.temperature, self.weight)
        teach(student, env, self.training, (*self.losses, cohort))
        for i, peer in enumerate(peers, start=1):
            if bad := first_non_finite(peer.module.state_dict().items()):
                raise TrainingError(
                    f"stage {env.stage}: a value of peer {i}'s {bad} is not finite after the last step; nothing of "
                    f"this stage was saved. Lower training.lr (now {self.training.lr:g}) or set training.clip"
                )
            peer.module.eval()
            env.beside(f"peer-{i}", peer)
        if self.training.epochs and len(env.data.val):
            others = (f"{validation(peer, env):.1f} %" for peer in peers)
            env.note(f"validation accuracy: {validation(student, env):.1f} % student, {', '.join(others)} peers")
        return student


class Cohort(nn.Module):
    """The peers as a loss of the student's, which trains them along: all that is not the student's own losses.

    The sum over the peers of their cross-entropies, mean over the labelled images, plus `mimicry` times the sum over
    all nets of how far each is from the others, see `mimicries`.
    """

    name: ClassVar[str] = "mutual"
    needs_teacher: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = False
    weight: Weight = 1.0  # of its parts only some have another

    def __init__(self, peers: Sequence[nn.Module], temperature: float, mimicry: Weight) -> None:
        super().__init__()
        self.peers, self.temperature, self.mimicry = nn.ModuleList(peers), temperature, mimicry

    def build(self, lesson: Lesson) -> nn.Module:
        """The same: its parameters are there already."""
        return self.to(memory_format=torch.channels_last)

    def forward(self, batch: Batch) -> Float[Tensor, ""]:
        """The peers' losses and everyone's distance from the others, the peers being run on the student's images."""
        assert batch.inputs is not None, "peers see the images themselves"
        kind = batch.inputs.device.type
        with torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda"):
            said = [peer(batch.inputs) for peer in self.peers]
        peers = [logits.float() for logits in said]
        near = mimicries([batch.student.logits, *peers], self.temperature)
        total = at(self.mimicry, batch.epoch) * torch.stack(near).sum()
        if batch.labels is not None:
            hard = [labelled_cross_entropy(logits, batch.labels, batch.label_smoothing) for logits in peers]
            total = total + torch.stack(hard).sum()
        return total


def mimicries(logits: Sequence[Float[Tensor, "batch classes"]], temperature: float) -> list[Float[Tensor, ""]]:
    """For each net the mean over the others and over the batch of T² · KL(other ‖ it), its gradient reaching it alone.

    In the paper T is 1.
    """
    return [
        torch.stack([soft_divergence(own, other.detach(), temperature) for other in logits if other is not own]).mean()
        for own in logits
    ]


def labelled_cross_entropy(
    logits: Float[Tensor, "batch classes"], labels: Int[Tensor, " batch"], smoothing: float
) -> Float[Tensor, ""]:
    """Cross-entropy, mean over the images that have a label; 0 where none has."""
    summed = F.cross_entropy(logits, labels, ignore_index=UNLABELLED, label_smoothing=smoothing, reduction="sum")
    return summed / (labels != UNLABELLED).sum().clamp(min=1)


def drawn(architectures: Sequence[Architecture], like: Spec, seed: int) -> list[Net]:
    """Nets for the same images and classes as another, their weights drawn from `seed`; raises ModelError."""
    nets = []
    for i, architecture in enumerate(architectures):
        spec = Spec(architecture=architecture, classes=like.classes, image=like.image)
        try:
            net = build(spec, (seed + 7919 * (i + 1)) % 2**31)
            probe(net)
        except ModelError as error:
            raise ModelError(f"peers.{i}: {error}") from error
        nets.append(net)
    return nets
