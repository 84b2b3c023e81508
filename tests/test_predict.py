"""`compress predict`: pictures in, classes out, by what a file says of itself."""

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from commandline import as_it_was, done
from PIL import Image
from rich.cells import cell_len
from tiny import tiny_pipeline

from compress import cli
from compress.errors import DataError, ModelError
from compress.export.onnx import Export
from compress.files.onnx_file import read_onnx
from compress.net import Net, Spec, build
from compress.running.proof import Prover
from compress.running.runner import about
from compress.verbs.classify import opened, predict, render

EXAMPLE = Path(__file__).parent.parent / "examples" / "predict.py"
CLASSES = ("a cat", "dog", "emu")
STAGES = [{"quantize": {"method": "ptq"}}]
KINDS = {
    "colour": {"input": "float32_nchw", "channels": 3, "resize": "squash"},
    "grey": {"input": "float32_nchw", "channels": 1, "resize": "letterbox", "interpolation": "bicubic"},
    "raw": {"input": "uint8_nhwc", "channels": 3, "resize": "crop"},
    "raw grey, one at a time": {"input": "uint8_nhwc", "channels": 1, "resize": "squash", "target": "mobile"},
}


@dataclass(frozen=True)
class Made:
    """A file as a run makes it of a folder of images, and what the run predicted of them."""

    model: Path
    images: list[Path]
    onnx: list[int]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of pictures of all shapes, grey and transparent ones among them."""
    here = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for split, count in (("train", 4), ("test", 5)):
        for label, name in enumerate(CLASSES):
            (here / split / name).mkdir(parents=True)
            for i in range(count):
                shape = (20 + 3 * i, 40 - 4 * label, 3)
                cells = np.kron(random.integers(0, 256, (3, 3, 3)), np.ones((20, 20, 1)))[: shape[0], : shape[1]]
                picture = Image.fromarray(cells.astype(np.uint8))
                picture = picture.convert("L") if i == 1 else picture.convert("RGBA") if i == 2 else picture
                picture.save(here / split / name / f"{i}.png")
    return here


@pytest.fixture(scope="module", params=KINDS)
def made(request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    keys = dict(KINDS[request.param])
    export = {key: keys.pop(key) for key in ("input", "target") if key in keys}
    pipeline = tiny_pipeline(
        data={"image_folder": {"path": str(folder), "size": 16, **keys}},
        teacher=None,
        stages=STAGES,
    )
    data = pipeline.data(seed=0)
    torch.manual_seed(0)
    spec = Spec(architecture=pipeline.student.architecture, classes=3, image=data.image)
    net = decided(build(spec, seed=0), data.inputs(data.test.images[np.arange(15)]))
    out = tmp_path_factory.mktemp("run")
    Prover(out, data, Export(**export), torch.device("cpu"), about(pipeline)).prove(
        net, "baseline", "models/baseline.onnx", out / "kept", "key"
    )
    rows = list(csv.DictReader((out / "predictions" / "baseline.csv").read_text().splitlines()))
    images = sorted((folder / "test").rglob("*.png"))
    assert len(rows) == len(images) == 15
    return Made(out / "models" / "baseline.onnx", images, [int(row["onnx"]) for row in rows])


def decided(net: Net, images: torch.Tensor) -> Net:
    """The net with a classifier that tells these images apart, so that a wrong preprocessing shows."""
    net.module.eval()
    head = net.module.head
    with torch.no_grad():
        features = []
        hook = head.register_forward_pre_hook(lambda _, given: features.append(given[0]))
        net.module(images)
        hook.remove()
        centred = features[0] - features[0].mean(0)
        directions = torch.linalg.svd(centred, full_matrices=False).Vh[:3]
        head.weight.copy_(100 * directions)
        head.bias.copy_(-100 * directions @ features[0].mean(0))
    return net


def test_pictures_get_the_classes_that_the_run_predicted(made: Made) -> None:
    found = list(predict(made.model, made.images, top=2))
    assert [each.classes[0].label for each in found] == made.onnx
    assert len(set(made.onnx)) == 3, "else a wrong preprocessing might not show"
    for each in found:
        assert [CLASSES[guess.label] for guess in each.classes] == [guess.name for guess in each.classes]
        assert 1 >= each.classes[0].probability >= each.classes[1].probability >= 0


def test_the_example_says_the_same(made: Made) -> None:
    command = [sys.executable, "-I", str(EXAMPLE), str(made.model), *map(str, made.images)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    expected = [
        f"{each.image}: " + ", ".join(f"{guess.name} {100 * guess.probability:.1f} %" for guess in each.classes)
        for each in predict(made.model, made.images, top=3)
        if not each.image.endswith("2.png")  # transparent ones show white in a run
    ]
    assert [line for line in ended.stdout.splitlines() if "2.png:" not in line] == expected


@pytest.fixture(scope="module")
def colour(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One float file for three classes."""
    pipeline = tiny_pipeline(data={"image_folder": {"path": str(folder), "size": 16}}, teacher=None, stages=STAGES)
    data, out = pipeline.data(seed=0), tmp_path_factory.mktemp("one")
    net = build(Spec(architecture=pipeline.student.architecture, classes=3, image=data.image), seed=0)
    prover = Prover(out, data, Export(), torch.device("cpu"), about(pipeline))
    prover.prove(net, "baseline", "models/baseline.onnx", out / "kept", "key")
    return out / "models" / "baseline.onnx"


def changed(model: Path, here: Path, **metadata: str | None) -> Path:
    """A copy with other metadata; None takes a key out."""
    copy = onnx.load(model)
    kept = {each.key: each.value for each in copy.metadata_props} | metadata
    del copy.metadata_props[:]
    onnx.helper.set_model_props(copy, {key: value for key, value in kept.items() if value is not None})
    onnx.save(copy, here / "changed.onnx")
    return here / "changed.onnx"


def test_probabilities_are_the_softmax_of_the_logits(colour: Path, folder: Path) -> None:
    image = folder / "test" / "dog" / "0.png"
    (found,) = predict(colour, [image])
    classifier = opened(colour)
    pixels = np.asarray(Image.open(image).resize((16, 16), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    exact = torch.from_numpy(classifier.logits(pixels[None])[0]).softmax(0)
    assert len(found.classes) == 3, "no more than there are"
    for guess in found.classes:
        assert guess.probability == pytest.approx(float(exact[guess.label]))


def test_the_table_and_the_json(colour: Path, folder: Path, tmp_path: Path) -> None:
    names = json.dumps(["\x1b[31mred", "two\nlines", "emu"])
    model = changed(colour, tmp_path, class_names=names)
    images = [folder / "test" / "dog" / f"{i}.png" for i in range(2)]
    found = list(predict(model, images, top=3))
    table = render(model, found, as_json=False)
    lines = table.splitlines()
    assert lines[0].split() == ["image", "class", "probability"]
    assert len(lines) == 7
    assert str(images[0]) in lines[1]
    assert str(images[1]) in lines[4]
    assert "\x1b" not in table
    assert "two lines" in table
    raw = json.loads(render(model, found, as_json=True))
    assert raw["model"] == str(model)
    assert [each["image"] for each in raw["images"]] == list(map(str, images))
    assert sum(guess["probability"] for guess in raw["images"][0]["classes"]) == pytest.approx(1)


def test_the_verb(colour: Path, folder: Path) -> None:
    words = (str(colour), "test/dog/0.png", "test/emu/1.png", "--top", "2")
    expected = list(predict(colour, [Path(word) for word in map(folder.joinpath, words[1:3])], top=2))
    found = json.loads(done(folder, "predict", *words, "--json"))
    assert [[guess["probability"] for guess in each["classes"]] for each in found["images"]] == [
        [guess.probability for guess in each.classes] for each in expected
    ]
    assert len(done(folder, "predict", *words).splitlines()) == 5


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"mean": None, "class_names": None}, "its metadata have no mean, class_names"),
        ({"mean": "0.5,"}, "its metadata are damaged: mean"),
        ({"mean": "[0.5, NaN, 0.5]"}, "its metadata are damaged: mean.1"),
        ({"std": "[0, 1, 1]"}, "its metadata are damaged: std.0"),
        ({"std": '"abc"'}, "its metadata are damaged: std"),
        ({"resize": "stretch"}, "its metadata are damaged: resize"),
        ({"mean": "[0.5]"}, "1 means for 3 channels"),
        ({"class_names": '["a", "b"]'}, "names 2 classes and gives (1, 3)"),
        ({"std": "[1e-39, 1e-39, 1e-39]"}, "not finite"),
    ],
)
def test_what_is_wrong_with_metadata_is_said(
    colour: Path, folder: Path, tmp_path: Path, metadata: dict[str, str | None], said: str
) -> None:
    model = changed(colour, tmp_path, **metadata)
    with pytest.raises(ModelError) as caught, np.errstate(over="ignore"):
        list(predict(model, [folder / "test" / "dog" / "0.png"]))
    assert said in str(caught.value)
    assert "changed.onnx" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_takes_no_pictures_is_refused(colour: Path, tmp_path: Path) -> None:
    copy = onnx.load(colour)
    for size, side in zip(copy.graph.input[0].type.tensor_type.shape.dim[2:], (16, 32), strict=True):
        size.dim_value = side
    onnx.save(copy, tmp_path / "wide.onnx")
    with pytest.raises(ModelError, match=r"wide.onnx takes tensor\(float\)"):
        opened(tmp_path / "wide.onnx")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no such file or directory"),
        (b"", "the file is empty"),
        (b"GIF89a no picture", "gif"),
        (b"%!PS-Adobe", "not an image in a known format"),
    ],
)
def test_pictures_that_cannot_be_read_are_named(colour: Path, folder: Path, tmp_path: Path, content, said: str) -> None:
    bad = tmp_path / "gif.png"
    if content is not None:
        bad.write_bytes(content)
    found = []
    with pytest.raises(DataError) as caught:
        found.extend(predict(colour, [bad, folder / "test" / "dog" / "0.png"]))
    assert "1 picture cannot be read" in str(caught.value)
    assert f"{bad}: " in str(caught.value)
    assert said in str(caught.value)
    assert found == list(predict(colour, [folder / "test" / "dog" / "0.png"])), "the others are predicted"


def test_a_folder_stands_for_its_pictures(colour: Path, folder: Path, tmp_path: Path) -> None:
    inside = sorted((folder / "test").rglob("*.png"))
    assert list(predict(colour, [folder / "test"])) == list(predict(colour, inside))
    (tmp_path / "IMG_1.HEIC").write_bytes(b"x")
    with pytest.raises(DataError, match=r"holds no pictures\nLeft out 1 image in formats .* convert HEIC to JPEG"):
        list(predict(colour, [tmp_path]))


def test_the_command_shows_what_can_be_read_before_it_names_what_cannot(
    colour: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.png").write_bytes(b"x")
    good = folder / "test" / "dog" / "0.png"
    monkeypatch.setattr("sys.argv", ["compress", "predict", str(colour), str(tmp_path / "bad.png"), str(good)])
    with as_it_was(), pytest.raises(SystemExit) as ended:
        cli.main()
    shown = capsys.readouterr()
    assert ended.value.code == DataError("").exit_code
    assert str(good) in shown.out
    assert "1 picture cannot be read" in shown.err


@pytest.mark.parametrize("read", [opened, read_onnx])
def test_a_run_folder_names_its_files(made: Made, read: Callable[[Path], object]) -> None:
    with pytest.raises(ModelError, match=r"is a run folder; name one of its files: .*models/baseline\.onnx"):
        read(made.model.parent.parent)


def test_columns_stand_under_each_other_whatever_the_names(colour: Path, folder: Path, tmp_path: Path) -> None:
    model = changed(colour, tmp_path, class_names=json.dumps(["🥤", "Käse", "emu"]))
    table = render(model, list(predict(model, [folder / "test" / "dog" / "0.png"], top=3)), as_json=False)
    assert len({cell_len(line[: line.rindex(".")]) for line in table.splitlines()[1:]}) == 1
