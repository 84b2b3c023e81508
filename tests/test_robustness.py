"""Corruptions against their definition in float64, and accuracy under them against ONNX Runtime itself."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from exporting import quantized
from tiny import raw_pipeline, tiny_pipeline

from compress.errors import ConfigError
from compress.events import ignore
from compress.export.onnx import Export, Exporter
from compress.measure.corruptions import CORRUPTIONS, PUBLISHED, corrupted, published_size
from compress.measure.robustness import FILE, Corrupter, Robustness, mean_top1
from compress.pipeline import Pipeline, parsed, read
from compress.running.runner import run


def pictures(count: int = 6, channels: int = 3, size: int = 32) -> np.ndarray:
    """Smooth shapes with edges and some noise, from black to white."""
    random = np.random.default_rng(5)
    across = np.linspace(0, 6, size)
    waves = np.sin(across[:, None] * random.uniform(0.5, 2, (count, channels, 1, 1)) + across)
    return np.clip(127 + 160 * waves + random.normal(0, 20, waves.shape), 0, 255).astype(np.uint8)


def assert_close(ours: np.ndarray, expected: np.ndarray) -> None:
    """Equal after cutting to whole levels, but where the exact value is within rounding errors of the next one."""
    level = np.clip(expected, 0, 255)
    assert np.abs(ours - np.floor(level)).max() <= 1
    clear = np.abs(level - np.round(level)) > 2e-3
    assert (ours[clear] == np.floor(level)[clear]).all()
    assert clear.mean() > 0.5 or (ours == np.round(level)).all()


@pytest.mark.parametrize("severity", [1, 3, 5])
@pytest.mark.parametrize("size", [32, 64, 100, 224])
def test_blur_is_a_convolution_with_a_gaussian(size: int, severity: int) -> None:
    images = pictures(2, 3, size)
    sigma = {32: (0.4, 0.7, 1), 64: (0.5, 1, 1.5), 100: (0.5, 1, 1.5), 224: (1, 3, 6)}[size][severity // 2]
    reach = int(4 * sigma + 0.5)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    weights /= weights.sum()
    padded = np.pad(images.astype(np.float64), ((0, 0), (0, 0), (reach, reach), (reach, reach)), mode="edge")
    rows = sum(weight * padded[:, :, i : i + size, :] for i, weight in enumerate(weights))
    assert_close(
        corrupted(images, "blur", severity), sum(w * rows[:, :, :, i : i + size] for i, w in enumerate(weights))
    )


@pytest.mark.parametrize(("size", "severity", "factor"), [(32, 1, 0.75), (32, 3, 0.4), (64, 2, 0.3), (224, 5, 0.05)])
def test_contrast_shrinks_the_distance_to_each_channels_mean(size: int, severity: int, factor: float) -> None:
    images = pictures(3, 3, size)
    exact = images.astype(np.float64)
    expected = np.empty_like(exact)
    for image, wanted in zip(exact, expected, strict=True):
        for channel in range(3):
            mean = image[channel].mean()
            wanted[channel] = (image[channel] - mean) * factor + mean
    assert_close(corrupted(images, "contrast", severity), expected)


@pytest.mark.parametrize(
    ("size", "severity", "deviation"), [(32, 1, 0.04), (32, 5, 0.10), (64, 3, 0.12), (224, 3, 0.18), (224, 5, 0.38)]
)
def test_noise_is_normal_and_clipped(size: int, severity: int, deviation: float) -> None:
    images = pictures(4, 3, size)
    ours = corrupted(images, "noise", severity, np.random.default_rng(9))
    drawn = np.random.default_rng(9).standard_normal(images.shape, dtype=np.float32).astype(np.float64)
    assert_close(ours, images + 255 * deviation * drawn)
    grey = np.full((200, 1, size, size), 128, np.uint8)[: 200 * 32 * 32 // size**2 + 4]
    noisy = corrupted(grey, "noise", 1, np.random.default_rng(1)).astype(np.float64) + 0.5
    assert noisy.std() == pytest.approx(255 * {32: 0.04, 64: 0.04, 224: 0.08}[size], rel=0.01)
    assert noisy.mean() == pytest.approx(128, abs=0.3)


def test_noise_does_not_depend_on_the_batches() -> None:
    images = pictures(7)
    whole = corrupted(images, "noise", 3, np.random.default_rng(4))
    random = np.random.default_rng(4)
    parts = [corrupted(part, "noise", 3, random) for part in (images[:3], images[3:4], images[4:])]
    assert (np.concatenate(parts) == whole).all()
    assert (corrupted(images, "noise", 3, np.random.default_rng(5)) != whole).any()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_a_higher_severity_changes_more(corruption: Any, channels: int) -> None:
    for size in (32, 64, 224):
        images = pictures(2, channels, size)
        before = images.copy()
        changed = []
        for severity in range(1, 6):
            worse = corrupted(images, corruption, severity, np.random.default_rng(0))
            assert (worse.shape, worse.dtype) == (images.shape, np.uint8)
            changed.append(np.abs(worse.astype(int) - images).mean())
        assert changed == sorted(changed)
        assert 0 < changed[0] < changed[-1]
        assert (images == before).all()


def test_an_even_image_stays_as_it_is_but_for_noise() -> None:
    for level in range(256):
        even = np.full((1, 3, 16, 16), level, np.uint8)
        for severity in (1, 5):
            assert (corrupted(even, "blur", severity) == level).all()
            assert (corrupted(even, "contrast", severity) == level).all()


def test_strengths_are_those_of_the_nearest_published_size() -> None:
    assert [published_size(side) for side in (8, 28, 32, 40, 64, 96, 128, 160, 224, 1024)] == [
        32, 32, 32, 32, 64, 64, 224, 224, 224, 224,
    ]  # fmt: skip
    for strengths in PUBLISHED.values():
        assert set(strengths) == set(CORRUPTIONS)
        assert all(len(each) == 5 for each in strengths.values())


# Files under corruption


FORMS = ("float32_nchw", "uint8_nhwc")


@pytest.fixture(scope="module")
def files(images, small_net, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    """A float and an int8 file for each kind of input."""
    folder = tmp_path_factory.mktemp("files")
    found: dict[str, dict[str, Path]] = {form: {} for form in FORMS}
    for form in FORMS:
        exporter = Exporter(Export(input=form), images.mean, images.std)
        for name, net in (("one", small_net(0)), ("two", quantized(small_net(1)))):
            found[form][name] = folder / f"{name}-{form}.onnx"
            found[form][name].write_bytes(exporter(net, {}).SerializeToString())
    return found


def folders(tmp_path: Path) -> dict[str, Path]:
    found = {name: tmp_path / name for name in ("one", "two")}
    for folder in found.values():
        folder.mkdir(exist_ok=True)
    return found


@pytest.mark.parametrize("form", FORMS)
def test_accuracy_is_what_onnx_runtime_says(form: Any, images, files, tmp_path: Path) -> None:
    settings = Robustness(severity=4)
    found = Corrupter(images, settings, form, seed=3, threads=1)(files[form], folders(tmp_path))
    clean = images.test.images[np.arange(len(images.test))].numpy()
    random = np.random.default_rng([3, *b"noise"])
    for corruption in CORRUPTIONS:
        worse = corrupted(clean, corruption, 4, random)
        fed: np.ndarray = worse.transpose(0, 2, 3, 1)
        if form == "float32_nchw":
            mean, std = (np.array(each, np.float32)[:, None, None] for each in (images.mean, images.std))
            fed = (worse.astype(np.float32) / 255 - mean) / std
        for name, path in files[form].items():
            session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
            said = session.run(None, {"input": np.ascontiguousarray(fed)})[0].argmax(1)
            expected = 100 * float((said == images.test.labels).mean())
            # Sums in another order may turn one of 64 images where two logits are level.
            assert found[name][corruption] == pytest.approx(expected, abs=100 / len(said) + 1e-9)
    assert mean_top1({"noise": 10.0, "blur": 40.0}) == 25.0


def test_what_was_measured_is_kept_until_something_changes(
    images, files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, told = folders(tmp_path), []
    first = dict(files["float32_nchw"])

    def measured(paths: dict[str, Path], seed: int = 0, tell: Any = None, **settings: Any) -> list[str]:
        """Which files were really run."""
        ran: list[str] = []
        whole = Corrupter.measure
        with monkeypatch.context() as patch:
            patch.setattr(Corrupter, "measure", lambda self, some: (ran.extend(some), whole(self, some))[1])
            corrupter = Corrupter(images, Robustness(**settings), "float32_nchw", seed, 1, tell or ignore)
            results.append(corrupter(paths, kept))
        return ran

    results: list[Any] = []
    assert measured(first, tell=told.append) == ["one", "two"]
    assert [event["done"] for event in told] == [64]
    assert measured(first) == []
    assert results[0] == results[1]
    assert measured(first, seed=1) == ["one", "two"]
    assert measured(first, severity=5) == ["one", "two"]
    assert measured(first, severity=5, corruptions=["blur"]) == ["one", "two"]
    assert results[-1]["one"] == {"blur": results[-2]["one"]["blur"]}
    assert measured(first, severity=5, corruptions=["blur"]) == []
    (kept["one"] / FILE).write_text('{"made_of": "x", "top1": {"blur":')
    assert measured(first, severity=5, corruptions=["blur"]) == ["one"]
    content = json.loads((kept["one"] / FILE).read_text())
    (kept["one"] / FILE).write_text(json.dumps(content | {"top1": {"blur": float("nan")}}))
    assert measured(first, severity=5, corruptions=["blur"]) == ["one"]
    changed = tmp_path / "changed.onnx"
    changed.write_bytes(files["float32_nchw"]["two"].read_bytes())
    assert measured(first | {"one": changed}, severity=5, corruptions=["blur"]) == ["one"]
    assert results[-1]["one"] == results[-1]["two"]


# In a pipeline


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"severity": 6}, "robustness.severity: should be less than or equal to 5, not 6"),
        ({"severity": 0}, "robustness.severity: should be greater than or equal to 1, not 0"),
        ({"corruptions": ["fog"]}, "robustness.corruptions.0: should be 'noise', 'blur' or 'contrast', not 'fog'"),
        ({"corruptions": ["blur", "blur"]}, "robustness.corruptions: blur stands here twice"),
        ({"corruptions": []}, "robustness.corruptions: "),
        ({"severty": 3}, "robustness.severty: no such key. Did you mean 'severity'?"),
    ],
)
def test_settings_that_cannot_be(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parsed(raw_pipeline(robustness=given), "tiny.yaml")
    assert message in str(caught.value)


def test_it_is_off_by_default_and_written_back(tmp_path: Path) -> None:
    assert tiny_pipeline().robustness is None
    asked = tiny_pipeline(robustness={})
    assert asked.robustness == Robustness(corruptions=("noise", "blur", "contrast"), severity=3)
    (tmp_path / "p.yaml").write_text(asked.as_yaml())
    again: Pipeline = read(tmp_path / "p.yaml")
    assert again == asked


def test_a_run_measures_every_net_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def untrained(**more: Any) -> Pipeline:
        training = {"epochs": 0}
        stages = [{"distill": {"training": training}}, {"quantize": {"training": training}}]
        # The teacher sees images of another size, and its file is measured on those.
        teacher = {"model": {"tiny": {"width": 48}}, "training": training, "view": {"size": 24}}
        data = {"synthetic": {"size": 16, "classes": 4, "samples": 80}}
        return tiny_pipeline(stages=stages, teacher=teacher, data=data, **more)

    plain = run(untrained(), tmp_path)
    stages = sorted(path.name for path in (tmp_path / "stages").iterdir())
    assert plain.report.robustness == ()
    outcome = run(untrained(robustness={"severity": 2, "corruptions": ["contrast", "noise"]}), tmp_path)
    assert sorted(path.name for path in (tmp_path / "stages").iterdir()) == stages  # nothing was made again
    lines = json.loads((tmp_path / "report.json").read_text())["robustness"]
    assert [line["net"] for line in lines] == ["teacher", "baseline", "distill", "quantize"]
    for line, row in zip(lines, outcome.report.rows, strict=True):
        assert set(line) == {"net", "clean", "noise", "blur", "contrast", "mean", "severity"}
        assert (line["clean"], line["blur"], line["severity"]) == (row.top1_onnx, None, 2)
        assert line["mean"] == pytest.approx((line["noise"] + line["contrast"]) / 2)
        assert all(0 <= line[key] <= 100 for key in ("clean", "noise", "contrast", "mean"))
    assert "severity 2 of 5" in (tmp_path / "report.md").read_text()

    monkeypatch.setattr(Corrupter, "measure", lambda *_: pytest.fail("measured a second time"))
    again = run(untrained(robustness={"severity": 2, "corruptions": ["contrast", "noise"]}), tmp_path)
    assert again.report.robustness == outcome.report.robustness
