"""What each of two processes does in test_distributed.py, which starts this file and reads what they leave.

torchrun --standalone --nproc-per-node 2 two_processes.py FOLDER SECOND_PORT
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from compress import errors
from compress.distributed.group import Group, current
from compress.distributed.joining import start
from compress.distributed.slices import gather, once, own
from compress.distributed.synchronized import synchronized

CPU = torch.device("cpu")
COUNTS = (6, 5)  # of rows: the same for both processes, and one more for the second
NORMS = {  # a layer, the shape of an image, the mean of the values
    "maps": (lambda: nn.BatchNorm2d(3), (3, 4, 2), 0.0),
    "far from zero": (lambda: nn.BatchNorm2d(3), (3, 4, 2), 1e3),
    "one pixel": (lambda: nn.BatchNorm2d(3), (3, 1, 1), 0.0),
    "vectors": (lambda: nn.BatchNorm1d(3, momentum=0.3, eps=1e-3), (3,), 1.0),
    "volumes": (lambda: nn.BatchNorm3d(3), (3, 2, 2, 2), 1.0),
    "sequences": (lambda: nn.BatchNorm1d(3), (3, 5), 1.0),
    "not affine": (lambda: nn.BatchNorm2d(3, affine=False), (3, 4, 2), 1.0),
    "no statistics": (lambda: nn.BatchNorm2d(3, track_running_stats=False), (3, 4, 2), 1.0),
    "cumulative": (lambda: nn.BatchNorm2d(3, momentum=None), (3, 4, 2), 1.0),
}
MASKS = {
    "dropout": lambda: nn.Dropout(0.3),
    "dropout in place": lambda: nn.Dropout(0.3, inplace=True),
    "whole channels": lambda: nn.Dropout2d(0.4),
    "stochastic depth": lambda: StochasticDepth(0.5),
}
RAISED = {
    "config": errors.ConfigError("a.b: no such key"),
    "data": errors.DataError("0001.png is damaged"),
    "busy": errors.BusyError("in use"),
    "below": type("Special", (errors.DataError,), {})("missing"),
    "disk": OSError(28, "No space left on device"),
    "memory": MemoryError(),
    "bug": KeyError("x"),
    "signal": SystemExit(143),
}


class StochasticDepth(nn.Module):
    """As torchvision's by rows, the import of which would take longer than all tests."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        noise = torch.empty([len(x), 1, 1, 1], dtype=x.dtype).bernoulli_(1 - self.p)
        return x * noise.div_(1 - self.p)


def values(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def images(count: int, shape: tuple[int, ...], mean: float, dtype: torch.dtype) -> torch.Tensor:
    return (values(count, *shape, seed=count) + mean).to(dtype)


def gathering(group: Group, found: dict) -> None:
    """Rows of both, and what reaches each through Σ (whole · W)³ and through the rows' pairwise products."""
    for count in COUNTS:
        for kind in ("rows", "maps"):
            shape = (2,) if kind == "rows" else (2, 3, 3)
            part = own(values(count, *shape))
            if kind == "maps":
                part = part.contiguous(memory_format=torch.channels_last)
            part.requires_grad_()
            whole = gather(part, count)
            flat = whole.flatten(1)
            ((flat**3).sum() + (flat @ flat.T).sin().sum()).backward()
            found[f"gather/{kind}/{count}"] = whole.detach()
            found[f"gather/{kind}/{count}/gradient"] = part.grad
            assert kind == "rows" or whole.is_contiguous(memory_format=torch.channels_last)


def norm(name: str, dtype: torch.dtype) -> nn.Module:
    layer = NORMS[name][0]().to(dtype).train()
    with torch.no_grad():
        for i, parameter in enumerate(layer.parameters()):
            parameter.copy_(values(3, seed=50 + i))
    return layer


def normalizing(group: Group, found: dict) -> None:
    for name, (_, shape, mean) in NORMS.items():
        for dtype in (torch.float64, torch.float32):
            for count in COUNTS:
                layer, rows = norm(name, dtype), group.rows(count)
                inputs = images(count, shape, mean, dtype)[rows].requires_grad_()
                for _ in range(2):  # the second time with statistics of the first
                    inputs.grad = None
                    layer.zero_grad()
                    with synchronized(count):
                        given = layer(inputs)
                    (given * values(count, *shape, seed=99).to(dtype)[rows]).sum().backward()
                    group.sum_gradients([*layer.parameters()])
                key = f"norm/{name}/{dtype}/{count}/"
                found |= {f"{key}given": given.detach(), f"{key}gradient": inputs.grad}
                found |= {f"{key}{k}": p.grad for k, p in layer.named_parameters()}
                found |= {f"{key}{k}": b for k, b in layer.named_buffers()}


def masking(group: Group, found: dict) -> None:
    for name, make in MASKS.items():
        for count in COUNTS:
            for layout in ("maps", "channels_last"):
                torch.manual_seed(7)
                part = own(images(count, (4, 3, 3), 1.0, torch.float32))
                if layout == "channels_last":
                    part = part.contiguous(memory_format=torch.channels_last)
                with synchronized(count):
                    given = make().train()(part.clone(memory_format=torch.preserve_format))
                found[f"mask/{name}/{layout}/{count}"] = given
                found[f"mask/{name}/{layout}/{count}/next"] = torch.rand(3)


def following(group: Group, found: dict) -> None:
    """Quantizers that follow what passes them, and one that takes each batch's own extremes."""
    from compress.edits.quantizers import dynamically_rounded

    for count in COUNTS:
        quantizer = following_quantizer()
        for step in range(3):
            with synchronized(count):
                quantizer(spreading(count, step)[group.rows(count)])
        found[f"range/{count}"] = torch.stack([quantizer.scale, quantizer.zero_point])
        with synchronized(count):
            found[f"dynamic/{count}"] = dynamically_rounded(spreading(count, 0)[group.rows(count)])
    calibrating = torch.tensor([[3.0, 1.0], [2.0, 5.0]])
    with synchronized(2):
        found["columns"] = torch.aminmax(calibrating + 10 * group.rank, dim=0).max


def following_quantizer() -> nn.Module:
    from compress.edits.quantizers import ActivationQuantizer
    from compress.edits.ranges import MovingRange

    quantizer = ActivationQuantizer().train()
    quantizer.set_range(-1, 1)
    quantizer.moving = MovingRange(quantizer, 0.5)
    return quantizer


def spreading(count: int, step: int) -> torch.Tensor:
    """Rows of which the last has the largest values and the first the smallest."""
    return torch.linspace(-2 - step, 3 + 2 * step, count * 4).view(count, 4)


def summing(group: Group, found: dict) -> None:
    own = [nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(1).double())]
    alike, unused = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))
    for i, parameter in enumerate((*own, alike)):
        parameter.grad = torch.full_like(parameter, 10.0**i * (group.rank + 1))
    own[0].grad = torch.arange(6.0).view(3, 2).T * (group.rank + 1)  # of another layout
    group.sum_gradients([*own, unused], [alike])
    found |= {f"sum/{i}": p.grad for i, p in enumerate((*own, alike))}
    assert unused.grad is None
    weight = nn.Parameter(torch.tensor([1.0, -2.0]))
    penalty = once(weight.abs().sum())
    (3 * penalty).backward()
    group.sum_gradients([weight])
    found |= {"once": penalty.detach(), "once/gradient": weight.grad}


def agreeing(group: Group, found: dict) -> None:
    said: dict = {"agreed": [group.agreed(False, group.rank == 1, True), group.agreed()]}
    said["broadcast"] = group.broadcast({"a": [1, 0.1, float("inf")], "ü": None} if group.leads else "mine")
    said["empty"] = group.broadcast("" if group.leads else "mine")
    said["first"] = group.first(lambda: {"rank": group.rank, "size": current().size})
    trace = Path(sys.argv[1]) / "trace"
    said["in turn"] = group.in_turn(lambda: [trace.exists(), trace.touch()][0])
    for name, error in RAISED.items():
        said[name] = caught(lambda error=error: group.first(lambda: _raise(error)))
    group.same("pruned net", "widths 3 4")
    said["same"] = caught(lambda: group.same("pruned net", f"widths 3 {group.rank}"))
    said["rows"] = caught(lambda: group.rows(1))
    said["foreign"] = caught(lambda: gather(torch.zeros(1, 2), 6))
    torch.manual_seed(group.rank)
    group.align_random()
    found["aligned"] = torch.rand(2)
    weights = [torch.full((2, 2), float(group.rank)).T, torch.tensor(group.rank)]
    group.copy_first(weights)
    found |= {"copied/0": weights[0], "copied/1": weights[1]}
    found["said"] = said


def _raise(error: BaseException) -> None:
    raise error


def caught(function) -> list:
    """Class, words and exit code of what a function raises."""
    from compress.console import explain

    try:
        function()
    except SystemExit as error:
        return ["SystemExit", "", error.code]
    except BaseException as error:
        return [type(error).__name__, str(error), explain(error)[1]]
    return []


class Student(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
            nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8), nn.Hardswish(), nn.Dropout2d(0.1),
        )  # fmt: skip
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(8, 4))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.body(x)
        return self.head(features), features


class Logits(Student):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


def trained(steps: int = 5, count: int = 7) -> dict[str, torch.Tensor]:
    """Weights after some steps with soft labels, relations between images, an adapter, noise in a loss, and decay."""
    from compress.losses import RKD
    from compress.losses.base import Batch, Outputs, soft_divergence

    torch.manual_seed(0)
    group, net, teacher = current(), Student(), Student().eval()
    net.to(memory_format=torch.channels_last).train()
    adapter, relations = nn.Linear(8, 8), RKD(layers=("x",))
    parts = [*net.parameters()], [*adapter.parameters()]
    optimizer = torch.optim.SGD([*parts[0], *parts[1]], lr=0.05, momentum=0.9)
    for step in range(steps):
        inputs = (images(count, (3, 10, 10), 0.0, torch.float32) + step / 10).to(memory_format=torch.channels_last)
        with synchronized(count):
            said = net(own(inputs))
        with torch.no_grad():
            told = [gather(each, count) for each in teacher(own(inputs))]
        mine = [gather(each, count) for each in said]
        pooled = [each.mean((2, 3)) for each in (mine[1], told[1])]
        student = Outputs(mine[0], {"x": (adapter(pooled[0]),)})
        batch = Batch(student, (Outputs(told[0], {"x": (pooled[1],)}),), None, torch.arange(count), 0)
        noise = torch.rand(count, 4)  # a loss that draws
        loss = soft_divergence(mine[0], told[0], 4.0).mean() + relations(batch) + (noise * mine[0]).mean()
        loss = loss + once(1e-2 * torch.stack([p.abs().sum() for p in parts[0]]).sum())
        optimizer.zero_grad()
        loss.backward()
        group.sum_gradients(*parts)
        nn.utils.clip_grad_norm_([*parts[0], *parts[1]], 5.0)
        optimizer.step()
    state = net.state_dict() | {f"adapter.{k}": v for k, v in adapter.state_dict().items()}
    return state | {"loss": loss.detach()}


def rounding_trained(steps: int = 4, count: int = 5) -> dict[str, torch.Tensor]:
    """The state of an int8 net, traced and folded, after some steps in which its ranges follow the batches."""
    from compress.edits.calibration import calibrate
    from compress.edits.placement import Quantizers
    from compress.edits.quantizers import activation_quantizers
    from compress.edits.ranges import MovingRange

    torch.manual_seed(1)
    quantized = Quantizers()(Logits().eval())
    inputs = images(count, (3, 10, 10), 0.0, torch.float32)
    calibrate(quantized, lambda: [inputs])
    for _, quantizer in [*activation_quantizers(quantized)]:
        quantizer.moving = MovingRange(quantizer)
    quantized.train()
    optimizer, group = torch.optim.SGD(quantized.parameters(), lr=0.02), current()
    for step in range(steps):
        with synchronized(count):
            logits = quantized((1 + step) * own(inputs))
        loss = F.cross_entropy(gather(logits, count), torch.arange(count) % 4)
        optimizer.zero_grad()
        loss.backward()
        group.sum_gradients([*quantized.parameters()])
        optimizer.step()
    return dict(quantized.state_dict())


def training(group: Group, found: dict) -> None:
    found |= {f"trained/{name}": value for name, value in trained().items()}
    found |= {f"rounding/{name}": value for name, value in rounding_trained().items()}


CHECKS = (gathering, normalizing, masking, following, summing, agreeing, training)


def main(folder: Path, second_port: str) -> None:
    """All of the above, then an error in one process, then one that is killed."""
    rank, found, words = os.environ["RANK"], {"seconds": {}}, []
    try:
        with start(CPU) as group:
            for check in CHECKS:
                began = time.perf_counter()
                check(group, found)
                found["seconds"][check.__name__] = time.perf_counter() - began
            if group.rank == 1:
                raise errors.DataError("0001.png is damaged")
            group.barrier()
    except errors.CompressError as error:
        words.append([type(error).__name__, str(error)])
    kept = {name: found.pop(name) for name in list(found) if isinstance(found[name], torch.Tensor)}
    np.savez(folder / f"{rank}.npz", **{name: value.numpy() for name, value in kept.items()})
    (folder / f"{rank}.json").write_text(json.dumps({**found, "words": words}))
    # Once more without the help of torchrun, who will want to end this process as soon as the other one has ended.
    os.environ |= {"MASTER_PORT": second_port, "TORCHELASTIC_USE_AGENT_STORE": "False"}
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with start(CPU) as group:
            group.barrier()
            if group.rank == 1:
                time.sleep(0.3)  # until the other waits for rows
                (folder / "killed").write_text(str(time.time()))
                os.kill(os.getpid(), signal.SIGKILL)
            gather(torch.zeros(2, 3), 4)
    except errors.CompressError as error:
        words.append([type(error).__name__, str(error)])
    waited = time.time() - float((folder / "killed").read_text())
    (folder / f"{rank}.json").write_text(json.dumps({**found, "words": words, "waited": waited}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2])
