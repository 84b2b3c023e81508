"""Every block of docs/deploy.md is run, compiled, or read for what it names."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from PIL import Image

from compress.cli import app
from compress.data import Data
from compress.export.onnx import Export
from compress.export.targets import TARGETS
from compress.running.proof import Prover
from compress.shipped import bench

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TEXT, re.DOTALL)
CPP = ROOT / "examples" / "cpp" / "predict.cpp"
COMPILER = shutil.which("g++") or shutil.which("clang++")
# What the program uses of ONNX Runtime's C++ interface, as its documentation has it: enough to check types by.
STUB = """
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>
enum OrtLoggingLevel { ORT_LOGGING_LEVEL_WARNING = 2 };
enum OrtAllocatorType { OrtArenaAllocator = 1 };
enum OrtMemType { OrtMemTypeDefault = 0 };
struct OrtAllocator;
namespace Ort {
struct Env { Env(OrtLoggingLevel, const char*); Env(const Env&) = delete; };
struct SessionOptions { SessionOptions& SetIntraOpNumThreads(int); };
struct RunOptions { explicit RunOptions(std::nullptr_t); };
struct MemoryInfo { static MemoryInfo CreateCpu(OrtAllocatorType, OrtMemType); };
struct TensorTypeAndShapeInfo { std::vector<int64_t> GetShape() const; size_t GetElementCount() const; };
struct TypeInfo { TensorTypeAndShapeInfo GetTensorTypeAndShapeInfo() const; };
struct AllocatorWithDefaultOptions { operator OrtAllocator*(); };
struct Freed { void operator()(char*) const; };
using AllocatedStringPtr = std::unique_ptr<char, Freed>;
struct ModelMetadata { AllocatedStringPtr LookupCustomMetadataMapAllocated(const char*, OrtAllocator*) const; };
struct Value {
  Value(Value&&); Value(const Value&) = delete;
  template <typename T>
  static Value CreateTensor(const MemoryInfo&, T*, size_t, const int64_t*, size_t);
  template <typename T> const T* GetTensorData() const;
  TensorTypeAndShapeInfo GetTensorTypeAndShapeInfo() const;
};
struct Session {
  Session(const Env&, const char*, const SessionOptions&);
  TypeInfo GetInputTypeInfo(size_t) const;
  ModelMetadata GetModelMetadata() const;
  std::vector<Value> Run(const RunOptions&, const char* const*, const Value*, size_t, const char* const*, size_t);
};
}
"""


def blocks(kind: str) -> list[str]:
    return [text for found, text in BLOCKS if found == kind]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, images: Data, small_net) -> Path:
    """A photo, and a net's file in both forms."""
    here = tmp_path_factory.mktemp("deploy")
    pixels = images.test.images[np.array([3])][0].permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(here / "photo.jpg", quality=95)
    for name, form in (("model", "float32_nchw"), ("raw", "uint8_nhwc")):
        prover = Prover(here, images, Export(input=form), torch.device("cpu"))
        model, _ = prover.graph(small_net(), name)
        (here / f"{name}.onnx").write_bytes(model.SerializeToString())
    return here


@pytest.mark.parametrize("block", range(2))
def test_the_python_blocks_predict(
    folder: Path,
    images: Data,
    small_net,
    block: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    texts = blocks("python")
    assert len(texts) == 2
    lines = [line for line in texts[block].splitlines() if line and not line.startswith(("import", "from"))]
    assert len(lines) <= 10
    monkeypatch.chdir(folder)
    exec(compile(texts[block], "deploy.md", "exec"), {})
    pixels = torch.from_numpy(np.asarray(Image.open("photo.jpg")).copy()).permute(2, 0, 1)[None]
    with torch.no_grad():
        expected = small_net().module.eval()(images.inputs(pixels)).argmax(1)
    assert capsys.readouterr().out == f"{images.class_names[int(expected)]}\n"


def test_the_cpp_block_is_the_example() -> None:
    assert blocks("cpp") == [CPP.read_text(encoding="utf-8")]
    assert "predict.cpp" in (CPP.parent / "CMakeLists.txt").read_text(encoding="utf-8")


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler here")
def test_the_cpp_example_compiles(tmp_path: Path) -> None:
    (tmp_path / "onnxruntime_cxx_api.h").write_text(STUB)
    real = next((place for place in map(Path, ("/usr/include/onnxruntime", "/usr/local/include/onnxruntime"))
                 if (place / "onnxruntime_cxx_api.h").exists()), tmp_path)  # fmt: skip
    command = [str(COMPILER), "-std=c++17", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", f"-I{real}", str(CPP)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr


def test_the_cpp_and_kotlin_blocks_name_inputs_and_keys_as_files_have_them(folder: Path) -> None:
    net = ort.InferenceSession(str(folder / "raw.onnx"), providers=["CPUExecutionProvider"])
    (given,), (made,) = net.get_inputs(), net.get_outputs()
    assert (given.name, made.name, given.type, given.shape[1:]) == ("input", "logits", "tensor(uint8)", [16, 16, 3])
    about = net.get_modelmeta().custom_metadata_map
    (cpp,), (kotlin,) = blocks("cpp"), blocks("kotlin")
    assert '"input"' in cpp
    assert '"logits"' in cpp
    assert kotlin.count('"input"') == 2
    for text in (cpp, kotlin):
        assert '"class_names"' in text
    for opening, closing in ("()", "[]", "{}"):
        assert kotlin.count(opening) == kotlin.count(closing)
    table = TEXT.split("## Put the preprocessing")[0]
    named = {key for line in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for key in re.findall(r"`(\w+)`", line)}
    assert named <= about.keys() | {"resize", "interpolation"}, "which a run adds"


def test_targets_verbs_and_keys_are_those_of_the_program(folder: Path) -> None:
    table = TEXT.split("## Which target")[1].split("## Measure")[0]
    named = {
        name
        for cell in re.findall(r"^\| .*? \| (.*?) \|", table, re.MULTILINE)
        for name in re.findall(r"`([\w-]+)`", cell)
    }
    assert {name for name in named if not name.startswith("export")} == TARGETS.keys()
    verbs = {command.name or command.callback.__name__ for command in app.registered_commands}
    assert set(re.findall(r"`?compress (\w+) ", TEXT)) <= verbs


def test_the_json_of_the_script_is_as_the_page_says(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "HERE", str(folder))
    monkeypatch.setattr(bench, "TURN_S", 0.0)
    monkeypatch.chdir(tmp_path)
    assert bench.main(["--rounds", "1"]) == 0
    found = json.loads(Path("device.json").read_text())
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", TEXT.split("| key | holds |\n|---|---|\n")[-1], re.MULTILINE))
    assert rows.keys() == found.keys()
    for key in ("device", "settings"):
        assert set(found[key]) == set(re.findall(r"`(\w+)`", rows[key]))
    assert set(found["state"]["before"]) < set(re.findall(r"`(\w+)`", rows["state"]))
    assert set(found["files"][0]) < set(re.findall(r"`(\w+)`", rows["files"]))
