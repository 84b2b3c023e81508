"""The only training loop: steps, epochs, checkpoints, and what to do when numbers or memory give out."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compress.augment import Change, draw
from compress.data.base import Data
from compress.distributed.group import current
from compress.distributed.slices import once
from compress.errors import DataError, ResourceError, TrainingError
from compress.events import Listener, ignore
from compress.interruption import Stopped, answer, asked, held_together
from compress.losses.base import Outputs
from compress.recipe import NONE_APART, Apart, Training, optimizer_for, schedule_for
from compress.training import finite
from compress.training.averaging import update_average
from compress.training.checkpoint import Checkpoint, Keeper
from compress.training.engine import Engine, fastest, quick
from compress.training.feed import feeds_of
from compress.training.finite import NotFinite
from compress.training.objective import Objective
from compress.training.predicting import accuracy, predict
from compress.training.regularizing import dropout, penalty
from compress.training.snapshot import scale_rate
from compress.training.state import Companion, State
from compress.training.sums import Sums

STEP_EVENT_EVERY_S = 0.5
CUDA_CHECK_EVERY = 50  # steps between looks at the loss: each look makes the GPU wait
ROLLBACKS = 3


@dataclass(frozen=True)
class Progress:
    """Who trains, and who wants to hear of it."""

    stage: str
    emit: Listener = ignore


@dataclass
class Loop:
    """One training: what `fit` is given, and what is done with it. What changes on the way is in `state`."""

    module: nn.Module
    data: Data
    training: Training
    objective: Objective
    device: torch.device
    seed: int
    progress: Progress
    keeper: Keeper
    apart: Apart = NONE_APART
    companions: Sequence[Companion] = ()

    def run(self, after_epoch: Callable[[int], None] | None) -> None:
        """All epochs; the averaged weights, if there are any, take the net's place at the end."""
        self.batch_size = batch_size_for(self.data.samples, self.training.batch_size)
        self.steps = self.data.samples // self.batch_size
        optimizer = optimizer_for(self.module, self.training, self.apart, self.objective.parameters)
        schedule = schedule_for(optimizer, self.training, self.steps)
        self.state = State(self.module, self.objective, optimizer, schedule, self.device, self.companions)
        self.key = self.state.key(self.seed, self.training.model_dump(mode="json"), self.data.fingerprint)
        self.state.align(self.key)
        found = self.keeper.find(self.key)
        if found is not None and found.done:
            self.take_over(found)
            return
        if self.training.ema:
            self.state.start_averaging()
        self.labels = torch.from_numpy(self.data.labels).to(self.device)
        self.feeds = feeds_of(self.data, [tutor.data for tutor in self.objective.tutors], self.device)
        with dropout(self.module, self.training.dropout), quick(self.device):
            self.choose_engine(None if found is None else found.facts["engine"])
            if found is not None:
                self.state.restore(found)
                self.tell_again()
            self.began, self.done_before = time.perf_counter(), self.done
            self.start = self.state.in_memory() if found is None else None
            self.persist(after_epoch)
        average = self.state.average
        if average is not None:
            update_average(average, self.module, decay=1.0)  # what is not averaged may have changed since
            self.module.load_state_dict(average.state_dict())
        self.keeper.finish(self.state.result(), self.facts())

    @property
    def done(self) -> int:
        """How many steps are done."""
        return self.state.epoch * self.steps + self.state.step

    def facts(self) -> dict[str, Any]:
        """What a checkpoint says beside its tensors."""
        return self.state.facts() | {"made_of": self.key}

    def persist(self, after_epoch: Callable[[int], None] | None) -> None:
        """Train to the end: from the last good state again where a number is not finite, but not for ever."""
        while True:
            try:
                self.epochs(after_epoch)
                self.state.require_finite("after the last step")
                return
            except NotFinite as error:
                self.roll_back(error)
            except Stopped as stop:
                with held_together(), suppress(NotFinite):
                    stop.saved = self.save()
                raise

    def epochs(self, after_epoch: Callable[[int], None] | None) -> None:
        """The epochs that are left."""
        while self.state.epoch < self.training.epochs:
            # None of several processes leaves alone: the others would wait for it.
            with held_together() if current().size > 1 else nullcontext():
                self.epoch()
            with held_together():  # it may change the net
                if after_epoch is not None:
                    after_epoch(self.state.epoch)
                self.state.epoch, self.state.step = self.state.epoch + 1, 0
                (stop,) = current().agreed(asked())
            self.heed(stop)

    def epoch(self) -> None:
        """One pass over the training images in a new order, then the accuracy on the validation split."""
        start, said, before = time.perf_counter(), time.perf_counter(), self.state.step
        fresh = torch.Generator().manual_seed(_mixed(self.seed, self.state.epoch))
        order = torch.randperm(self.data.samples, generator=fresh)[: self.steps * self.batch_size]
        if not before:
            self.state.random, self.state.sums = fresh, Sums(self.device)
            torch.manual_seed(_mixed(self.seed, self.state.epoch) + 1)
            self.state.lr = self.state.optimizer.param_groups[0]["lr"]
        self.module.train()
        batches = torch.split(order, self.batch_size)[before:]
        for indices, *images in zip(batches, *(feed(batches) for feed in self.feeds), strict=True):
            with held_together():
                self.step(indices, images)
                due, stop = current().agreed(self.keeper.due, asked())
                if due:
                    self.save()
            self.heed(stop)
            if time.perf_counter() - said > STEP_EVENT_EVERY_S:
                said = time.perf_counter()
                self.tell("step", start, before)
        self.state.require_finite(f"in epoch {self.state.epoch + 1}")
        judged = self.state.average if self.state.average is not None else self.module
        val = predict(judged, self.data, self.data.val, self.device)
        more: dict[str, Any] = {"val_accuracy": accuracy(val, self.data.val.labels)}
        if len(self.objective.losses) > 1:
            more["losses"] = self.state.sums.losses()
        self.tell("epoch", start, before, **more)

    def heed(self, stop: bool) -> None:
        """End here, by Stopped, where a signal came; of several processes all do once one has said `stop`."""
        if stop or current().size == 1:
            answer(stop)

    def step(self, indices: Tensor, images: list[Tensor]) -> None:
        """One update; what it comes to is added to the sums."""
        kept = next((t.targets for t in self.objective.tutors if t.targets is not None), None)
        among = None if kept is None or kept.views_of is None else kept.views_of[indices]
        change = draw(
            self.training.augment, self.data.mirror, self.data.image[-1], len(indices), self.state.random, among=among
        )
        while True:
            try:
                self.gradients(indices, images, change)
                break
            except (MemoryError, RuntimeError) as error:
                if not _out_of_memory(error):
                    raise
                self.halve(len(indices))
        current().sum_gradients([*self.module.parameters()], self.objective.parameters)
        if self.training.clip is not None:
            nn.utils.clip_grad_norm_([*self.module.parameters(), *self.objective.parameters], self.training.clip)
        self.state.optimizer.step()
        self.state.advance(self.training.ema)

    def gradients(self, indices: Tensor, images: list[Tensor], change: Change) -> None:
        """The gradients of a batch's loss; cut into parts, those of the parts add up to the mean over the batch."""
        self.state.optimizer.zero_grad(set_to_none=True)
        found = []
        for rows in torch.arange(len(indices)).chunk(self.state.parts):
            whole = len(rows) == len(indices)
            part = change if whole else change.part(rows)
            found.append(self.backward(indices[rows], images if whole else [x[rows] for x in images], part))
        for value, labels, share in found:  # only now: with too little memory it all starts again
            self.state.sums.add(value, labels, share)

    def backward(self, indices: Tensor, images: list[Tensor], change: Change) -> tuple[Any, Tensor, float]:
        """Add the gradients of a batch or a part of one; gives what it came to and the part's share of the batch."""
        inputs, taught = self.lesson(indices, images, change)
        labels = self.labels[indices.to(self.device, non_blocking=True)]
        self.engine.begin_step()
        found = self.objective(self.engine.run, inputs, taught, labels, indices, self.state.epoch)
        extra = penalty(self.module, self.training)
        total = found.total if extra is None else found.total + once(extra)
        look = self.device.type == "cpu" or self.state.step % CUDA_CHECK_EVERY == 0
        if look and not torch.isfinite(total):
            bad = finite.first_non_finite(finite.in_order(self.module, inputs, taught, found))
            raise NotFinite(bad or "the sum of the losses", f"in epoch {self.state.epoch + 1}")
        share = len(indices) / self.batch_size
        if total.requires_grad:  # an epoch in which no loss has any weight moves nothing
            (total if share == 1 else share * total).backward()  # type: ignore[no-untyped-call]
        return found._replace(total=total.detach()), labels, share

    def halve(self, images: int) -> None:
        """Cut batches into parts of half the size for want of memory; raises ResourceError where they cannot be."""
        if (size := current().size) > 1:  # the others did not run out, and wait
            raise ResourceError(
                f"stage {self.progress.stage}: out of memory with a batch of {images} images shared out among {size} "
                "processes. Lower training.batch_size, start more processes, or use smaller images (data.size)"
            )
        state = self.state
        state.parts *= 2
        if images // state.parts < 2:
            raise ResourceError(
                f"stage {self.progress.stage}: out of memory even with {2 * images // state.parts} images at a "
                "time. Use smaller images (data.size), a smaller student or teacher, or a machine with more memory"
            )
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.engine = Engine("plain", self.forward)  # another one was compiled for whole batches
        state.engine["name"] = "plain"
        size = -(-images // state.parts)
        self.mend(
            f"memory ran out with {2 * size} images at a time: from epoch {state.epoch + 1}, step "
            f"{state.step + 1} on a batch is trained in {state.parts} parts of {size}, whose gradients are added up; "
            f"batch-norm and losses over a batch see {size} images at a time. To have whole batches, set "
            f"training.batch_size to {size}"
        )

    def roll_back(self, error: NotFinite) -> None:
        """Go back to the last good state after a number that is not finite; raises TrainingError the fourth time.

        The first time all is as it was, for what comes by chance, such as a flipped bit, does not come again. After
        that the learning rate is halved each time.
        """
        state = self.state
        if state.rollbacks == ROLLBACKS:
            raise TrainingError(self.sentence(error)) from error
        good = self.keeper.find(self.key) or self.start
        if good is None:  # what it was taken up from has gone since
            raise TrainingError(self.sentence(error)) from error
        rollbacks, mended, told = state.rollbacks + 1, [*state.mended], len(state.told)
        state.restore(good)
        rate, before = _rate_after(rollbacks), _rate_after(state.rollbacks)
        scale_rate(state.optimizer, state.schedule, rate / before)
        state.rollbacks, state.mended = rollbacks, mended
        how = "with nothing changed" if rate == 1 else f"with {rate:g} times the learning rate"
        self.mend(
            f"{error}: went back to epoch {state.epoch + 1}, step {state.step}, and on {how} "
            f"({rollbacks} of {ROLLBACKS} times)",
            withdrawn=told - len(state.told),
        )

    def choose_engine(self, before: Mapping[str, str] | None) -> None:
        """Find out how to run the student for so many steps, or do as `before`; say so where there was a choice."""
        alone = current().size == 1  # several have to meet within a step, which cannot be compiled
        before = before if alone else None
        some = np.arange(self.batch_size) % len(self.data.train)
        images = self.data.inputs(self.data.train.images[some].to(self.device))
        self.module.train()
        self.engine = fastest(
            self.module,
            self.forward,
            images.contiguous(memory_format=torch.channels_last),
            compiling=self.training.compile if alone else "off",
            steps=self.steps * self.training.epochs,
            watched=bool(self.objective.watches[0].places),
            before=before["name"] if before else None,
        )
        said = before["said"] if before else self.engine.describe() if self.engine.step_ms else ""
        self.state.engine = {"name": self.engine.name, "said": said}
        if said:
            self.progress.emit({
                "event": "engine", "stage": self.progress.stage, "engine": self.engine.name,
                "step_ms": self.engine.step_ms, "text": said,
            })  # fmt: skip

    def forward(self, inputs: Tensor) -> Tensor:
        """The student's logits."""
        with torch.autocast("cuda", torch.bfloat16, enabled=self.device.type == "cuda"):
            return self.module(inputs)  # type: ignore[no-any-return]

    def lesson(self, indices: Tensor, images: list[Tensor], change: Change) -> tuple[Tensor, tuple[Outputs, ...]]:
        """The augmented images as the student is fed, and what each teacher says of them."""
        inputs = self.data.inputs(change.applied(images[0]))
        taught = []
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16, enabled=self.device.type == "cuda"):
            views = iter(images[1:])
            for i, tutor in enumerate(self.objective.tutors):
                view = inputs
                if tutor.data is not None:
                    own = next(views)
                    view = tutor.data.inputs(change.applied(own) if tutor.augmented else own)
                elif not tutor.augmented:
                    view = self.data.inputs(images[0])
                if tutor.targets is not None:
                    taught.append(Outputs(tutor.targets.logits(indices, change.views())))
                else:
                    taught.append(self.objective.said(i, view))
        return inputs, tuple(taught)

    def tell(self, event: str, start: float, before: int, **more: Any) -> None:
        """Emit an event with the means over the epoch so far, the speed, and the time that is left."""
        state, sums = self.state, self.state.sums
        now, here = time.perf_counter(), self.done
        left = self.training.epochs * self.steps - here
        found = {
            "event": event, "stage": self.progress.stage, "epoch": state.epoch + 1, "epochs": self.training.epochs,
            "step": state.step, "steps": self.steps, "loss": sums.loss(), "accuracy": sums.accuracy(),
            **more, "lr": state.lr, "images_per_s": (state.step - before) * self.batch_size / (now - start),
            "seconds": now - start, "left_s": (now - self.began) * left / max(here - self.done_before, 1),
        }  # fmt: skip
        if event == "epoch":
            state.told.append(found)
        self.progress.emit(found)

    def tell_again(self) -> None:
        """Say where a training is taken up, and again what it had said before that."""
        step = self.done
        self.progress.emit({"event": "resumed", "stage": self.progress.stage, "step": step})
        for text in self.state.mended:
            self.progress.emit({"event": "mended", "stage": self.progress.stage, "text": text, "again": True})
        for found in self.state.told:
            self.progress.emit({**found, "again": True})

    def mend(self, text: str, withdrawn: int = 0) -> None:
        """Say what went wrong and how it was mended; the last `withdrawn` epochs that were told count no more."""
        self.state.mended.append(text)
        event = {"event": "mended", "stage": self.progress.stage, "text": text, "withdrawn": withdrawn}
        self.progress.emit(event)

    def save(self) -> bool:
        """Keep a checkpoint, where there is a folder for it, of what is sound; raises NotFinite for what is not."""
        if self.keeper.store.folder is None:
            return False
        self.state.require_finite(f"in epoch {self.state.epoch + 1}")
        self.keeper.save(self.done, self.state.tensors(), self.facts())
        current().barrier()  # for however long the first one writes
        self.start = None  # there is something better to go back to, and it takes no memory
        return True

    def take_over(self, found: Checkpoint) -> None:
        """The result of a training that was finished before."""
        self.state.restore_result(found)
        self.state.epoch = self.training.epochs
        if said := self.state.engine.get("said"):
            self.progress.emit({"event": "engine", "stage": self.progress.stage, "text": said, "again": True})
        self.tell_again()

    def sentence(self, error: NotFinite) -> str:
        """What to tell a user of a tensor that is no longer finite, with advice that fits it."""
        advice = f"Lower training.lr (now {self.training.lr:g}) or set training.clip, for example to 1.0"
        if error.name == "the images":
            advice = f"See that data.std (now {', '.join(f'{s:g}' for s in self.data.std)}) fits the images"
        elif error.name.startswith("teacher "):
            advice = "Train this teacher again with a lower training.lr, or give it other weights"
        return f"stage {self.progress.stage}: {error}, after {ROLLBACKS} returns to the last good state. {advice}"


def batch_size_for(images: int, wanted: int) -> int:
    """The batch size to use: as wanted, or all images where there are fewer.

    A last batch that is not full is left out of an epoch, so that batch-norm never sees a handful. Raises DataError
    for a single image, from which batch-norm cannot estimate a variance.
    """
    if images < 2:
        raise DataError("there is one training image, and batch-norm cannot learn from a single one; give at least 2")
    return min(images, wanted)


def _rate_after(rollbacks: int) -> float:
    return 0.5 ** max(rollbacks - 1, 0)


def _out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    return "can't allocate memory" in str(error) or "out of memory" in str(error)


def _mixed(seed: int, epoch: int) -> int:
    # Distinct for all (seed, epoch) that occur, and within what torch takes as a seed.
    return (seed * 1_000_003 + epoch * 2) % 2**62
