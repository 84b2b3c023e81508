"""The command line as users meet it: what it prints, its exit codes, one message and no traceback for every error."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny
import torch
import yaml
from commandline import as_it_was
from PIL import Image
from test_plugins import PLUGIN
from tiny import raw_pipeline

from compress import __version__, cli
from compress.verbs.catalogue import TABLES

ROOT = Path(__file__).parent.parent
TRAINING = {"epochs": 1, "batch_size": 16, "lr": 0.01}
# No teacher, one epoch, two stages: a whole run takes about two seconds.
BRIEF = {
    "data": {"synthetic": {"size": 16, "classes": 4, "samples": 32}},
    "student": "tiny",
    "baseline": {"training": TRAINING},
    "stages": [{"prune": {"keep_macs": 0.6, "training": TRAINING}}, {"quantize": {"training": TRAINING}}],
    "benchmark": {"rounds": 2},
}


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


pytestmark = pytest.mark.usefixtures("graphs")


@pytest.fixture
def compress(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Iterator[Any]:
    """Call the command line in this process, in a folder of its own; whatever happens there is no traceback."""
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["compress", *map(str, words)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        captured = capsys.readouterr()
        assert "Traceback" not in captured.out + captured.err or "--debug" in words
        assert isinstance(caught.value.code, int)
        return Result(caught.value.code, captured.out, captured.err)

    with as_it_was():
        yield call


Compress = Callable[..., Result]


def file(path: str = "p.yaml", **changes: Any) -> Path:
    """A pipeline file in the current folder."""
    raw = {key: value for key, value in (BRIEF | changes).items() if value is not None}
    Path(path).write_text(yaml.safe_dump(raw))
    return Path(path)


def started(*words: object, cwd: Path) -> subprocess.Popen[str]:
    """The command line in a process of its own, where `tiny` is a plugin."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    command = [sys.executable, "-m", "compress", *map(str, words)]
    return subprocess.Popen(
        command, cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


# Help and usage


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['compress', '--help']\n"
        "from compress.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert end.code == 0\n"
        "print('heavy:', sorted({'torch', 'numpy', 'pydantic', 'yaml', 'onnx', 'sklearn'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    for verb in ("run", "validate", "show", "report", "compare", "benchmark", "verify", "ls", "init", "doctor"):
        assert f"\n  {verb} " in found.stdout
    assert "heavy: []" in found.stdout
    assert found.stderr == ""


def test_version(compress: Compress) -> None:
    assert compress("--version") == Result(0, f"compress {__version__}\n", "")


def test_no_verb_shows_the_help(compress: Compress) -> None:
    found = compress()
    assert (found.code, found.out) == (2, "")
    assert "Usage: compress" in found.err
    assert "validate" in found.err


SEE = "`compress --help` and `compress VERB --help` show what there is\n"
USAGE = [
    (["rn", "x.yaml"], "error: No such command 'rn'. Did you mean 'run'? "),
    (["run"], "error: Missing argument 'PIPELINE'. "),
    (["validate"], "error: Missing argument 'PIPELINE...'. "),
    (["run", "x.yaml", "--smoek"], "error: No such option: --smoek (Possible options: --smoke). "),
    (["run", "x.yaml", "--set"], "error: Option '--set' requires an argument. "),
    (["run", "x.yaml", "y.yaml"], "error: Got unexpected extra argument (y.yaml). "),
    (["benchmark", "x.onnx", "--threads", "0"], "error: Invalid value for '--threads': 0 is not in the range x>=1. "),
    (["benchmark", "x.onnx", "--batch", "two"], "error: Invalid value for '--batch': 'two' is not a valid integer"),
]


@pytest.mark.parametrize(("words", "said"), USAGE, ids=[" ".join(words) for words, _ in USAGE])
def test_usage(words: list[str], said: str, compress: Compress) -> None:
    found = compress(*words)
    # The wording is typer's and may change with it; that a near name is suggested and the exit code are ours.
    assert (found.code, found.out) == (2, "")
    assert found.err.startswith(said[:25])
    assert found.err.endswith(SEE)
    for hint in ("'run'", "--smoke", "PIPELINE"):
        assert (hint in found.err) == (hint in said)


def test_debug_shows_the_traceback(compress: Compress) -> None:
    found = compress("run", "nothing.yaml", "--debug")
    assert found.code == 2
    assert found.err.startswith("Traceback")
    assert found.err.endswith("error: no pipeline file nothing.yaml; `compress init` writes one to start from\n")


def test_a_bug_is_owned_up_to(compress: Compress, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise IndexError("list index out of range \x1b[31m")

    monkeypatch.setattr("compress.verbs.catalogue.catalogue", broken)
    assert compress("ls") == Result(
        1, "",
        "this is a bug of compress: IndexError: list index out of range �[31m\n"
        "--debug shows where; please report it with the pipeline file\n",
    )  # fmt: skip


def test_a_file_that_ends_too_early_is_no_interruption(compress: Compress, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise EOFError("no more")

    monkeypatch.setattr("compress.verbs.catalogue.catalogue", broken)
    found = compress("ls")
    assert found.code == 1
    assert "EOFError: no more" in found.err


# The verbs that train nothing


@pytest.mark.parametrize("kind", ["models", "data", "losses", "stages"])
def test_ls_has_the_name_first_on_each_line(kind: str, compress: Compress) -> None:
    found = compress("ls", kind)
    assert (found.code, found.err) == (0, "")
    assert [line.split()[0] for line in found.out.splitlines()] == [*TABLES[kind]]
    assert all(len(line.split()) > 1 for line in found.out.splitlines() if not line.startswith("tiny"))


def test_ls_has_the_public_names(compress: Compress) -> None:
    words = {line.split()[0] for line in compress("ls").out.splitlines()}
    assert {"models:", "data:", "losses:", "stages:", "pipelines:"} <= words
    assert {"mobilenet_v1", "mobilenet_v2_cifar", "resnet50_cifar", "mobilenet_v2", "resnet50"} <= words
    assert {"digits", "npz", "image_folder", "cifar10", "cifar100", "synthetic"} <= words
    assert {"cross_entropy", "kd", "distill", "prune", "quantize"} <= words


def test_ls_pipelines(compress: Compress) -> None:
    Path("pipelines").mkdir()
    Path("pipelines/a.yaml").write_text("# What it does.\nname: a\n")
    Path("pipelines/b.yaml").write_bytes(b"\xff")
    lines = compress("ls", "pipelines").out.splitlines()
    assert [line.split() for line in lines] == [["pipelines/a.yaml", "What", "it", "does."], ["pipelines/b.yaml"]]


def test_ls_of_an_unknown_kind(compress: Compress) -> None:
    assert compress("ls", "modls") == Result(2, "", "error: ls modls: no such kind. Did you mean 'models'?\n")


def test_init_writes_what_validates_and_overwrites_nothing(compress: Compress) -> None:
    found = compress("init", "folder/mine")
    assert found.code == 0
    assert "wrote folder/mine.yaml" in found.out
    text = Path("folder/mine.yaml").read_text()
    assert text.startswith("# mine: ")
    found = compress("validate", "folder/mine.yaml")
    assert (found.code, found.err) == (0, "")
    first, note = found.out.splitlines()
    assert first == "folder/mine.yaml: ok"
    assert "there is no folder images" in note
    assert compress("init", "folder/mine.yaml") == Result(
        2, "", "error: folder/mine.yaml is there already; choose another name, or delete it\n"
    )
    assert Path("folder/mine.yaml").read_text() == text


def test_init_without_a_name(compress: Compress) -> None:
    assert compress("init").code == 0
    assert Path("pipeline.yaml").is_file()


def test_init_where_nothing_can_be_written(compress: Compress) -> None:
    Path("file").touch()
    assert compress("init", "file/mine") == Result(
        6,
        "",
        "error: file/mine.yaml cannot be written: file is there and no folder. Mend that, or choose another name\n",
    )


def test_doctor(compress: Compress) -> None:
    found = compress("doctor")
    assert (found.code, found.err) == (0, "")
    lines = found.out.splitlines()
    words = [line.split()[0] for line in lines]
    assert {"compress", "cpu", "flags", "int8", "gpu", "package", "runtime", "disk"} <= set(words)
    assert f"package    torch {metadata.version('torch')}" in lines
    assert f"{torch.get_num_threads()} threads for PyTorch" in lines[words.index("cpu")]
    assert ("slow" in lines[words.index("int8")]) != ("fast" in lines[words.index("int8")])


@pytest.mark.parametrize("path", sorted((ROOT / "pipelines").rglob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_pipelines_validate(path: Path, compress: Compress) -> None:
    found = compress("validate", path)
    first, *notes = found.out.splitlines()
    assert (found.code, first, found.err) == (0, f"{path}: ok", "")
    assert all("which are missing: there is no" in note for note in notes)


def test_validate_reports_all_files(compress: Compress) -> None:
    file("good.yaml")
    file("one.yaml", seed=-1)
    file("two.yaml", student="mobilnet_v2", nmae="x")
    found = compress("validate", "one.yaml", "good.yaml", "two.yaml", "three.yaml")
    assert found.code == 2
    assert found.out == "good.yaml: ok\n"
    assert found.err.splitlines() == [
        "error: one.yaml is not a pipeline:",
        "  seed: should be greater than or equal to 0, not -1",
        "two.yaml is not a pipeline:",
        "  nmae: no such key. Did you mean 'name'?",
        "  student: no 'mobilnet_v2' here. Did you mean 'mobilenet_v2'?",
        "no pipeline file three.yaml; `compress init` writes one to start from",
    ]


def test_validate_says_what_it_took_for_granted(compress: Compress) -> None:
    file(data={"image_folder": {"path": "photos", "size": 16}})
    found = compress("validate", "p.yaml")
    assert (found.code, found.err) == (0, "")
    first, note = found.out.splitlines()
    assert first == "p.yaml: ok"
    assert note.startswith("  made-up images stand in for the data, which are missing: there is no folder photos")
    (told,) = json.loads(compress("validate", "p.yaml", "--json").out)
    assert (told["ok"], told["notes"]) == (True, [note.strip()])


def test_validate_takes_overrides(compress: Compress) -> None:
    file()
    assert compress("validate", "p.yaml", "--set", "stages.prune.keep_macs=0.5").code == 0
    found = compress("validate", "p.yaml", "--set", "stages.prune.keep_macs=2")
    assert found.code == 2
    assert "stages.0.prune.keep_macs: should be less than 1, not 2" in found.err


def test_validate_finds_what_cannot_be_built_loaded_or_cut(compress: Compress) -> None:
    file(
        data={"npz": {"path": "broken.npz", "size": 8}},
        teacher={"model": "vgg11", "weights": "nothing.pth"},
        stages=[{"prune": {"exclude": ["*"]}}],
    )
    Path("broken.npz").write_text("no archive")
    found = compress("validate", "p.yaml")
    assert found.code == 3
    lines = found.err.splitlines()
    assert lines[0] == "error: p.yaml cannot run:"
    assert lines[1].startswith("  broken.npz ")
    assert lines[2].startswith("  teacher: vgg11 cannot take images (3, 8, 8)")
    assert lines[3].startswith("  stages.0.prune: ")
    assert len(lines) == 4


def test_validate_checks_what_is_said_of_data_that_are_not_there(compress: Compress) -> None:
    file(data={"cifar100": {"mean": [0.5, 0.5]}})
    found = compress("validate", "p.yaml")
    assert found.code == 3
    assert "mean has 2 numbers for 3 channels" in found.err


def test_validate_loads_weights(compress: Compress) -> None:
    torch.save(tiny.Tiny(width=16)(4, (3, 16, 16)).state_dict(), "narrow.pth")
    file(student={"tiny": {"weights": "narrow.pth"}})
    found = compress("validate", "p.yaml")
    assert found.code == 4
    assert "student: narrow.pth does not fit tiny" in found.err


# Bad input to run


def refused(compress: Compress, code: int, *words: object) -> str:
    """The one message that a run ends with."""
    found = compress("run", "p.yaml", *words)
    assert found.code == code
    assert found.out == ""
    message = found.err[found.err.index("error: ") :]
    return message.removeprefix("error: ").rstrip("\n")


def test_run_missing_file(compress: Compress) -> None:
    assert refused(compress, 2) == "no pipeline file p.yaml; `compress init` writes one to start from"


def test_run_yaml_syntax(compress: Compress) -> None:
    Path("p.yaml").write_text("data: [digits\nstudent: x\n")
    assert 'in "<unicode string>", line 2, column 8' in refused(compress, 2)


def test_run_duplicate_key(compress: Compress) -> None:
    Path("p.yaml").write_text("data: digits\ndata: digits\n")
    assert "the key 'data' stands here twice" in refused(compress, 2)


def test_run_unknown_key_model_and_type_at_once(compress: Compress) -> None:
    file(student="mobilnet_v2", stages=[{"prune": {"training": {"epochs": -1}}}], sead=1, benchmark={"rounds": "few"})
    assert refused(compress, 2).splitlines() == [
        "p.yaml is not a pipeline:",
        "  sead: no such key. Did you mean 'seed'?",
        "  student: no 'mobilnet_v2' here. Did you mean 'mobilenet_v2'?",
        "  stages.0.prune.training.epochs: should be greater than or equal to 0, not -1",
        "  benchmark.rounds: should be a valid integer, unable to parse string as an integer, not 'few'",
    ]


def test_run_unknown_device(compress: Compress) -> None:
    file()
    assert refused(compress, 2, "--device", "tpu") == "--device tpu: should be auto, cpu or cuda"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_run_without_the_gpu_it_asks_for(compress: Compress) -> None:
    file()
    assert refused(compress, 2, "--device", "cuda").startswith("--device cuda: PyTorch sees no CUDA GPU here")


def test_run_override_that_does_not_fit(compress: Compress) -> None:
    file()
    assert refused(compress, 2, "--set", "seed") == "--set seed: should read path.to.key=value"


def test_run_from_an_unknown_stage(compress: Compress) -> None:
    file()
    assert refused(compress, 2, "--from", "quantise") == (
        "--from quantise: no such stage in this pipeline. Did you mean 'quantize'?"
    )


def test_run_missing_plugin(compress: Compress) -> None:
    file()
    assert refused(compress, 2, "--plugin", "mine.py") == "--plugin mine.py: no such file"


def test_run_plugin_that_raises(compress: Compress) -> None:
    file()
    Path("mine.py").write_text("1 / 0\n")
    assert refused(compress, 2, "--plugin", "mine.py") == (
        "plugin mine.py failed in line 1: ZeroDivisionError: division by zero; mend or omit it"
    )


def test_run_missing_data(compress: Compress) -> None:
    file(data={"image_folder": {"path": "nowhere", "size": 16}})
    assert refused(compress, 3).startswith("there is no folder nowhere;")


def images(root: Path) -> None:
    """Two classes of twelve images each."""
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (root / label).mkdir(parents=True)
        for i in range(12):
            Image.fromarray(rng.integers(0, 256, (20, 16, 3), dtype=np.uint8)).save(root / label / f"{i}.png")


def test_run_empty_class_folder(compress: Compress) -> None:
    images(Path("images/train"))
    Path("images/train/emu").mkdir()
    file(data={"image_folder": {"path": "images", "size": 16}})
    assert "images/train/emu" in refused(compress, 3)


def test_run_image_that_cannot_be_read(compress: Compress) -> None:
    images(Path("images/train"))
    Path("images/train/cat/12.png").write_text("no image")
    file(data={"image_folder": {"path": "images", "size": 16}})
    assert "images/train/cat/12.png" in refused(compress, 3)


WEIGHTS: list[tuple[Callable[[Path], object], str]] = [
    (lambda path: path.write_text("<!DOCTYPE html>"), "w.pth is a web page, not weights"),
    (lambda path: torch.save(tiny.Tiny()(4, (3, 16, 16)), path), "w.pth is a pickled module or holds other objects"),
    (lambda path: torch.save(torch.nn.Linear(3, 4).state_dict(), path), "w.pth holds weights of another architecture"),
    (lambda path: path.touch(), "w.pth is empty"),
    (lambda path: path.write_bytes(b"PK\x03\x04" + bytes(99)), "w.pth is not a file written by torch.save"),
    (lambda path: None, "no weights file w.pth"),
]


@pytest.mark.parametrize(("write", "said"), WEIGHTS, ids=[said for _, said in WEIGHTS])
def test_run_bad_weights(write: Callable[[Path], object], said: str, compress: Compress) -> None:
    write(Path("w.pth"))
    file(student={"tiny": {"weights": "w.pth"}})
    assert refused(compress, 4).startswith(said)


def test_run_model_that_cannot_take_the_images(compress: Compress) -> None:
    file(data={"synthetic": {"size": 8, "classes": 4, "samples": 32}}, student="vgg11")
    assert refused(compress, 4).startswith("vgg11 cannot take images (3, 8, 8)")


def test_run_loss_that_explodes(compress: Compress) -> None:
    file(baseline={"training": TRAINING | {"lr": 1e30}})
    assert "is not finite" in refused(compress, 4)
    assert not [*Path("reports/p/stages").iterdir()]


# Folders and disks


def test_run_folder_that_is_a_file(compress: Compress) -> None:
    file()
    Path("out").touch()
    assert refused(compress, 6, "--out", "out") == (
        "out is a file, and a run needs a folder there; choose another with --out"
    )


def test_run_folder_under_a_file(compress: Compress) -> None:
    file()
    assert refused(compress, 6, "--out", "p.yaml/out") == (
        "the folder p.yaml/out cannot be written: Not a directory; choose another with --out"
    )


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="only Linux has /proc")
def test_run_folder_that_cannot_be_made(compress: Compress) -> None:
    file()
    assert refused(compress, 6, "--out", "/proc/out").startswith("the folder /proc/out cannot be written: ")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everything")
def test_run_folder_that_is_read_only(compress: Compress) -> None:
    file()
    Path("out").mkdir(mode=0o500)
    assert refused(compress, 6, "--out", "out") == (
        "the folder out cannot be written: Permission denied; choose another with --out"
    )


def test_run_folder_that_is_in_use(compress: Compress, tmp_path: Path) -> None:
    file()
    Path("out").mkdir()
    code = "from filelock import FileLock\nwith FileLock('out/.lock'):\n    print('held', flush=True)\n    input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert refused(compress, 7, "--out", "out") == (
            "another run uses out; wait for it, or choose another folder with --out"
        )
        holder.communicate("\n")


def test_a_full_disk_ends_with_finished_stages_kept(compress: Compress, monkeypatch: pytest.MonkeyPatch) -> None:
    file(stages=[{"train": {"training": TRAINING}}])
    replace = os.replace

    def full(source: Path, path: Path) -> None:
        if "0-train" in str(path) and path.name == "weights.safetensors":
            raise OSError(28, "No space left on device", str(source))
        replace(source, path)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        message = refused(compress, 6)
    assert message.startswith("reports/p/stages/0-train-")
    assert "/weights.safetensors cannot be written: No space left on device (" in message
    assert message.endswith(
        " bytes are free). Free some space, or choose another folder with --out; what was finished is kept"
    )
    finished = [path.name for path in Path("reports/p/stages").iterdir() if path.suffix != ".unfinished"]
    assert [name.split("-")[0] for name in finished] == ["baseline"]
    found = compress("run", "p.yaml")
    assert found.code == 0
    assert "baseline: unchanged" in found.err
    assert "train: finished" in found.err


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(122, "Disk quota exceeded"), "the disk is full ("),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "the disk is full ("),
        (RuntimeError("I/O error: File too large (os error 27)"), "the disk is full ("),
        (PermissionError(13, "Permission denied", "x"), "no permission to read or write at x; mend it, or choose"),
        (OSError(36, "File name too long", "x"), "cannot read or write at x: File name too long; mend it, or choose"),
        (MemoryError(), "out of memory; lower training.batch_size, or the data's size. Finished stages are kept"),
        (torch.OutOfMemoryError("CUDA out of memory"), "out of memory; lower training.batch_size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out of memory; lower training.batch_size"),
    ],
)
def test_other_resources(error: Exception, said: str, compress: Compress, monkeypatch: pytest.MonkeyPatch) -> None:
    file()

    def raising(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("compress.running.runner.run", raising)
    assert refused(compress, 6).startswith(said)


# Whole runs


def test_run_and_report(compress: Compress) -> None:
    file(seed=3)  # with 32 test images some seeds end at chance
    first = compress("run", "p.yaml", "--quiet")
    assert (first.code, first.err) == (0, "")
    assert [line.split()[0] for line in first.out.splitlines() if line][:5] == [
        "net", "baseline", "prune", "quantize", "quantize-ptq",
    ]  # fmt: skip
    assert "\npass: All checks passed. No budget was set.\nThe int8 file is " in first.out
    assert "report: reports/p/report.html" in first.out
    told = json.loads(Path("reports/p/report.json").read_text())
    assert "compress run p.yaml" in Path("reports/p/report.md").read_text()
    again = compress("run", "p.yaml")
    assert again.code == 0
    assert again.err.count("unchanged, taken over") == 3
    redone = compress("run", "p.yaml", "--from", "quantize")
    assert redone.err.count("unchanged, taken over") == 2
    assert "quantize: finished" in redone.err
    # A missed budget has an exit code of its own, and everything is written.
    missed = compress("run", "p.yaml", "--quiet", "--set", "budget.max_bytes=10")
    assert missed.code == 5
    assert missed.err.startswith("budget missed: max_bytes allows 10, measured ")
    assert json.loads(Path("reports/p/report.json").read_text())["verdict"] == "fail"
    Path("reports/p/report.html").unlink()
    assert compress("report", "reports/p").code == 0
    assert Path("reports/p/report.html").is_file()
    timed = compress("benchmark", "reports/p/models/baseline.onnx", "--rounds", "2", "--json")
    assert json.loads(timed.out)[0]["bytes"] == told["rows"][0]["bytes"]


def test_report_of_a_folder_without_one(compress: Compress) -> None:
    found = compress("report", "nowhere")
    assert (found.code, found.out) == (4, "")
    assert found.err.startswith("error: nowhere/report.json does not exist.")


def test_verify_passes_and_fails_in_one_sentence_each(compress: Compress) -> None:
    assert compress("run", file(), "--out", "out", "--quiet").code in (0, 5)  # one epoch may be no better than guessing
    model = Path("out/models/quantize.int8.onnx")
    passed = compress("verify", model)
    assert (passed.code, passed.err) == (0, "")
    assert passed.out.startswith(f"{model}\nok      format ")
    content = bytearray(model.read_bytes())
    weight = next(t.raw_data for t in onnx.load(model).graph.initializer if t.name == "middle.0.weight")
    content[content.index(weight) + 7] ^= 1
    model.write_bytes(content)
    failed = compress("verify", model, "--json")
    assert failed.code == 4
    assert not json.loads(failed.out)["ok"]
    lines = failed.err.splitlines()
    assert lines[0].startswith(f"error: {model}: the seal is broken")
    assert lines[1].startswith(f"{model}: the file is not of its net: middle.0: 1 of ")
    assert len(lines) == 3


def test_verify_of_a_missing_file_and_an_unknown_target(compress: Compress) -> None:
    assert compress("verify", "x.onnx") == Result(4, "", "error: no ONNX file x.onnx\n")
    found = compress("verify", "x.onnx", "--target", "mobil")
    assert (found.code, found.out) == (2, "")
    assert found.err.startswith("error: --target mobil: no such target.")
    assert "mobile" in found.err


def test_benchmark_of_a_missing_file(compress: Compress) -> None:
    assert compress("benchmark", "x.onnx") == Result(4, "", "error: no ONNX file x.onnx\n")


def test_show(compress: Compress) -> None:
    file()
    found = compress("show", "p.yaml")
    assert (found.code, found.err) == (0, "")
    for net in ("baseline", "prune", "quantize"):
        assert f"── {net}  " in found.out


def test_a_plugins_model_data_loss_and_stage_run(compress: Compress) -> None:
    Path("mine.py").write_text(PLUGIN)
    file(
        data="stripes",
        student={"patch": {"width": 8}},
        stages=[
            {"distill": {"losses": ["margin", "cross_entropy"], "training": TRAINING}},
            {"shrink": {"factor": 0.9}},
        ],
    )
    assert compress("validate", "p.yaml").code == 2
    assert compress("validate", "p.yaml", "--plugin", "mine.py").code == 0
    found = compress("run", "p.yaml", "--smoke", "--plugin", "mine.py")
    assert found.code == 0
    assert "Code came in by --plugin mine.py" in Path("reports/p-smoke/report.md").read_text()
    written = yaml.safe_load(Path("reports/p-smoke/pipeline.yaml").read_text())
    assert written["stages"][1] == {"shrink": {"factor": 0.9, "training": written["stages"][1]["shrink"]["training"],
                                               "losses": [{"cross_entropy": {"weight": 1.0}}]}}  # fmt: skip


ACCEPTED: list[dict[str, Any]] = [
    raw_pipeline(),
    {"data": {"synthetic": {"size": 16, "classes": 2, "samples": 2}}, "stages": ["quantize"]},
    {"data": {"image_folder": {"path": "not there", "size": 24}}, "stages": [{"quantize": {"method": "ptq"}}]},
    {
        "data": {"synthetic": {"size": 16, "channels": 1, "classes": 3, "samples": 40}},
        "export": {"input": "uint8_nhwc"},
    },
    {"student": {"resnet18": {"weights": "IMAGENET1K_V1"}}, "stages": [{"prune": {"importance": "l1"}}]},
    {
        "student": {"mobilenet_v2": {"width": 0.25}},
        "stages": [{"train": {"training": {"schedule": "step", "milestones": [4, 8], "optimizer": "sgd", "ema": 0.9}}}],
    },
    {"stages": [{"prune": {"keep_macs": 0.7}}, {"prune": {"keep_macs": 0.5}}], "baseline": {"training": {"epochs": 0}}},
]


@pytest.mark.parametrize("changes", ACCEPTED, ids=range(len(ACCEPTED)))
def test_what_validates_also_runs_as_a_smoke_test(changes: dict[str, Any], compress: Compress) -> None:
    file(**{"baseline": None} | changes)
    accepted = compress("validate", "p.yaml")
    assert (accepted.code, accepted.out.splitlines()[0], accepted.err) == (0, "p.yaml: ok", "")
    found = compress("run", "p.yaml", "--smoke", "--out", "out")
    assert found.code == 0, found.err
    assert json.loads(Path("out/report.json").read_text())["verdict"] == "untrained"


# Signals


@pytest.mark.parametrize(
    ("number", "code", "said"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_ends_the_run_with_finished_stages_kept(
    number: int, code: int, said: str, compress: Compress, tmp_path: Path
) -> None:
    plugin = Path(tiny.__file__)
    file(stages=[{"train": {"training": TRAINING | {"epochs": 100_000}}}])
    process = started("run", "p.yaml", "--plugin", plugin, cwd=tmp_path)
    try:
        stages, deadline = tmp_path / "reports" / "p" / "stages", time.monotonic() + 60
        while not [*stages.glob("0-train-*.unfinished/train.jsonl")]:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, out) == (code, "")
    kept = "finished stages are kept, and the training as it is: the same command goes on from there"
    assert err.splitlines()[-1] == f"{said}; {kept}"
    assert "Traceback" not in err
    assert sorted(path.name.split("-")[0] for path in stages.iterdir()) == ["0", "baseline"]
    (checkpoint,) = stages.glob("0-train-*.unfinished/checkpoints/*.safetensors")
    assert int(checkpoint.name[5:14]) > 0
    if number == signal.SIGINT:
        found = compress("run", "p.yaml", "--plugin", plugin, "--set", "stages.train.training.epochs=1")
        assert found.code == 0
        assert "baseline: unchanged" in found.err


def test_a_reader_that_leaves_early_is_no_error(tmp_path: Path) -> None:
    process = started("ls", cwd=tmp_path)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=30) in (0, 1)
    process.stderr.close()
