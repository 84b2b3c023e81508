import json
import re
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from compress.edits.channels import Channels
from compress.edits.placement import Quantizers
from compress.errors import ArtifactError, ModelError
from compress.models.mobilenet_v1 import MobileNetV1
from compress.net import Net, Spec, build, load, probe, save

SPEC = Spec(architecture=MobileNetV1(width=0.25), classes=4, image=(3, 16, 16))


@pytest.fixture
def saved(tmp_path, small_net):
    save(small_net(), tmp_path)
    return tmp_path


def test_weights_follow_from_the_seed_alone():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, again, other = (build(SPEC, seed).module.state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_net_knows_its_size(small_net):
    net = small_net()
    by_hand = sum(p.numel() for p in net.module.parameters())
    assert (net.params, net.int8, tuple(net.example(3).shape)) == (by_hand, False, (3, 3, 16, 16))
    assert Net(SPEC, Quantizers()(net.module)).int8


def test_the_key_follows_the_shape():
    edited = SPEC.edited(Quantizers())
    assert edited.edits == (Quantizers(),)
    assert SPEC.edits == ()
    assert SPEC.key == SPEC.model_copy().key != edited.key
    assert Spec.model_validate(edited.model_dump(mode="json")) == edited


def test_what_is_saved_is_loaded_to_the_bit(small_net, tmp_path):
    net = small_net(seed=3)
    folded = Net(net.spec.edited(Quantizers()), Quantizers()(net.module))
    folded.module.to(memory_format=torch.channels_last)
    save(folded, tmp_path)
    found = load(tmp_path)
    assert found.spec == folded.spec
    state = found.module.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in folded.module.state_dict().items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.json", "weights.safetensors"]
    assert not zipfile.is_zipfile(tmp_path / "weights.safetensors")  # which is what torch.save writes


def test_saving_twice_gives_the_same_bytes(small_net, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        save(small_net(), tmp_path / name)
    for file in ("net.json", "weights.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def refused(folder) -> str:
    with pytest.raises(ArtifactError) as caught:
        load(folder)
    return str(caught.value)


def test_no_description(saved):
    (saved / "net.json").unlink()
    assert refused(saved) == f"{saved} holds no net: net.json is missing"


def test_a_description_that_is_no_json(saved):
    (saved / "net.json").write_text("{")
    assert refused(saved) == f"{saved / 'net.json'} is damaged; delete {saved} to train again"


@pytest.mark.parametrize("change", [{"classes": 0}, {"architecture": {"resnet1": {}}}, {"edits": [{"pickle": {}}]}])
def test_a_description_of_no_net(saved, change):
    spec = json.loads((saved / "net.json").read_text())
    (saved / "net.json").write_text(json.dumps(spec | change))
    assert re.match(rf"{re.escape(str(saved / 'net.json'))} describes no net \(.+\); delete", refused(saved))


def test_no_weights(saved):
    (saved / "weights.safetensors").unlink()
    assert "weights.safetensors is missing; delete the folder to train again" in refused(saved)


def test_damaged_weights(saved):
    path = saved / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    assert "is damaged or of another net" in refused(saved)


def test_weights_of_another_net(saved):
    state = load_file(saved / "weights.safetensors")
    state.pop("classifier.bias")
    save_file(state, saved / "weights.safetensors")
    assert "is damaged or of another net" in refused(saved)


def test_edits_of_another_net(saved):
    spec = json.loads((saved / "net.json").read_text())
    spec["edits"] = [{"channels": Channels(sizes={"features.0.0": (3, 999, 1)}).model_dump(mode="json")}]
    (saved / "net.json").write_text(json.dumps(spec))
    assert "belongs to another network or is damaged" in refused(saved)


class Saying(nn.Module):
    """Answers with what it was given, or raises it."""

    def __init__(self, answer) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (torch.zeros(2, 5), "mobilenet_v1 gives (2, 5) for a batch of 2 where (2, 4) logits are needed"),
        ({"out": 1}, "mobilenet_v1 gives dict for a batch of 2 where (2, 4) logits are needed"),
        (RuntimeError("kernel 7 > 3\nat line 1"), "cannot take images (3, 16, 16): kernel 7 > 3. Choose another"),
        (AssertionError(), "cannot take images (3, 16, 16): AssertionError. Choose another"),
    ],
)
def test_a_net_is_tried_before_it_is_trained(answer, message):
    with pytest.raises(ModelError, match=re.escape(message)):
        probe(Net(SPEC, Saying(answer)))


def test_trying_leaves_the_modes_of_layers(small_net):
    net = small_net()
    net.module.train()
    net.module.pool.eval()
    probe(net)
    assert net.module.training
    assert not net.module.pool.training
