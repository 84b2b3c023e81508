"""Where a training's soft labels come from: teachers that run beside the student, or their outputs kept on disk."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from compress.augment import chosen, views
from compress.config import fingerprint
from compress.data.base import Data
from compress.distributed.group import current
from compress.edits.graph import evaluating
from compress.environment import free_bytes
from compress.errors import ConfigError
from compress.events import Listener
from compress.losses.base import Loss
from compress.recipe import Training
from compress.training.feed import joined
from compress.training.objective import Tutor
from compress.training.target_files import Layout, require_room
from compress.training.targets import Targets, compute, find, layout_for

ASKED_TOGETHER = 512  # images a teacher sees at once where its outputs are kept
TARGETS = "targets"  # the folder of a run that teachers' outputs are kept in
MOST_BYTES = 4_000_000_000  # that `auto` puts on a disk without being asked


@dataclass(frozen=True)
class SoftLabels:
    """What a distill stage says of its soft labels, see `Distill`, and how many `epochs` it trains.

    Stages behind it do as it does where they can (`asked` is off); what it decided is in their keys, as it is in its.
    """

    targets: Literal["auto", "online", "cached"] = "auto"
    views: int | None = None
    epochs: int | None = None
    asked: bool = True

    def kept(self, losses: Sequence[Loss], training: Training, data: Data) -> bool:
        """Whether the teachers' outputs are kept; raises ConfigError where they should be and cannot."""
        taught = [loss for loss in losses if loss.needs_teacher]
        if self.targets == "online" or not taught or not training.epochs:
            return False
        wanted = self.targets == "cached" or self.views is not None
        kind = chosen(training.augment, data.mirror, data.image[-1])
        every = views(training.augment, data.mirror, data.image[-1])
        looking = next((loss for loss in taught if getattr(loss, "layers", ())), None)
        if wanted and looking is not None and self.asked:
            raise ConfigError(
                f"targets: {looking.name} looks at the teacher's layers, of which nothing is kept; use targets: online"
            )
        if wanted and every is None and self.asked:
            raise ConfigError(
                f"targets: augment {kind!r} has no end of views to keep the teacher's outputs on; use augment: shift "
                "or shift_flip, or targets: online"
            )
        if looking is not None or every is None:
            return False
        # Each view is looked at once to be kept, and each image once an epoch where the teacher runs beside.
        worth_it = every < (self.epochs or training.epochs) and self.bytes(training, data) <= MOST_BYTES
        return wanted or worth_it

    def asked_per_image(self, losses: Sequence[Loss], training: Training, data: Data) -> int:
        """How often a teacher runs for one image in a training; what a distill stage keeps, those behind it look up."""
        if not any(loss.needs_teacher for loss in losses):
            return 0
        if not self.kept(losses, training, data):
            return self.epochs or training.epochs if self.asked else training.epochs
        return self.count(training, data) if self.asked else 0

    def count(self, training: Training, data: Data) -> int:
        """How many views of an image are kept."""
        return self.layout(training, data).views

    def describe(self, losses: Sequence[Loss], training: Training, data: Data) -> str | None:
        """In a few words what happens, None where no teacher is listened to."""
        if not any(loss.needs_teacher for loss in losses) or not training.epochs:
            return None
        if not self.kept(losses, training, data):
            return "soft labels: the teacher runs beside the student"
        size = self.bytes(training, data) / 1e6
        return f"soft labels: {self.count(training, data)} views of each image kept on disk ({size:,.1f} MB)"

    def bytes(self, training: Training, data: Data) -> int:
        """What is kept of one teacher takes on disk."""
        return self.layout(training, data).bytes

    def layout(self, training: Training, data: Data) -> Layout:
        """What is kept of one teacher; ValueError where there is no end to the views."""
        size = data.image[-1]
        return layout_for(data.samples, data.classes, training.augment, data.mirror, size, self.views)

    def require_room(self, losses: Sequence[Loss], training: Training, data: Data, teachers: int, folder: Path) -> None:
        """See that what is to be kept of so many teachers fits on the disk; raises ResourceError."""
        if teachers and self.kept(losses, training, data):
            # What is there already is used again, or gives way.
            there = sum(path.stat().st_size for path in (folder / TARGETS).glob("*.targets"))
            require_room(folder, self.layout(training, data), free_bytes(folder) + there, teachers)


def with_targets(
    tutors: Sequence[Tutor],
    keys: Sequence[str],
    soft: SoftLabels,
    *,
    training: Training,
    data: Data,
    folder: Path,
    device: torch.device,
    emit: Listener,
    warn: Callable[[str], None],
) -> list[Tutor]:
    """The teachers with their outputs at hand: found on disk if they can be trusted, else computed."""
    found = []
    for tutor, teacher_key in zip(tutors, keys, strict=True):
        if not tutor.augmented:  # it says the same of every view, and is asked beside the student
            found.append(tutor)
            continue
        seen = tutor.data or data
        kind = chosen(training.augment, data.mirror, data.image[-1])
        # The student's views are chosen by the data alone, so that several teachers are asked for the same ones.
        # A key says how a teacher was made, which on a GPU gives other weights each time.
        made = teacher_key, content(tutor.module)
        key = fingerprint("targets", *made, seen.fingerprint, data.fingerprint, kind, soft.views, device.type)
        key = current().broadcast(key)
        drawn_by = int(fingerprint(data.fingerprint, kind, soft.views), 16) % 2**31
        ask = partial(
            compute,
            folder,
            key,
            _asking(tutor.module, seen, device),
            joined(seen),
            data.classes,
            kind=kind,
            mirror=data.mirror,
            size=data.image[-1],
            views=soft.views,
            seed=drawn_by,
            batch=ASKED_TOGETHER,
            device=device,
            emit=emit,
        )
        targets = current().in_turn(partial(_found_or_asked_for, folder, key, ask, warn))
        found.append(replace(tutor, targets=targets.to(device)))
    return found


def _found_or_asked_for(folder: Path, key: str, ask: Callable[[], Targets], warn: Callable[[str], None]) -> Targets:
    targets, reason = find(folder, key)
    if reason is not None:
        warn(f"{reason}; the teacher's outputs are computed again")
    return ask() if targets is None else targets


def content(module: nn.Module) -> str:
    """A hash of all weights and statistics."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _asking(module: nn.Module, data: Data, device: torch.device) -> Callable[[Tensor], Tensor]:
    """What a teacher says of uint8 images."""
    module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def ask(images: Tensor) -> Tensor:
        inputs = data.inputs(images.to(device)).contiguous(memory_format=torch.channels_last)
        with evaluating(module), torch.no_grad(), torch.autocast(device.type, torch.bfloat16, device.type == "cuda"):
            logits: Tensor = module(inputs).float()
        return logits

    return ask
