"""The device itself: the script in `models/`, what it is compared with there, and its figures in the report."""

import ast
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from commandline import done
from tiny import tiny_pipeline

from compress.data import Data
from compress.environment import FLAGS
from compress.errors import ArtifactError
from compress.export.onnx import Export
from compress.files import run_folder
from compress.files.checksums import sha256
from compress.pipeline import Pipeline
from compress.report import read
from compress.running import runner
from compress.running.proof import Prover
from compress.running.shipping import ship
from compress.shipped import bench
from compress.verbs.devices import report_again

SCRIPT = Path(bench.__file__)
FEW = {"rounds": 2, "threads": 1, "batch": 1}
PI_5 = {
    "/proc/cpuinfo": "".join(
        f"processor\t: {i}\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd {extra}\nCPU part\t: 0xd0b\n"
        for i, extra in enumerate(("asimddp", "asimddp", "asimddp sve", "asimddp"))
    ),
    "/proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
}


def pipeline(**quantize) -> Pipeline:
    """One stage, with a float file, an int8 one and no teacher."""
    training = {"epochs": 1, "batch_size": 16}
    return tiny_pipeline(
        teacher=None,
        data={"synthetic": {"size": 16, "classes": 4, "samples": 40}},
        baseline={"training": training},
        stages=[{"quantize": {"method": "ptq", **quantize}}],
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of it."""
    out = tmp_path_factory.mktemp("device") / "run"
    runner.run(pipeline(), out)
    return out


@pytest.fixture
def models(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Its models folder as it was copied to a device, the script's own."""
    folder = shutil.copytree(run / "models", tmp_path / "models")
    monkeypatch.setattr(bench, "HERE", str(folder))
    monkeypatch.setattr(bench, "WARM_UP_S", 0.0)
    monkeypatch.setattr(bench, "TURN_S", 0.0)
    monkeypatch.chdir(tmp_path)
    return folder


def measured(*words: str, code: int = 0) -> dict:
    assert bench.main([*words, "--rounds", "2", "--out", "pi.json"]) == code
    return json.loads(Path("pi.json").read_text())


def verdicts(found: dict) -> dict[str, bool | None]:
    return {each["file"]: each["verified"] for each in found["files"]}


def test_the_script_stands_alone_in_every_python_from_3_8_on(run: Path) -> None:
    text = SCRIPT.read_text(encoding="utf-8")
    tree = ast.parse(text, feature_version=(3, 8))
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [each.name for each in node.names] if isinstance(node, ast.Import)
            else [str(node.module)] if isinstance(node, ast.ImportFrom) else []
        )
    }  # fmt: skip
    assert imported - set(sys.stdlib_module_names) == {"numpy", "onnxruntime"}
    assert bench.FLAGS == FLAGS
    assert (run / "models" / "bench.py").read_text(encoding="utf-8") == text


def test_a_copied_folder_is_measured_and_verified_by_a_fresh_process(run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(run / "models", tmp_path / "models")
    command = [sys.executable, "-I", str(folder / "bench.py"), "--rounds", "2", "--name", "Pi", "--out", "pi.json"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "written: pi.json" in ended.stdout
    found = json.loads((tmp_path / "pi.json").read_text())
    assert {*found} == {
        "compress_device", "device", "state", "settings", "reference", "files", "control"
    }  # fmt: skip
    assert found["device"]["name"] == "Pi"
    assert found["settings"] == FEW
    assert verdicts(found) == {"baseline.onnx": True, "quantize.int8.onnx": True}
    assert found["control"]["file"] == "baseline.onnx"
    assert found["control"]["ratio"] > 0
    for each in found["files"]:
        ms = each["latency_ms"]
        assert 0 < ms["p50"] <= ms["p90"] <= ms["p99"]
        assert each["sha256"] == sha256(folder / each["file"])
        assert each["bytes"] == (folder / each["file"]).stat().st_size
        assert each["throughput"] == pytest.approx(1000 / ms["p50"])
        assert (each["images"], each["same_class"], each["runs"] >= 6) == (16, 16, True)


def test_the_reference_holds_test_images_and_what_files_give_for_them(run: Path) -> None:
    with np.load(run / "models" / "reference.npz") as found, np.load(run / "test.npz") as whole:
        about = json.loads(str(found["about"]))
        assert about["inputs"] == "test images"
        assert {*about["files"]} == {"baseline.onnx", "quantize.int8.onnx"}
        places = [np.flatnonzero((whole["inputs"] == each).all((1, 2, 3)))[0] for each in found["inputs_0"]]
        assert whole["labels"][places].tolist() == found["labels_0"].tolist()
        assert {*found["labels_0"].tolist()} == {0, 1, 2, 3}
        for name, each in about["files"].items():
            assert each["sha256"] == sha256(run / "models" / name)
            assert each["int8"] == ("int8" in name)
            assert found[each["logits"]].shape == (16, 4)


def shipped(out: Path, images: Data, small_net, **keys: str) -> Path:
    """A folder with the file of a small net as `prove` makes it, and what is shipped beside."""
    prover = Prover(out, images, Export(**keys), torch.device("cpu"))
    suffix = "onnx"
    proof = prover.prove(small_net(), "baseline", f"models/baseline.{suffix}", out / "kept", "key")
    ship(out, {"baseline": proof}, {"baseline": prover})
    return out / "models"


def test_of_data_that_may_not_be_embedded_no_image_is_shipped(tmp_path: Path, images: Data, small_net) -> None:
    data = replace(images, embedded=False)
    first = shipped(tmp_path / "a", data, small_net, input="uint8_nhwc")
    with np.load(first / "reference.npz") as found:
        assert json.loads(str(found["about"]))["inputs"] == "made-up patterns"
        assert {*found.files} == {"about", "inputs_0", "logits_baseline"}
        fed = found["inputs_0"]
    assert (fed.dtype, fed.shape) == (np.uint8, (16, 16, 16, 3))
    every = data.test.images[np.arange(len(data.test))].permute(0, 2, 3, 1).numpy()
    assert not any((every == each).all((1, 2, 3)).any() for each in fed)
    assert (fed[:, ::2, ::2] == fed[:, 1::2, 1::2]).all(), "cells of two pixels"
    again = shipped(tmp_path / "b", data, small_net, input="uint8_nhwc")
    for name in ("reference.npz", "bench.py"):
        assert (first / name).read_bytes() == (again / name).read_bytes()


def test_a_file_of_one_image_at_a_time_and_its_ort_form(
    tmp_path: Path, images: Data, small_net, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shipped(tmp_path, images, small_net, target="mobile", input="uint8_nhwc")
    monkeypatch.setattr(bench, "HERE", str(folder))
    monkeypatch.chdir(tmp_path)
    files = [str(folder / f"baseline.{kind}") for kind in ("onnx", "ort")]
    found = measured(*files, "--batch", "3")
    assert verdicts(found) == {"baseline.onnx": True, "baseline.ort": True}


def changed_weight(folder: Path) -> None:
    """A file that is whole and wrong, which the reference takes for the run's."""
    path = folder / "quantize.int8.onnx"
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype == np.int8 and values.size > 64:
            tensor.CopyFrom(onnx.numpy_helper.from_array(values[::-1].copy(), tensor.name))
    onnx.save(model, path)
    reference = folder / "reference.npz"
    with np.load(reference) as found:
        arrays = dict(found)
    about = json.loads(str(arrays["about"]))
    about["files"]["quantize.int8.onnx"]["sha256"] = sha256(path)
    np.savez_compressed(reference, **arrays | {"about": np.array(json.dumps(about))})


def without_reference(folder: Path) -> None:
    (folder / "reference.npz").unlink()


def other_file(folder: Path) -> None:
    shutil.copy(folder / "baseline.onnx", folder / "quantize.int8.onnx")


def cut_off(folder: Path) -> None:
    path = folder / "quantize.int8.onnx"
    path.write_bytes(path.read_bytes()[:500])


def stranger(folder: Path) -> None:
    shutil.copy(folder / "baseline.onnx", folder / "mine.onnx")


@pytest.mark.parametrize(
    ("harm", "file", "verified", "said", "code"),
    [
        (changed_weight, "quantize.int8.onnx", False, "20 dB are needed", 1),
        (other_file, "quantize.int8.onnx", False, "not the one that the run wrote", 1),
        (cut_off, "quantize.int8.onnx", False, "cannot be run here", 1),
        (without_reference, "baseline.onnx", None, "no reference.npz", 0),
        (stranger, "mine.onnx", None, "does not know this file", 0),
    ],
)
def test_what_is_wrong_with_a_file_is_said(models: Path, harm, file: str, verified, said: str, code: int) -> None:
    harm(models)
    found = measured(code=code)
    assert verdicts(found)[file] is verified
    assert said in next(each["said"] for each in found["files"] if each["file"] == file)
    assert "latency_ms" in next(each for each in found["files"] if each["file"] == "baseline.onnx")


def pickled(folder: Path) -> None:
    np.savez(folder / "reference.npz", about=np.array([{}], dtype=object))


def halved(folder: Path) -> None:
    path = folder / "reference.npz"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def without_about(folder: Path) -> None:
    np.savez(folder / "reference.npz", inputs_0=np.zeros(3))


def no_files(folder: Path) -> None:
    for path in folder.glob("*.onnx"):
        path.unlink()


@pytest.mark.parametrize(
    ("harm", "words", "said"),
    [
        (pickled, [], "reference.npz is damaged"),
        (halved, [], "reference.npz is damaged"),
        (without_about, [], "reference.npz is damaged"),
        (no_files, [], "no .onnx file in"),
        (None, ["gone.onnx"], "gone.onnx: No such file"),
        (None, ["--out", "no/folder/pi.json"], "No such file"),
    ],
)
def test_what_is_missing_is_said_in_one_sentence(
    models: Path, harm, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if harm is not None:
        harm(models)
    assert bench.main(["--rounds", "1", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert said in line


CLEAR, CLOSE = [[4.0, 1.0, 0.0]], [[4.0, 3.99, 0.0]]


@pytest.mark.parametrize(
    ("expected", "found", "int8", "verified", "same"),
    [
        (CLEAR, CLEAR, False, True, 1),
        (CLEAR, [[14.0, 11.0, 10.0]], False, True, 1),  # what is common to all classes changes no probability
        (CLEAR, [[4.1, 1.0, 0.0]], False, False, 1),  # 31 dB
        (CLEAR, [[4.1, 1.0, 0.0]], True, True, 1),
        (CLEAR, [[4.0, 2.0, 0.0]], True, False, 1),  # 11 dB
        (CLOSE, [[3.99, 4.0, 0.0]], False, True, 0),  # no clear winner before
        ([[4.0, 3.8, 0.0]], [[3.8, 3.9, 0.0]], False, False, 0),
        ([[4.0, 3.8, 0.0]], [[3.8, 3.9, 0.0]], True, True, 0),
        ([[9.0, 8.0, 0.0]], [[8.4, 8.6, 0.0]], True, False, 0),
        (CLEAR, [[float("nan"), 1.0, 0.0]], True, False, None),
        (CLEAR, [[4.0, 1.0]], True, False, None),
    ],
)
def test_the_verdict_on_logits(expected, found, int8: bool, verified: bool, same: int | None) -> None:
    exact, other = np.array(expected), np.array(found)
    verdict = bench.judged(exact, other, int8)
    assert (verdict["verified"], verdict.get("same_class")) == (verified, same)
    if same is not None:
        signal, noise = exact - exact.mean(), other - other.mean() - exact + exact.mean()
        db = 20 * np.log10(np.linalg.norm(signal) / max(np.linalg.norm(noise), 1e-300))
        assert verdict["signal_to_noise_db"] == pytest.approx(min(db, 200))


def test_what_a_raspberry_pi_says_of_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "read", lambda path: PI_5.get(path, ""))
    about = bench.device(None)
    assert (about["name"], about["cpu"]) == ("Raspberry Pi 5 Model B Rev 1.0", "Cortex-A76")
    assert about["flags"] == ["asimd", "asimddp"], "what every core has"
    assert bench.device("mine")["name"] == "mine"
    files = {"temp": ["41000", "62500", "-273000", ""], "scaling_cur_freq": ["1500000", "2400000"]}
    files["scaling_governor"] = ["ondemand", "ondemand"]
    monkeypatch.setattr(bench, "contents", lambda pattern: files[pattern.split("/")[-1]])
    assert bench.state() == {"clock_mhz": 2400.0, "governor": "ondemand", "temperature_c": 62.5}


def test_figures_of_devices_come_into_the_report(run: Path, models: Path, tmp_path: Path) -> None:
    out = shutil.copytree(run, tmp_path / "run")
    first = measured("--name", "a <b>board</b>")
    done(tmp_path, "report", "run", "--device", "pi.json")
    again = measured("--name", "a phone")
    report_again(out, [Path("pi.json")])
    report = read(out)
    assert [device.name for device in report.devices] == ["a <b>board</b>", "a phone"]
    for device, raw in zip(report.devices, (first, again), strict=True):
        assert [row.net for row in device.rows] == ["baseline", "quantize"]
        p50 = {each["file"]: each["latency_ms"]["p50"] for each in raw["files"]}
        assert device.rows[1].ratio == pytest.approx(p50["quantize.int8.onnx"] / p50["baseline.onnx"])
        assert device.rows[1].latency_ms.p50 == p50["quantize.int8.onnx"]
        assert [row.verified for row in device.rows] == [True, True]
        assert device.control == raw["control"]["ratio"]
    assert json.loads((out / "report.json").read_text())["devices"][1]["name"] == "a phone"
    page, text = (out / "report.html").read_text(), (out / "report.md").read_text()
    assert "a &lt;b&gt;board" in page
    assert "<b>board" not in page + text
    assert "| a phone | quantize |" in text
    assert not run_folder.damaged(out), "the report's new checksums are known"
    newer = measured("--name", "a phone", "--threads", "2")
    found = report_again(out, [Path("pi.json")]).devices
    assert [(device.name, device.threads) for device in found] == [("a <b>board</b>", 1), ("a phone", 2)]
    assert newer["settings"]["threads"] == 2


def test_a_later_run_has_the_figures_of_devices_as_long_as_its_files_are_the_same(
    run: Path, models: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(run, tmp_path / "run")
    measured("--name", "../a phone")
    devices = report_again(out, [Path("pi.json")]).devices
    (kept,) = (out / "devices").iterdir()
    again = runner.run(pipeline(), out).report
    assert again.devices == devices
    assert "| ../a phone | quantize |" in (out / "report.md").read_text()

    other = runner.run(pipeline(granularity="per_tensor"), out).report
    assert other.devices == ()
    said = f"{kept} was measured on other files than those in {out}/models: quantize.int8.onnx; "
    assert [text.startswith(said) for text in other.warnings].count(True) == 1
    back = runner.run(pipeline(), out).report
    assert back.devices == devices, "nothing was lost"

    kept.write_bytes(kept.read_bytes().replace(b'"p50": ', b'"p50": 1'))
    damaged = runner.run(pipeline(), out).report
    assert damaged.devices == ()
    said = f"{kept} is damaged: its SHA-256 is not the one that it was written with. The report is without"
    assert any(text.startswith(said) for text in damaged.warnings)
    assert report_again(out, [Path("pi.json")]).devices == devices


def test_a_file_that_changed_on_the_device_stands_in_the_report(run: Path, models: Path, tmp_path: Path) -> None:
    out = shutil.copytree(run, tmp_path / "run")
    found = measured()
    found["files"][1] |= {"verified": False, "said": "9 of 16 images get the same class, logits 7 dB"}
    Path("pi.json").write_text(json.dumps(found))
    report_again(out, [Path("pi.json")])
    text = (out / "report.md").read_text()
    assert "quantize is not what it is here: 9 of 16 images get the same class, logits 7 dB." in text
    assert "| NO |" in text


def edited(change):
    def harm(path: Path) -> None:
        found = json.loads(path.read_text())
        change(found)
        path.write_text(json.dumps(found))

    return harm


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda path: path.unlink(), "there is no file pi.json"),
        (lambda path: path.write_text("{"), "pi.json is not what bench.py writes"),
        (lambda path: path.write_text("[]"), "pi.json is not what bench.py writes"),
        (lambda path: path.write_bytes(b"\xff\xfe\x00"), "pi.json is not what bench.py writes"),
        (lambda path: path.write_text(" " * (2**20 + 1)), "some kilobytes of JSON"),
        (lambda path: (path.unlink(), path.mkdir()), "some kilobytes of JSON"),
        (edited(lambda found: found.pop("compress_device")), "compress_device"),
        (edited(lambda found: found.update(compress_device=2)), "compress_device"),
        (edited(lambda found: found.update(files=[])), "files"),
        (edited(lambda found: found["files"][0]["latency_ms"].update(p50=-1)), "files.0.latency_ms.p50"),
        (edited(lambda found: found["files"][0]["latency_ms"].update(p50=float("nan"))), "files.0.latency_ms.p50"),
        (edited(lambda found: found["device"].update(name=7)), "device.name"),
        (
            edited(lambda found: found["files"][1].update(sha256="0" * 64)),
            "other files than those in run/models: quant",
        ),
        (edited(lambda found: found["files"][0].update(file="gone.onnx")), "run/models: gone.onnx;"),
        (edited(lambda found: found["files"][0].update(file="../report.json")), "run/models: ../report.json;"),
    ],
)
def test_figures_that_are_not_this_runs_are_refused(run: Path, models: Path, tmp_path: Path, harm, said: str) -> None:
    out = Path(shutil.copytree(run, tmp_path / "run").name)
    measured()
    before = (out / "report.json").read_bytes()
    harm(Path("pi.json"))
    with pytest.raises(ArtifactError) as caught:
        report_again(out, [Path("pi.json")])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (out / "report.json").read_bytes() == before
