"""The processes that train together, as one of them sees them."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from compress.distributed.failure import Lost, described, rebuilt
from compress.errors import ConfigError, ModelError

ANSWER_S = 300.0  # a process that takes longer over its part of a step is stuck
LONGEST_PAUSE_S = 0.05
LAST_S = 5.0  # that the first process has to say why it ends
CPU = torch.device("cpu")

T = TypeVar("T")


@dataclass
class Group:
    """Processes that all call the same methods in the same order.

    `rank` counts from 0, `device` is where this process computes. `store` keeps the last words of a process that ends
    by an error, `control` is the group for all but tensors of the device; a single process has neither.

    Where another process ends or gives no answer, every method raises what that one raised, or Lost.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = CPU
    store: Any = None
    control: Any = None
    lost: bool = field(default=False, repr=False)

    @property
    def leads(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0

    def rows(self, count: int, rank: int | None = None) -> slice:
        """Which rows of a batch of `count` are a process's, by default this one's; shares differ by at most one row.

        Raises ConfigError where there are more processes than rows.
        """
        if count < self.size:
            raise ConfigError(
                f"a batch of {count} images cannot be shared out among {self.size} processes: start at most {count}, "
                "or raise training.batch_size"
            )
        rank = self.rank if rank is None else rank
        return slice(count * rank // self.size, count * (rank + 1) // self.size)

    @torch.no_grad()
    def stack(self, tensor: Tensor) -> Tensor:
        """The tensors of all processes, all of one shape (n, …), as (size, n, …), without gradient."""
        tensor = tensor.contiguous()
        found = tensor.new_empty(self.size * len(tensor), *tensor.shape[1:])
        with self._together("exchanging values"):
            dist.all_gather_into_tensor(found, tensor)
        return found.view(self.size, *tensor.shape)

    @torch.no_grad()
    def sum_gradients(self, parameters: Sequence[Tensor], alike: Sequence[Tensor] = ()) -> None:
        """Add up the gradients of `parameters` over the processes, in place.

        Those of `alike`, which every process has whole already, are averaged: on a GPU their last bits may differ.
        """
        if self.size == 1:
            return
        own, common = ([p.grad for p in those if p.grad is not None] for those in (parameters, alike))
        if common:
            torch._foreach_div_(common, self.size)
        kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        for gradient in (*own, *common):
            kinds.setdefault((gradient.dtype, gradient.device), []).append(gradient)
        for gradients in kinds.values():
            # All in one: each message takes its time, however short it is.
            flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
            with self._together("summing gradients"):
                dist.all_reduce(flat)
            parts = torch.split(flat, [gradient.numel() for gradient in gradients])
            for gradient, part in zip(gradients, parts, strict=True):
                gradient.copy_(part.view(gradient.shape))

    @torch.no_grad()
    def copy_first(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite tensors, such as those of a net, with the first process's, in place."""
        for tensor in tensors if self.size > 1 else ():
            values = tensor.detach().contiguous()
            with self._together("taking over the first process's values"):
                dist.broadcast(values, 0)
            tensor.copy_(values)

    def align_random(self) -> None:
        """Give every process the first one's random state, on the CPU and on the group's device."""
        if self.size == 1:
            return
        state, on_gpu = torch.get_rng_state(), self.device.type == "cuda"
        both = torch.cat([state, torch.cuda.get_rng_state(self.device)]) if on_gpu else state
        with self._together("aligning random states"):
            dist.broadcast(both, 0, group=self.control)
        if not self.leads:
            torch.set_rng_state(both[: len(state)])
            if on_gpu:
                torch.cuda.set_rng_state(both[len(state) :], self.device)

    def agreed(self, *flags: bool) -> tuple[bool, ...]:
        """Each of the flags, such as that a signal came, as set where any process has set it."""
        if self.size == 1:
            return flags
        found = torch.tensor(flags, dtype=torch.int64)
        with self._together("agreeing on what comes next"):
            dist.all_reduce(found, dist.ReduceOp.MAX, group=self.control)
        return tuple(map(bool, found.tolist()))

    def same(self, what: str, text: str) -> None:
        """See that all processes have the same text; raises ModelError naming those that have another `what`."""
        if self.size == 1:
            return
        digest = torch.frombuffer(bytearray(hashlib.sha256(text.encode()).digest()), dtype=torch.uint8)
        found = [torch.empty_like(digest) for _ in range(self.size)]
        self._wait(f"comparing the {what}", lambda: dist.all_gather(found, digest, self.control, async_op=True))
        others = [str(rank) for rank, each in enumerate(found) if not torch.equal(each, found[0])]
        if others:
            those = f"process {others[0]} has" if len(others) == 1 else f"processes {', '.join(others)} have"
            raise ModelError(
                f"{those} another {what} than process 0, so they would train different nets: use machines of one kind, "
                "with the same versions and files, or a single process"
            )

    def broadcast(self, value: Any) -> Any:
        """The first process's value, in all of them; anything small that JSON can say."""
        if self.size == 1:
            return value
        raw = bytearray(json.dumps(value).encode() if self.leads else b"")
        length, what = torch.tensor([len(raw)]), "waiting for the first one"
        self._wait(what, lambda: dist.broadcast(length, 0, self.control, async_op=True))
        content = torch.frombuffer(raw or bytearray(int(length)), dtype=torch.uint8)
        self._wait(what, lambda: dist.broadcast(content, 0, self.control, async_op=True))
        return json.loads(content.numpy().tobytes())

    def first(self, function: Callable[[], Any]) -> Any:
        """What `function` gives in the first process, where alone it is called; anything that JSON can say.

        What it raises there is raised in all processes. Inside of it the first process counts as the only one.
        """
        if self.size == 1:
            return function()
        if not self.leads:
            return _given(self.broadcast(None))
        try:
            with as_current(Group(device=self.device)):
                value = function()
        except BaseException as error:
            self.broadcast({"raised": described(error)})
            raise
        return _given(self.broadcast({"value": value}))

    def in_turn(self, function: Callable[[], T]) -> T:
        """What `function` gives in each process: in the first before the others, who find what it left on disk."""
        found: list[T] = []
        self.first(lambda: found.append(function()))
        return found[0] if found else function()

    def barrier(self) -> None:
        """Wait until all processes are here."""
        if self.size > 1:
            self._wait("waiting for it", lambda: dist.barrier(self.control, async_op=True))

    def leave_word(self, error: BaseException) -> None:
        """Tell the others why this process is about to end."""
        if self.size > 1 and not self.lost:
            try:
                self.store.set(_last_words(self.rank), json.dumps(described(error)))
            except RuntimeError:
                return  # whoever kept the store is gone as well

    def word(self) -> BaseException | None:
        """What another process said before it ended, as far as there is anything."""
        for rank in range(self.size):
            try:
                if rank != self.rank and self.store.check([_last_words(rank)]):
                    return rebuilt(json.loads(self.store.get(_last_words(rank))), f"process {rank} of {self.size}: ")
            except RuntimeError:
                break  # whoever kept the store is gone as well
        return None

    def let_first_end(self) -> None:
        """Wait, before an end by an error, for the first process to end: torchrun stops all once one has ended."""
        end = time.monotonic() + LAST_S
        with suppress(RuntimeError):  # it is gone, and the store with it
            while not self.leads and not self.lost and time.monotonic() < end:
                if self.store.check([_last_words(0)]):
                    return
                time.sleep(LONGEST_PAUSE_S)

    def _wait(self, what: str, begin: Callable[[], Any]) -> None:
        """Wait for however long in small pauses: no signal is heard inside a call of the library."""
        with self._together(what):
            work, pause = begin(), 1e-4
            while not work.is_completed():
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_S)
            work.wait()

    @contextmanager
    def _together(self, what: str) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            self.lost = True
            raise (self.word() or Lost(self.rank, self.size, what, ANSWER_S, error)) from error


_current = Group()


def current() -> Group:
    """The group of this process: of one, unless `start` made it one of several."""
    return _current


@contextmanager
def as_current(group: Group) -> Iterator[Group]:
    """Let `current` give this group for the while."""
    global _current
    before, _current = _current, group
    try:
        yield group
    finally:
        _current = before


def _given(said: dict[str, Any]) -> Any:
    if "raised" in said:
        raise rebuilt(said["raised"])
    return said["value"]


def _last_words(rank: int) -> str:
    return f"compress/{rank}"
