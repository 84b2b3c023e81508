"""What processes compute from their own rows of a batch, put together so that gradients come out right."""

from typing import Any

import torch
from torch import Tensor

from compress.distributed.group import Group, current


def own(whole: Tensor) -> Tensor:
    """Those rows of a batch, which all have, that are this process's."""
    group = current()
    return whole if group.size == 1 else whole[group.rows(len(whole))]


def gather(part: Tensor, count: int) -> Tensor:
    """All rows of a batch, (count, …), given this process's, which are its `rows(count)`.

    A loss that every process computes alike from all rows sends each process the gradient of its own rows: the sum of
    the parameters' gradients over the processes is then that of the whole batch.
    """
    group = current()
    if group.size == 1:
        return part
    rows = group.rows(count)
    if len(part) != rows.stop - rows.start:
        raise ValueError(f"{len(part)} rows were given, and rows {rows.start} to {rows.stop - 1} are this process's")
    whole: Tensor = _Gather.apply(part, group, count)
    return whole


def once(term: Tensor) -> Tensor:
    """A term in which no image counts, such as a penalty on weights; its gradient is shared out among the processes.

    The value stays what it is. Summed over the processes, the gradient counts once.
    """
    size = current().size
    if size == 1:
        return term
    shared: Tensor = _Share.apply(term, size)
    return shared


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, group: Group, count: int) -> Tensor:
        """The rows of all processes."""
        ctx.own = group.rows(count)
        # In the layout that it has: in a single process the losses would be computed in that.
        channels_last = part.dim() == 4 and part.is_contiguous(memory_format=torch.channels_last)
        sent = part.permute(0, 2, 3, 1) if channels_last else part
        most = -(-count // group.size)
        if len(sent) < most:
            sent = torch.cat([sent, sent.new_zeros(most - len(sent), *sent.shape[1:])])
        shares = [group.rows(count, rank) for rank in range(group.size)]
        received = zip(group.stack(sent), shares, strict=True)
        whole = torch.cat([rows[: share.stop - share.start] for rows, share in received])
        return whole.permute(0, 3, 1, 2) if channels_last else whole

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return gradients[0][ctx.own], None, None


class _Share(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, term: Tensor, size: int) -> Tensor:
        ctx.size = size
        return term.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return gradients[0] / ctx.size, None
