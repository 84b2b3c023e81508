"""A net that is run on some rows of a batch, as if it were run on all of them.

Three things in a training net depend on the batch as a whole: the mean and variance of batch-norms, the extremes by
which a quantizer follows its input, and random masks. Functions of PyTorch that compute them are replaced while such a
net runs, wherever they are called from, so that no net has to be changed or changed back.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from compress.distributed.group import Group, current


@contextmanager
def synchronized(count: int) -> Iterator[None]:
    """Let a net that each process runs on its rows of a batch of `count` compute what it would on the whole batch.

    Batch-norms in training mode normalise by the whole batch, with the gradient that belongs to it, and their running
    statistics are the same everywhere. `aminmax` without a dimension is that of the whole batch. Dropout and stochastic
    depth draw masks for the whole batch and use their rows of them, so that they are those of a single process; other
    random numbers that a net draws for each image are not, and afterwards all processes continue from the first one's
    random state. In a single process nothing changes.
    """
    group = current()
    if group.size == 1:
        yield
        return
    with _WholeBatch(group, count):
        yield
    group.align_random()


class _WholeBatch(TorchFunctionMode):
    """Replaces the functions of PyTorch whose result depends on other rows."""

    def __init__(self, group: Group, count: int) -> None:
        super().__init__()
        self.group, self.count, self.own = group, count, group.rows(count)
        self.replaced: dict[Any, Callable[..., Any]] = {
            F.batch_norm: self.batch_norm,
            torch.aminmax: self.aminmax,
            torch.Tensor.aminmax: self.aminmax,
            torch.Tensor.bernoulli_: self.bernoulli_,
            **{each: self.dropout(each) for each in (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d)},
        }

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return self.replaced.get(func, func)(*args, **(kwargs or {}))

    def batch_norm(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        """As F.batch_norm (Ioffe & Szegedy 2015, arXiv:1502.03167, algorithm 1), the batch being that of all."""
        if not training:
            return F.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
        normalized, mean, variance, size = _Normalize.apply(input, weight, bias, eps, self.group)
        with torch.no_grad():
            for running, now in ((running_mean, mean), (running_var, variance * (size / (size - 1)))):
                if running is not None:
                    running.copy_((1 - momentum) * running + momentum * now)
        return normalized  # type: ignore[no-any-return]

    def aminmax(self, input: Tensor, *, dim: int | None = None, keepdim: bool = False, **more: Any) -> Any:
        """As torch.aminmax; without `dim` over the rows of all processes."""
        found = torch.aminmax(input, dim=dim, keepdim=keepdim, **more)
        if dim is not None:
            return found
        extremes = self.group.stack(torch.stack([found.min, found.max]))
        return type(found)((extremes[:, 0].amin(0), extremes[:, 1].amax(0)))

    def bernoulli_(self, noise: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As Tensor.bernoulli_; a number for each of this process's rows is its part of those for all."""
        if not noise.dim() or len(noise) != self.own.stop - self.own.start:
            return noise.bernoulli_(*args, **kwargs)
        whole = noise.new_empty(self.count, *noise.shape[1:]).bernoulli_(*args, **kwargs)
        return noise.copy_(whole[self.own])

    def dropout(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """As one of PyTorch's dropouts, with this process's part of the mask for all rows."""

        def dropped(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
            """The input with the mask of its rows."""
            if not training or not p or len(input) != self.own.stop - self.own.start:
                return function(input, p, training, inplace)
            # Numbers are drawn in the order in which the tensor lies in memory.
            last = input.dim() == 4 and input.is_contiguous(memory_format=torch.channels_last)
            layout = torch.channels_last if last else torch.contiguous_format
            whole = torch.empty((self.count, *input.shape[1:]), dtype=input.dtype, device=input.device)
            mask = function(whole.to(memory_format=layout).fill_(1), p, True, False)[self.own]
            return input.mul_(mask) if inplace else input * mask

        return dropped


class _Normalize(torch.autograd.Function):
    """Batch normalisation over the rows of all processes: normalised input, mean, variance, values a channel."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, group: Group
    ) -> tuple[Tensor, ...]:
        """The rows of this process, normalised, and what they were normalised by."""
        exact = x.double() if x.dtype == torch.float64 else x.float()
        mean, variance, size = _moments(exact, group)
        deviation = (variance + eps).rsqrt()
        kind = exact.dtype
        ctx.save_for_backward(x, weight, mean.to(kind), deviation.to(kind), size)
        ctx.group, ctx.bias_type = group, None if bias is None else bias.dtype
        scale = deviation if weight is None else deviation * weight
        shift = -mean * scale if bias is None else bias - mean * scale
        normalized = torch.addcmul(_by_channel(shift.to(kind), x), exact, _by_channel(scale.to(kind), x)).to(x.dtype)
        ctx.mark_non_differentiable(mean, variance, size)
        return normalized, mean, variance, size

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        """Ioffe & Szegedy 2015, sec. 3; the sums in it go over all rows, the parameters' gradients over the own."""
        x, weight, mean, deviation, size = ctx.saved_tensors
        dims = [d for d in range(x.dim()) if d != 1]
        g = gradient.to(mean.dtype)
        white = (x.to(mean.dtype) - _by_channel(mean, x)) * _by_channel(deviation, x)
        sums = torch.stack([g.sum(dims), (g * white).sum(dims)])
        of_bias, of_weight = (ctx.group.stack(sums).sum(0) / size).to(mean.dtype)
        centred = g - _by_channel(of_bias, x) - white * _by_channel(of_weight, x)
        scale = deviation if weight is None else deviation * weight
        return (
            (centred * _by_channel(scale, x)).to(x.dtype),
            None if weight is None else sums[1].to(weight.dtype),
            None if ctx.bias_type is None else sums[0].to(ctx.bias_type),
            None,
            None,
        )


def _moments(x: Tensor, group: Group) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance of each channel over all processes, (channels,), and how many values a channel has; float64.

    The processes' own are combined pairwise from means and squared deviations (Chan et al. 1983, doi:10.2307/2683386,
    eq. 2.1), so that nothing is lost where the mean is large beside the spread.
    """
    dims = [d for d in range(x.dim()) if d != 1]
    variance, mean = torch.var_mean(x, dims, correction=0)
    count = x.numel() // x.shape[1]
    own = torch.cat([mean.double(), variance.double() * count, mean.new_tensor([count]).double()])
    found = group.stack(own)
    means, squares, counts = found[:, : len(mean)], found[:, len(mean) : -1], found[:, -1:]
    size = counts.sum()
    whole = (counts * means).sum(0) / size
    spread = squares.sum(0) + (counts * (means - whole).square()).sum(0)
    return whole, spread / size, size


def _by_channel(values: Tensor, x: Tensor) -> Tensor:
    return values.view(1, -1, *(1,) * (x.dim() - 2))
