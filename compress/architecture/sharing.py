"""Weight sharing: one set of weights, of which every candidate uses a part, trained once for all of them.

A candidate has the first channels of each layer, the centre of each depthwise kernel and the first blocks of each
stage of the largest network (Cai et al. 2020, arXiv:1908.09791, sec. 3, without its kernel transformations).
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from compress.architecture.space import Choices, Rungs
from compress.distributed.slices import gather
from compress.losses.base import Batch
from compress.net import Net, Spec, build

SAMPLED = 2  # candidates at random in a step, beside the largest and the smallest
REMEMBERED = 256


class Shared(nn.Module):
    """The largest network of a space; in training mode a step also runs the smallest and two drawn at random.

    That is the sandwich rule (Yu & Huang 2019, arXiv:1903.05134, sec. 3.2). The forward pass gives the largest's logits
    and leaves those of the others in `others`, for `InPlace`. Which are drawn follows from torch's global random state.
    The others normalise by the batch: their running statistics would be those of no single network.
    """

    def __init__(self, choices: Choices, classes: int, image: tuple[int, int, int], seed: int) -> None:
        super().__init__()
        self.choices, self.classes, self.image = choices, classes, image
        self.largest = build(self.spec(choices.largest), seed).module
        self.others: list[Tensor] = []
        self._shapes: dict[Rungs, nn.Module] = {}

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.largest(x)
        if self.training:
            drawn = [tuple(int(torch.randint(len(v), ())) for v in self.choices.values) for _ in range(SAMPLED)]
            self.others = [self.run(rungs, x) for rungs in (self.choices.smallest, *drawn)]
        return logits

    def spec(self, rungs: Rungs) -> Spec:
        """A candidate's description."""
        return Spec(architecture=self.choices.architecture(rungs), classes=self.classes, image=self.image)

    def run(self, rungs: Rungs, x: Tensor) -> Tensor:
        """A candidate's logits with its part of the weights, normalised by the batch."""
        shape = self.shape(rungs)
        whole = dict(self.largest.named_parameters())
        weights = {name: part(whole[name], value.shape) for name, value in shape.named_parameters()}
        logits: Tensor = functional_call(shape, weights, (x,))
        return logits

    def shape(self, rungs: Rungs) -> nn.Module:
        """A candidate without weights and without running statistics."""
        if rungs not in self._shapes:
            if len(self._shapes) >= REMEMBERED:
                self._shapes.clear()
            with torch.device("meta"):
                module = build(self.spec(rungs)).module
            for layer in module.modules():
                if isinstance(layer, nn.BatchNorm2d):
                    layer.track_running_stats = False
                    layer.running_mean = layer.running_var = layer.num_batches_tracked = None
            self._shapes[rungs] = module
        return self._shapes[rungs]

    def net(self, rungs: Rungs) -> Net:
        """A candidate as a network of its own with its part of the weights; its batch-norms are to be restated."""
        net = build(self.spec(rungs))
        whole = self.largest.state_dict()
        net.module.load_state_dict({
            name: part(whole[name].cpu(), value.shape) for name, value in net.module.state_dict().items()
        })  # fmt: skip
        return Net(net.spec, net.module.eval())


class InPlace:
    """The other networks of a step learn what the largest one says (Yu & Huang 2019, arXiv:1903.05134, sec. 3.3).

    The sum over them of the cross-entropy with the largest's class probabilities, which carry no gradient.
    """

    name: ClassVar[str] = "in_place"
    needs_teacher: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = False
    weight = 1.0

    def __init__(self, shared: Shared) -> None:
        self.shared = shared

    def __call__(self, batch: Batch) -> Tensor:
        taught = batch.student.logits.detach().softmax(1)
        others = [gather(logits.float(), len(taught)) for logits in self.shared.others]
        return torch.stack([F.cross_entropy(logits, taught) for logits in others]).sum()


def part(whole: Tensor, shape: torch.Size) -> Tensor:
    """The first channels and the centre of the kernel: a view of this shape."""
    for axis, size in enumerate(shape):
        start = (whole.shape[axis] - size) // 2 if axis >= 2 else 0
        whole = whole.narrow(axis, start, size)
    return whole
