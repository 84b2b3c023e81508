"""Finding the first tensor of a training that holds a NaN or an infinity."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from compress.losses.base import Outputs
from compress.training.objective import Sum

Named = Iterable[tuple[str, Tensor]]


class NotFinite(Exception):
    """A value of the tensor of this name is a NaN or an infinity; `when` says when that was seen."""

    def __init__(self, name: str, when: str) -> None:
        super().__init__(f"a value of {name} is not finite {when}")
        self.name, self.when = name, when


def first_non_finite(named: Named) -> str | None:
    """The name of the first tensor that holds a NaN or an infinity, or None."""
    floats = [(name, tensor) for name, tensor in named if tensor.is_floating_point()]
    if not floats:
        return None
    # One look for all: on a GPU each makes the program wait.
    fine = torch.stack([torch.isfinite(tensor).all() for _, tensor in floats])
    return None if bool(fine.all()) else floats[int(fine.long().argmin())][0]


def require_finite(named: Named, when: str) -> None:
    """Raise NotFinite with the name of the first tensor that is not."""
    if bad := first_non_finite(named):
        raise NotFinite(bad, when)


def of_net(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """A net's gradients, parameters and statistics, in the order in which one spoils the next."""
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            yield f"{name}'s gradient", parameter.grad
    yield from module.named_parameters()
    yield from module.named_buffers()


def of_average(average: nn.Module | None) -> Iterator[tuple[str, Tensor]]:
    """The averaged weights and statistics."""
    if average is not None:
        yield from ((f"the moving average of {name}", value) for name, value in average.state_dict().items())


def of_losses(modules: Sequence[nn.Module]) -> Iterator[tuple[str, Tensor]]:
    """What is trained beside the net; memories may hold infinities until they are filled, and are left out."""
    for module in modules:
        yield from ((f"the losses' {name}", value) for name, value in module.named_parameters())


def in_order(module: nn.Module, inputs: Tensor, taught: Sequence[Outputs], found: Sum) -> Iterator[tuple[str, Tensor]]:
    """All that a step's sum of losses comes from, in the order in which it comes to be."""
    net = [*of_net(module)]
    buffers = {name for name, _ in module.named_buffers()}
    yield from (each for each in net if each[0] not in buffers)
    yield "the images", inputs
    yield from ((f"teacher {i + 1}'s logits", outputs.logits) for i, outputs in enumerate(taught))
    # Behind the images: batch-norm's running statistics take from the images what is wrong with them.
    yield from (each for each in net if each[0] in buffers)
    yield "the student's logits", found.logits
    yield from ((f"the loss {name}", term) for name, term in found.terms)
