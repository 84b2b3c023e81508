import math
from typing import Annotated, ClassVar, NoReturn

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from compress.config import Config
from compress.losses.adapters import PerTeacher, as_vector, must_be_built, total
from compress.losses.base import UNLABELLED, Batch, Lesson, Outputs, feature_pairs
from compress.losses.layers import Layers, Where
from compress.weighting import Weight

EPS = 1e-7  # as in the authors' code


class CRD(Config):
    """Contrastive representation distillation (Tian et al. 2020, arXiv:1910.10699, eq. 18).

    Of an image's features in one net and a memory of all images' in the other, the one of the same image should stand
    out among `negatives` images of other classes. Both nets' features go through linear layers to `width` numbers of
    length 1, trained along; two memories keep each image's, moving by `momentum`. With the likeness v·m, the
    temperature T and n images: P = e^(v·m/T)/Z, c = negatives/n, and the loss is -log(P/(P + c)) of the same image plus
    the sum of -log(c/(P + c)) over the others, mean over the batch, for the student beside the teacher's memory and the
    teacher beside the student's. Z is n times the mean e^(v·m/T) of the first batch.

    Negatives are drawn with replacement, and no more than there are images outside the largest class. All values are
    the paper's. Summed over `layers`; a map counts by its mean over the pixels. The memories take 8 · n · width bytes.
    """

    name: ClassVar[str] = "crd"
    needs_teacher: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = True

    layers: Layers = ("embedding",)
    width: Annotated[int, Field(gt=0)] = 128
    negatives: Annotated[int, Field(gt=0)] = 16384
    temperature: Annotated[float, Field(gt=0)] = 0.07
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5
    weight: Weight = 0.8

    def __call__(self, batch: Batch) -> NoReturn:
        must_be_built(self.name)

    def objection(self, lesson: Lesson) -> str | None:
        """Why there is nothing to tell apart, or None."""
        classes = len(set(lesson.labels.tolist()) - {UNLABELLED})
        if classes < 2:
            return f"it tells an image from those of other classes, and the training images are of {classes}"
        return None

    def build(self, lesson: Lesson) -> nn.Module:
        """The loss with its embeddings and memories."""
        return PerTeacher(_PlacesOf(self, lesson, teacher) for teacher in lesson.example.teachers)


class _PlacesOf(nn.Module):
    """The contrasts with one teacher, one for each place."""

    def __init__(self, loss: CRD, lesson: Lesson, teacher: Outputs) -> None:
        super().__init__()
        self.layers: tuple[Where, ...] = loss.layers
        pairs = feature_pairs(lesson.example, teacher, self.layers)
        widths = [(as_vector(mine).shape[1], as_vector(theirs).shape[1]) for mine, theirs in pairs]
        self.contrasts = nn.ModuleList(Contrast(loss, lesson, *each) for each in widths)

    def forward(self, batch: Batch, teacher: Outputs) -> Float[Tensor, " batch"]:
        assert batch.labels is not None, "crd needs labels"
        pairs = feature_pairs(batch, teacher, self.layers)
        indices = batch.indices.to(batch.labels.device)
        return total(
            contrast(as_vector(mine), as_vector(theirs), indices, batch.labels)
            for contrast, (mine, theirs) in zip(self.contrasts, pairs, strict=True)
        )


class Contrast(nn.Module):
    """Two embeddings and two memories of all training images: the student's first, the teacher's second."""

    memories: Tensor
    log_normalizers: Tensor
    by_class: Tensor
    first: Tensor
    members: Tensor

    def __init__(self, loss: CRD, lesson: Lesson, mine: int, theirs: int) -> None:
        super().__init__()
        self.temperature, self.momentum = loss.temperature, loss.momentum
        self.embeddings = nn.ModuleList([nn.Linear(mine, loss.width), nn.Linear(theirs, loss.width)])
        bound = math.sqrt(3 / loss.width)  # so that rows have a length of about 1
        self.register_buffer("memories", torch.empty(2, lesson.samples, loss.width).uniform_(-bound, bound))
        self.register_buffer("log_normalizers", torch.full((2,), -torch.inf))  # until the first batch
        labels = lesson.labels.cpu()
        members = torch.bincount(labels[labels != UNLABELLED], minlength=lesson.classes)
        by_class = labels.argsort(stable=True)[len(labels) - int(members.sum()) :]  # those without a label come first
        self.register_buffer("by_class", by_class, persistent=False)
        self.register_buffer("first", members.cumsum(0) - members, persistent=False)
        self.register_buffer("members", members, persistent=False)
        self.negatives = min(loss.negatives, len(by_class) - int(members.max()))

    def forward(
        self,
        mine: Float[Tensor, "b s"],
        theirs: Float[Tensor, "b t"],
        indices: Int[Tensor, " b"],
        labels: Int[Tensor, " b"],
    ) -> Float[Tensor, " b"]:
        """The contrast of each image's features with the memories, which then take them in."""
        chosen = torch.cat([indices[:, None], self.others(labels)], 1)
        vectors = [F.normalize(embed(x)) for embed, x in zip(self.embeddings, (mine, theirs), strict=True)]
        # The memories change below, and the gradient needs them as they are now.
        memories = self.memories.clone()
        terms = [self.contrast(i, vectors[i] @ memories[1 - i].T, chosen) for i in (0, 1)]
        if self.training:
            self.remember(torch.stack(vectors).detach(), indices)
        return terms[0] + terms[1]

    def contrast(self, i: int, likeness: Float[Tensor, "b n"], chosen: Int[Tensor, "b k"]) -> Float[Tensor, " b"]:
        """How badly the same image, the first of the chosen, stands out among the others."""
        scores = likeness.gather(1, chosen) / self.temperature
        with torch.no_grad():
            found = scores.flatten().logsumexp(0) - math.log(scores.numel() / len(self.memories[i]))
            self.log_normalizers[i] = torch.where(self.log_normalizers[i].isfinite(), self.log_normalizers[i], found)
        scores = scores - self.log_normalizers[i]
        noise = self.negatives / len(self.memories[i])
        base = math.log(noise + EPS)
        against = base + F.softplus(scores - base)  # log(P + noise)
        same, others = scores[:, 0] - against[:, 0], (math.log(noise) - against[:, 1:]).sum(1)
        return -(same + others)

    def others(self, labels: Int[Tensor, " b"]) -> Int[Tensor, "b k"]:
        """For each image the indices of images of other classes, drawn with replacement."""
        members, first = self.members[labels, None], self.first[labels, None]
        possible = len(self.by_class) - members
        random = torch.rand(len(labels), self.negatives, device=labels.device)
        drawn = torch.minimum((random * possible).long(), possible - 1)
        return self.by_class[torch.where(drawn < first, drawn, drawn + members)]

    @torch.no_grad()
    def remember(self, vectors: Float[Tensor, "2 b w"], indices: Int[Tensor, " b"]) -> None:
        """Move the images' places in the memories towards what they are now."""
        moved = self.momentum * self.memories[:, indices] + (1 - self.momentum) * vectors
        self.memories[:, indices] = F.normalize(moved, dim=2)
