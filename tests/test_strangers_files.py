"""Files from strangers: what means harm is refused in one sentence, what is damaged listed, what is sound taken."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import malicious
import malicious_onnx
import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from PIL import Image
from torch import nn

from compress.config import as_named
from compress.data import Preprocessing, image_folder
from compress.data import files as image_files
from compress.data.files import Files
from compress.data.image_folder import ImageFolder
from compress.data.npz import Npz, arrays
from compress.data.unlabelled import Unlabelled
from compress.errors import DataError, ModelError
from compress.files.archive import leads_outside, members
from compress.files.onnx_file import read_onnx, read_whole
from compress.measure.file import read_file, session
from compress.models import MODELS
from compress.weights.loading import load_weights

# What means harm: the table of `malicious.py`, all of it through the command line, in one other process


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """How each case of the table ended; what is missing took the process with it."""
    command = [sys.executable, malicious.__file__, str(tmp_path_factory.mktemp("malicious"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert found, done.stderr
    return {each["name"]: each for each in found}


@pytest.mark.parametrize("name", malicious.table())
def test_what_means_harm_is_refused(name: str, ends: dict[str, dict[str, Any]]) -> None:
    assert ends[name]["complaints"] == [], ends[name]["said"]


# Sound state dicts


def test_a_checkpoint_with_an_optimizer_beside_the_weights(tmp_path: Path) -> None:
    theirs, net = nn.Linear(4, 3), nn.Linear(4, 3)
    optimizer = torch.optim.Adam(theirs.parameters())
    theirs(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    whole = {"epoch": 3, "best": 0.5, "model": theirs.state_dict(), "optimizer": optimizer.state_dict(), "args": None}
    torch.save(whole, tmp_path / "w.pth")
    load_weights(net, "linear", str(tmp_path / "w.pth"), keep_head=True)
    assert torch.equal(net.weight, theirs.weight)


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize(
    "made", [lambda t: t, lambda t: t.half().float(), lambda t: nn.Parameter(t), lambda t: t.T.clone().T]
)
def test_tensors_of_every_plain_kind(made: Callable[[torch.Tensor], torch.Tensor], old: bool, tmp_path: Path) -> None:
    net, state = nn.Linear(4, 3), {"weight": made(torch.randn(3, 4)), "bias": torch.zeros(3)}
    torch.save(state, tmp_path / "w.pth", _use_new_zipfile_serialization=not old)
    load_weights(net, "linear", str(tmp_path / "w.pth"), keep_head=True)
    assert torch.equal(net.weight, state["weight"])


@pytest.mark.parametrize("name", ["resnet18", "shufflenet_v2_x0_5", "mobilenet_v2_cifar"])
def test_whole_nets_are_within_the_bounds(name: str, tmp_path: Path) -> None:
    theirs = MODELS[name]()(1000, (3, 32, 32))
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    said = load_weights(MODELS[name]()(4, (3, 32, 32)), name, str(tmp_path / "w.pth"), keep_head=False)
    assert "1000 classes became 4" in said[0]


def test_whole_numbers_where_decimal_ones_are_needed(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(3, 4, dtype=torch.int8), "bias": torch.zeros(3)}, tmp_path / "w.pth")
    with pytest.raises(
        ModelError, match=r"holds whole numbers \(torch\.int8\) in weight, where linear has decimal ones"
    ):
        load_weights(nn.Linear(4, 3), "linear", str(tmp_path / "w.pth"), keep_head=True)


# Sound ONNX files


def test_an_archive_names_nothing_outside() -> None:
    inside = ["a", "a/b.npy", "./a", "a b", "…", "a..b"]
    outside = ["", "/a", "../a", "a/../../b", "a/..", "C:a", "C:\\a", "\\a", "a\\..\\b", "\\\\server\\a", "a\0"]
    assert [name for name in inside if leads_outside(name)] == []
    assert [name for name in outside if not leads_outside(name)] == []


def test_a_graph_of_functions_branches_and_sparse_weights_is_read(tmp_path: Path) -> None:
    model = malicious_onnx._functions([("f0", ["f1", "f1"]), ("f1", [])])
    values = numpy_helper.from_array(np.ones(1, np.float32), "thin")
    model.graph.sparse_initializer.append(
        onnx.SparseTensorProto(values=values, indices=malicious_onnx._indices(), dims=[8])
    )
    onnx.save(model, tmp_path / "x.onnx")
    assert len(read_onnx(tmp_path / "x.onnx").functions) == 2
    branch = malicious_onnx._branch(numpy_helper.from_array(np.ones(1, np.float32), "far"))
    onnx.save(branch, tmp_path / "y.onnx")
    assert read_onnx(tmp_path / "y.onnx").graph.node[1].op_type == "If"


@pytest.mark.parametrize("offset", [0, 8])
def test_weights_beside_the_file_are_read_from_where_they_lie(offset: int, tmp_path: Path) -> None:
    content = np.arange(108, dtype=np.float32).tobytes()
    (tmp_path / "w.bin").write_bytes(bytes(offset) + content)
    onnx.save(malicious_onnx.outside("w.bin", offset=str(offset)), tmp_path / "x.onnx")
    assert read_whole(tmp_path / "x.onnx", full=True).graph.initializer[0].raw_data == content
    session(tmp_path / "x.onnx")


def test_one_file_for_a_thousand_tensors_counts_a_thousand_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compress.files.onnx_tensors.LIMIT_BYTES", 2**20)
    (tmp_path / "w.bin").write_bytes(bytes(2**12))
    model = malicious_onnx.net(stored={f"w{i}": np.zeros(2**10, np.float32) for i in range(300)})
    for tensor in model.graph.initializer[1:]:
        malicious_onnx.kept_at(tensor, "w.bin")
    onnx.save(model, tmp_path / "x.onnx")
    with pytest.raises(ModelError, match=r"x\.onnx has 0\.0 GiB; more than 0\.000976562 GiB are not read"):
        read_onnx(tmp_path / "x.onnx")


def test_numbers_that_unpack_to_many_times_their_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compress.files.onnx_wire.PACKED_BYTES", 1000)
    model = malicious_onnx.net(stored={"v": np.ones(1)})
    tensor = model.graph.initializer[1]
    tensor.CopyFrom(helper.make_tensor("v", onnx.TensorProto.INT64, [2000], [1] * 2000))
    onnx.save(model, tmp_path / "x.onnx")
    with pytest.raises(ModelError, match=r"or 1,000 bytes of single numbers, and would take many times its size"):
        read_onnx(tmp_path / "x.onnx")


def test_a_graph_that_bears_the_mark_of_the_runtimes_own_format_is_a_graph(tmp_path: Path) -> None:
    model = malicious_onnx.net()
    model.producer_name = "ORTM"
    content = model.SerializeToString()
    assert content[4:8] == b"ORTM"
    assert session(content).get_inputs()[0].name == "x"
    (tmp_path / "x.ort").write_bytes(content)
    with pytest.raises(ModelError, match="has the name of ONNX Runtime's own format"):
        read_file(tmp_path / "x.ort")


# Sound archives


def test_arrays_of_either_order_and_compression(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    labels = np.arange(12) % 2
    everything = []
    for i, (save, order) in enumerate([(np.savez, "C"), (np.savez_compressed, "C"), (np.savez, "F")]):
        path = tmp_path / f"{i}.npz"
        save(path, train_images=np.asarray(images, order=order), train_labels=labels, other=np.array([{}], object))
        np.testing.assert_array_equal(arrays(path, {"train_images"})["train_images"], images)
        everything.append(Npz(path=path, size=8)(0))
    assert len({data.fingerprint for data in everything}) == 1


def test_an_array_with_a_header_of_version_two(tmp_path: Path) -> None:
    import zipfile

    file = io.BytesIO()
    np.lib.format.write_array(file, np.arange(5, dtype=np.uint8), version=(2, 0))
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("labels.npy", file.getvalue())
    assert arrays(tmp_path / "x.npz", {"labels"})["labels"].tolist() == [0, 1, 2, 3, 4]
    with (tmp_path / "x.npz").open("rb") as opened:
        assert [member.filename for member in members(opened)] == ["labels.npy"]


# Damaged pictures: stop, or skip up to a share


def images(root: Path, cut_off: int = 0, count: int = 100, **fields: Any) -> ImageFolder:
    """Two classes, `count` images in all, the first few of `cat` cut off."""
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (root / label).mkdir(parents=True)
        for i in range(count // 2):
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(root / label / f"{i:03}.png")
    for i in range(cut_off):
        path = root / "cat" / f"{i:03}.png"
        path.write_bytes(path.read_bytes()[:100])
    return ImageFolder(path=root, size=8, **fields)


@pytest.fixture(params=["in memory", "on demand"])
def kept(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param == "on demand":
        monkeypatch.setattr(image_folder, "IN_MEMORY_BYTES", 0)
        monkeypatch.setattr("compress.data.unlabelled.IN_MEMORY_BYTES", 0)
    return bool(request.param == "in memory")


def test_damaged_pictures_are_left_out_and_listed(kept: bool, tmp_path: Path) -> None:
    data = images(tmp_path, 1, damaged="skip")(0)
    assert len(data.train) + len(data.val) + len(data.test) == 99
    (warning,) = data.warnings
    assert warning.startswith(f"1 image file of 100 cannot be read and is left out: {tmp_path}/cat/000.png: ")
    for split in (data.train, data.val, data.test):
        assert split.images[np.arange(len(split))].shape == (len(split), 3, 8, 8)
    assert isinstance(data.train.images, Files) is not kept


@pytest.mark.usefixtures("kept")
def test_all_other_pictures_stay_in_their_splits(tmp_path: Path) -> None:
    whole = images(tmp_path / "whole")(0)
    partly = images(tmp_path / "partly", 1, damaged="skip")(0)
    gone = Image.open(tmp_path / "whole" / "cat" / "000.png")
    without = {np.asarray(gone).transpose(2, 0, 1).tobytes()}
    for mine, theirs in zip((whole.train, whole.val, whole.test), (partly.train, partly.val, partly.test), strict=True):
        pixels = [image.tobytes() for image in mine.images[np.arange(len(mine))].numpy()]
        assert [p for p in pixels if p not in without] == [
            image.tobytes() for image in theirs.images[np.arange(len(theirs))].numpy()
        ]


@pytest.mark.usefixtures("kept")
def test_more_damaged_pictures_than_allowed_end_the_run(tmp_path: Path) -> None:
    dataset = images(tmp_path, 12, damaged="skip")
    with pytest.raises(DataError) as caught:
        dataset(0)
    first, *listed = str(caught.value).splitlines()
    assert first == (
        "12 image files of 100 cannot be read (12 %), and `max_damaged` allows 1 %; repair or remove them, or allow "
        "more, `max_damaged: 0.12`:"
    )
    assert (len(listed), listed[-1]) == (11, "  and 2 more")
    (warning,) = dataset.model_copy(update={"max_damaged": 0.12})(0).warnings
    assert warning.startswith("12 image files of 100 cannot be read and are left out: ")
    assert warning.endswith(" and 2 more")


def test_stop_is_the_default_and_says_what_else_there_is(tmp_path: Path) -> None:
    dataset = images(tmp_path, 3)
    assert (dataset.damaged, dataset.max_damaged) == ("stop", 0.01)
    with pytest.raises(
        DataError,
        match=r"^3 image files cannot be read(.|\n)+or leave out with `damaged: skip` and `max_damaged: 0.03`",
    ):
        dataset(0)


def test_the_fields_stay_out_of_what_is_written_while_they_are_at_their_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_folder, "IN_MEMORY_BYTES", 0)
    dataset = images(tmp_path)
    assert "damaged" not in as_named(dataset)["image_folder"]
    assert as_named(dataset.model_copy(update={"damaged": "skip"}))["image_folder"]["damaged"] == "skip"
    assert dataset(0).fingerprint == dataset.model_copy(update={"damaged": "skip"})(0).fingerprint


def test_pictures_on_demand_are_tried_once_in_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_folder, "IN_MEMORY_BYTES", 0)
    tried: list[str] = []
    real = image_files.try_out
    monkeypatch.setattr(image_files, "try_out", lambda path: (tried.append(path), real(path)))
    dataset = images(tmp_path, 1, damaged="skip")
    for each in (dataset, dataset, dataset.model_copy(update={"size": 16})):  # a teacher's view is larger
        assert len(each(0).warnings) == 1
    assert len(tried) == 100
    images(tmp_path / "again", damaged="skip")(0)
    assert len(tried) == 200


@pytest.mark.usefixtures("kept")
def test_pictures_without_labels_follow_the_same_policy(tmp_path: Path) -> None:
    images(tmp_path, 1)
    prep, data = Preprocessing(size=8), ImageFolder(path=tmp_path / "few", size=8)
    images(tmp_path / "few", count=20)
    beside = Unlabelled(path=tmp_path / "cat", damaged="skip", max_damaged=0.02).joined(data(0), prep)
    assert beside.unlabelled is not None
    assert len(beside.unlabelled) == 49
    said = "unlabelled: 1 image file of 50 cannot be read and is left out: "
    assert [text for text in beside.warnings if text.startswith(said)]
    with pytest.raises(DataError, match="1 image file of 50 cannot be read"):
        Unlabelled(path=tmp_path / "cat", damaged="skip", max_damaged=0.001)(prep)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_picture_that_may_not_be_read(tmp_path: Path) -> None:
    dataset = images(tmp_path)
    (tmp_path / "cat" / "000.png").chmod(0)
    with pytest.raises(DataError, match=r"cat/000\.png: permission denied"):
        dataset(0)


@pytest.mark.parametrize("mode", ["LA", "RGBA", "CMYK", "YCbCr", "LAB"])
def test_odd_modes_are_seen_as_on_a_page(mode: str, tmp_path: Path) -> None:
    grey = Image.new("L", (8, 8), 200)
    lightness = [Image.new("L", (8, 8), value) for value in (205, 128, 128)]  # L*, a*, b* of 200 (CIE 1976)
    picture = Image.merge("LAB", lightness) if mode == "LAB" else grey.convert("RGB").convert(mode)
    picture.save(tmp_path / "x.tif")
    seen = image_files.read(str(tmp_path / "x.tif"), Preprocessing(size=8))
    assert np.abs(seen.astype(int) - 200).max() <= 2


def test_of_many_pages_the_first_counts_and_a_wrong_suffix_does_not_matter(tmp_path: Path) -> None:
    pages = [Image.new("RGB", (8, 8), (value, value, value)) for value in (10, 20, 30)]
    pages[0].save(tmp_path / "x.png", "TIFF", save_all=True, append_images=pages[1:])
    assert (image_files.read(str(tmp_path / "x.png"), Preprocessing(size=8)) == 10).all()
