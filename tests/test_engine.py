"""How a net is run in training: the quicker way, never a wrong one, and nothing is left behind by trying."""

import shutil

import pytest
import torch
from torch import nn

from compress.edits.quantizers import ActivationQuantizer
from compress.training.engine import Engine, fastest

MANY = 10**9  # steps, enough for anything to pay


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 5)
    )


def images(batch: int = 4) -> torch.Tensor:
    return torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def chosen(module: nn.Module, compiling: str = "auto", steps: int = MANY, watched: bool = False) -> Engine:
    return fastest(module.train(), module, images(), compiling=compiling, steps=steps, watched=watched)


@pytest.fixture
def timed(monkeypatch):
    """Say what each way takes: `timed(plain=10, compiled=5)`; what is compiled is the net itself."""

    def set_times(**times: float) -> None:
        compiled = lambda run, mode: lambda inputs: run(inputs)  # noqa: E731
        monkeypatch.setattr(torch, "compile", compiled)
        order = iter(times.values())
        monkeypatch.setattr("compress.training.engine._step_ms", lambda *_: next(order))

    return set_times


@pytest.mark.parametrize(("compiled", "name"), [(8.9, "compiled"), (9.1, "plain"), (20.0, "plain")])
def test_a_compiled_net_has_to_be_quicker_by_a_tenth(timed, compiled, name):
    timed(plain=10.0, compiled=compiled)
    engine = chosen(network())
    assert engine.name == name
    assert engine.step_ms == {"plain": 10.0, "compiled": compiled}
    assert engine.describe() == f"training step: {name} (plain 10.0 ms, compiled {compiled:.1f} ms)"


def test_on_compiles_even_where_it_is_slower(timed):
    timed(plain=10.0, compiled=20.0)
    assert chosen(network(), "on", steps=1).name == "compiled"


def test_a_short_training_is_neither_timed_nor_compiled(timed):
    timed()
    engine = chosen(network(), steps=1000)
    assert (engine.name, engine.step_ms) == ("plain", {})


def test_a_training_that_turns_out_short_is_not_compiled(timed):
    timed(plain=0.009)
    assert chosen(network(), steps=60_000_000).step_ms == {"plain": 0.009}  # 540 seconds


@pytest.mark.parametrize("compiling", ["auto", "on"])
def test_watched_and_rounding_nets_run_as_they_are(timed, compiling):
    timed()
    assert chosen(network(), compiling, watched=True).name == "plain"
    assert chosen(nn.Sequential(ActivationQuantizer(), network()), compiling).name == "plain"


def test_off_is_off(timed):
    timed()
    assert chosen(network(), "off").name == "plain"


def test_a_compiler_that_fails_is_told_and_done_without(monkeypatch):
    def broken(run, mode):
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(torch, "compile", broken)
    engine = chosen(network(), "on")
    assert engine.name == "plain"
    assert engine.remark == "compiled failed (RuntimeError)"
    assert engine.describe().endswith("ms); compiled failed (RuntimeError)")


def test_a_compiler_that_computes_something_else_is_not_used(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda run, mode: lambda inputs: 1.01 * run(inputs))
    engine = chosen(network(), "on")
    assert engine.name == "plain"
    assert engine.remark == "compiled gives other logits, 1.0e-02 of their norm off"


def test_trying_leaves_nothing_behind(timed, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda run, mode: run)
    module = network()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    random = torch.random.get_rng_state()
    engine = chosen(module, "on")
    assert engine.name == "compiled"
    assert torch.equal(random, torch.random.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(p.grad is None for p in module.parameters())
    assert module.training


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0")
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="nothing here compiles C++")
def test_a_really_compiled_net_trains_as_the_plain_one_does():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.Linear(8, 5))
    module = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.Linear(8, 5))
    module.load_state_dict(plain.state_dict())
    engine = chosen(module, "on")
    assert engine.name == "compiled"
    for net, run in ((plain, plain), (module, engine.run)):
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        for _ in range(3):
            optimizer.zero_grad()
            engine.begin_step()
            run(images()).square().mean().backward()
            optimizer.step()
    for mine, theirs in zip(module.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)
