"""How a process joins those that were started with it."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import count

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from compress.distributed.group import ANSWER_S, Group, as_current
from compress.distributed.launch import Launch, this_launch
from compress.errors import ConfigError, ResourceError

MEETINGS = count()
PATIENCE = timedelta(days=7)  # while the first process exports or measures, the others wait


@contextmanager
def start(device: torch.device) -> Iterator[Group]:
    """Join the processes that `torchrun` started with this one, if it did, until the block ends.

    They talk by gloo, and by NCCL of tensors on GPUs, of which each takes that of its local rank. The block ends well
    only once it does so in all of them. Raises ConfigError where the environment says but half of what is needed, there
    are fewer GPUs than processes or this process has a group already, ResourceError where the others are not met.
    """
    launch = this_launch(device)
    if launch.size == 1:
        with as_current(Group(device=launch.device)) as alone:
            yield alone
        return
    with as_current(_joined(launch)) as group:
        try:
            with _leaving(group):
                yield group
                group.barrier()
        except SystemExit:
            group.let_first_end()
            word = group.word()
            if word is None or isinstance(word, SystemExit):
                raise
            raise word from None  # torchrun sent the signal because of that
        except BaseException:
            group.let_first_end()
            raise


@contextmanager
def _leaving(group: Group) -> Iterator[None]:
    """Leave the others in the end, with a word where that is an error."""
    try:
        yield
    except BaseException as error:
        group.leave_word(error)
        raise
    finally:
        if group.device.type == "cpu" or not group.lost:  # NCCL would wait for those that are gone
            group.control = None  # what holds on to it keeps the others waiting
            dist.destroy_process_group()


def _joined(launch: Launch) -> Group:
    if dist.is_initialized():
        raise ConfigError(
            "this process has a torch.distributed process group already, and processes that share a run make their "
            "own: call torch.distributed.destroy_process_group() before"
        )
    answer = timedelta(seconds=ANSWER_S)
    on_gpu = launch.device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(launch.device)
    try:
        shared, _, _ = next(rendezvous("env://", launch.rank, launch.size, timeout=answer))
        # All meet as often as one: what was written down at an earlier meeting, addresses above all, is out of date.
        store = PrefixStore(f"meeting-{next(MEETINGS)}", shared)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            store=store,
            rank=launch.rank,
            world_size=launch.size,
            timeout=answer,
        )
        control = dist.new_group(backend="gloo", timeout=PATIENCE)
    except RuntimeError as error:
        said = str(error).strip().partition("\n")[0]
        raise ResourceError(
            f"process {launch.rank} of {launch.size} did not meet the others at {launch.address} ({said}): start all "
            "of them with one torchrun; on several machines, see that each can reach this address"
        ) from error
    return Group(launch.rank, launch.size, launch.device, store, control)
