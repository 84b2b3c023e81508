"""`compress init`: three answers become a pipeline that validates; only at a terminal are they asked for."""

import io
import os
import pty
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from commandline import as_it_was
from PIL import Image

from compress import cli
from compress.errors import CompressError, ConfigError, DataError
from compress.export.targets import TARGETS
from compress.pipeline import read
from compress.running.rehearsal import objections
from compress.verbs import starting


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder but for photos of two classes."""
    monkeypatch.chdir(tmp_path)
    for name in ("cat", "dog"):
        for i in range(3):
            path = Path("photos", name, f"{i}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (70, 90), (40 * i, 20, 90)).save(path)
    return tmp_path


def init(*words: str) -> tuple[object, str, str]:
    """Exit code and what is printed; standard input is empty and no terminal."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, as_it_was():
        patch.setattr(sys, "argv", ["compress", "init", *words])
        patch.setattr(sys, "stdin", io.StringIO())
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        with pytest.raises(SystemExit) as caught:
            cli.main()
    return caught.value.code, out.getvalue(), err.getvalue()


CHOICES = [
    ("digits", "onnxruntime", "max_accuracy_drop=1", True),
    *(("photos", target, "max_accuracy_drop=0.5", False) for target in TARGETS),
    *(
        ("digits", "onnxruntime", limit, True)
        for limit in ("max_bytes=500kB", "max_bytes=1.5MB", "max_bytes_ratio=0.1")
    ),
    ("digits", "float", "max_bytes_ratio=0.5", True),
    ("photos", "mobile", "max_macs_ratio=0.4", False),
    ("digits", "arm", "max_latency_ratio=0.5", False),
]


@pytest.mark.parametrize(("data", "target", "limit", "published"), CHOICES, ids=map(str, CHOICES))
def test_every_choice_writes_a_pipeline_that_holds_it(data: str, target: str, limit: str, published: bool) -> None:
    words = ["mine", "--data", data, "--target", target, "--limit", limit]
    code, out, err = init(*words, *([] if published else ["--from-scratch"]))
    assert (code, err) == (0, "")
    assert "wrote mine.yaml" in out
    written = read(Path("mine.yaml"))
    assert written.export.target == target
    assert [stage.name for stage in written.stages][2:] == (["quantize"] if TARGETS[target].quantizes else [])
    found = starting.limit_of(limit)
    assert written.budget.model_dump(exclude_none=True) == {found.key: found.value}
    if data == "photos":
        assert "photos: 2 classes (cat, dog), 6 images" in out
        assert written.data.model_dump()["size"] == 64  # the largest that 70 pixels give


@pytest.mark.parametrize("words", [["--data", "digits"], ["--data", "photos/"]], ids=str)
def test_what_it_writes_validates(words: list[str]) -> None:
    assert init("mine", *words)[0] == 0
    # Weights that would be fetched are left out by a rehearsal, as `validate` does it.
    assert not list(objections(read(Path("mine.yaml")), []))


def test_a_folder_of_class_folders_in_place_of_a_name_is_meant_as_the_images() -> None:
    Path("photos").rename("my photos")
    code, out, err = init("my photos/", "--from-scratch")
    assert (code, err) == (0, "")
    assert "my photos: 2 classes (cat, dog), 6 images" in out
    assert "`compress run 'my photos.yaml'` runs it" in out
    assert str(read(Path("my photos.yaml")).data.model_dump(mode="json")["path"]) == "my photos"
    assert "no folder images yet" not in out
    assert "there is no folder images yet: put the path of your images into `data`, or give --data" in init("other")[1]


@pytest.mark.parametrize(("target", "size", "ok"), [("float", "5MB", True), ("float", "12MB", False)])
def test_a_float_file_is_rehearsed_as_one(target: str, size: str, ok: bool) -> None:
    """MobileNetV2 has 9 MB as float32 and 2.5 as int8."""
    init("mine", "--data", "digits", "--target", target)
    loaded = read(Path("mine.yaml"), [f"stages.prune={{max_bytes: {int(size[:-2]) * 1_000_000}}}"])
    said = [str(error) for error in objections(loaded, [])]
    assert [text.startswith("stages.1.prune: max_bytes: the network") for text in said] == ([] if ok else [True])


def test_published_weights_unless_from_scratch() -> None:
    init("with", "--data", "photos")
    init("without", "--data", "photos", "--from-scratch")
    assert read(Path("with.yaml")).student.weights == "IMAGENET1K_V2"
    assert read(Path("without.yaml")).student.weights is None


@pytest.mark.parametrize("name", ["my photos", "#1: {a}", "it's", 'say "hi"', "true", "12"])
def test_folders_of_any_name(name: str) -> None:
    Path("photos").rename(name)
    assert init("mine", "--data", name, "--from-scratch")[0] == 0
    assert str(read(Path("mine.yaml")).data.model_dump(mode="json")["path"]) == name


def test_a_name_cannot_leave_its_comment() -> None:
    assert init("a\nseed: 7", "--data", "digits")[0] == 0
    (file,) = Path().glob("*.yaml")
    assert "seed" not in yaml.safe_load(file.read_text())


BAD: list[tuple[list[str], int, str]] = [
    (["--data", "nowhere"], 3, "there is no folder nowhere; give one with a folder of images for each class"),
    (["--data", "photos/cat/0.png"], 3, "photos/cat/0.png is a file; give a folder"),
    (["--data", "photos/cat"], 3, "photos/cat has no class folders; put each class's images into its own"),
    (["--target", "gameboy"], 2, "--target gameboy: no such target (`compress ls targets` says what for). Known: arm,"),
    (["--limit", "small"], 2, "--limit small: should read max_accuracy_drop=1, with one of max_accuracy_drop,"),
    (["--limit", "max_bytes=lots"], 2, "--limit max_bytes=lots: 'lots' is no number; such as"),
    (["--limit", "max_bytes=3 elephants"], 2, "'3 elephants' is no number"),
    (["--limit", "max_bytes=0.2"], 2, "a file has at least a byte"),
    (["--limit", "max_bytes=1e999"], 2, "'1e999' is no number"),
    (["--limit", "max_bytes=1.2.3"], 2, "'1.2.3' is no number"),
    (["--limit", "max_macs_ratio=50kB"], 2, "'50kB' is no number"),
    (["--limit", "max_bytes=50%"], 2, "'50%' is no number"),
    (["--limit", "500 kB"], 2, "Did you mean 'max_bytes=500 kB'?"),
    (["--limit", "max_macs_ratio=0"], 2, "should be above 0"),
    (["--limit", "max_latency_ratio=2"], 2, "a ratio to the unpruned student should be below 1"),
    (["--limit", "max_bytes=9", "--limit", "max_bytes=8"], 2, "--limit max_bytes is given twice; give it once"),
]


@pytest.mark.parametrize(("words", "code", "said"), BAD, ids=[" ".join(words) for words, _, _ in BAD])
def test_bad_answers_write_nothing(words: list[str], code: int, said: str) -> None:
    found, out, err = init("mine", *words)
    assert (found, out) == (code, "")
    assert err.startswith("error: ")
    assert said in err
    assert not Path("mine.yaml").exists()


@pytest.mark.parametrize(
    ("machine", "flags", "target"),
    [
        ("aarch64", [], "arm"), ("x86_64", ["avx2"], "onnxruntime-avx2"), ("x86_64", [], "onnxruntime"),
        ("x86_64", ["avx2", "avx_vnni"], "onnxruntime"),
    ],
)  # fmt: skip
def test_the_device_that_is_proposed(
    machine: str, flags: list[str], target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(starting, "cpu_flags", lambda: flags)
    assert starting.target_here() == target


@pytest.mark.parametrize(("side", "size"), [(20, 32), (32, 32), (50, 48), (95, 64), (96, 96), (4000, 96)])
def test_the_size_is_no_more_than_most_images_have(side: int, size: int) -> None:
    for i in range(3):
        path = Path("more", "ab"[i % 2], f"{i}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (side, side + 3)).save(path)
    Path("more/a/broken.png").write_text("no image")
    assert starting.size_for(Path("more")) == size


def test_split_folders_and_what_lies_beside() -> None:
    Path("split").mkdir()
    Path("photos").rename("split/Train")
    Path("split/.hidden").mkdir()
    for name in ("cat", "dog"):
        Path("split/Test", name).mkdir(parents=True)
        Image.new("RGB", (9, 9)).save(Path("split/Test", name, "0.png"))
    images, warnings = starting.look(Path("split"))
    assert [(name, len(paths)) for name, paths in images["train"].items()] == [("cat", 3), ("dog", 3)]
    assert warnings == []
    assert starting.folder_here() == Path("split")
    with pytest.raises(DataError, match="is a file"):
        starting.look(Path("gone"))


@pytest.mark.parametrize(
    ("limit", "value"), [("max_accuracy_drop=1.5%", 1.5), ("max_macs_ratio=40%", 0.4), ("max_bytes_ratio=20 %", 0.2)]
)
def test_per_cent_are_points_or_hundredths(limit: str, value: float) -> None:
    assert starting.limit_of(limit).value == pytest.approx(value)


@pytest.mark.parametrize(
    ("limit", "target", "asked_of_prune"),
    [
        ("1.5MB", "onnxruntime", {"max_bytes": 1.5e6}), ("5MB", "onnxruntime", {"keep_macs": 0.5}),
        ("5MB", "float", {"max_bytes": 5e6}), ("20MB", "float", {"keep_macs": 0.5}),
    ],
)  # fmt: skip
def test_who_can_afford_the_whole_net_is_not_asked_to_prune_to_more(
    limit: str, target: str, asked_of_prune: dict[str, float]
) -> None:
    assert init("mine", "--data", "digits", "--limit", f"max_bytes={limit}", "--target", target)[0] == 0
    prune = yaml.safe_load(Path("mine.yaml").read_text())["stages"][1]["prune"]
    assert {key: prune[key] for key in asked_of_prune} == asked_of_prune


def test_quotes_of_a_folder_that_was_dropped_are_none_of_its_name() -> None:
    Path("photos").rename("my photos")
    assert starting.images_of("'my photos'") == Path("my photos")
    Path("my photos").rename("'x'")
    assert starting.images_of("'x'") == Path("'x'")


class Terminal:
    """A terminal that types these lines, one for each question, and keeps what it is shown."""

    def __init__(self, lines: list[str]) -> None:
        self.lines, self.shown = lines, b""
        self.master, slave = pty.openpty()
        self.input = os.fdopen(slave, "r", closefd=False)
        self.output = os.fdopen(slave, "w", buffering=1)
        self.reader = threading.Thread(target=self.read)

    def read(self) -> None:
        while True:
            try:
                self.shown += os.read(self.master, 4096)
            except OSError:
                return

    def __enter__(self) -> "Terminal":
        os.write(self.master, "".join(f"{line}\n" for line in self.lines).encode())
        self.reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.input.close()
        self.output.close()
        self.reader.join()
        os.close(self.master)


@pytest.fixture
def asked() -> Any:
    """`compress init` at a terminal: exit code and what it shows."""

    def call(lines: list[str], *words: str) -> tuple[object, str]:
        with Terminal(lines) as terminal, pytest.MonkeyPatch.context() as patch, as_it_was():
            patch.setattr(sys, "argv", ["compress", "init", "mine", *words])
            for name, stream in (("stdin", terminal.input), ("stdout", terminal.output), ("stderr", terminal.output)):
                patch.setattr(sys, name, stream)
            with pytest.raises(SystemExit) as caught:
                cli.main()
        return caught.value.code, terminal.shown.decode()

    return call


def test_three_questions_with_what_is_there_for_an_answer(asked: Any) -> None:
    code, shown = asked(["", "", ""])
    assert code == 0
    for number, words in enumerate(("Your images", "Your device", "Your limit"), start=1):
        assert f"{number}  {words}" in shown
    assert "images [photos]" in shown
    written = read(Path("mine.yaml"))
    assert str(written.data.model_dump()["path"]) == "photos"
    assert written.export.target == starting.target_here()
    assert written.budget.model_dump(exclude_none=True) == {"max_accuracy_drop": 1.0}


def test_an_answer_that_will_not_do_is_asked_for_again(asked: Any) -> None:
    code, shown = asked(["photo", "digits", "mobil", "mobile", "max_byte=3", "max_bytes=300kB"])
    assert code == 0
    assert "there is no folder photo" in shown
    for near in ("'photos'", "'mobile'", "'max_bytes'"):
        assert f"Did you mean {near}?" in shown
    written = read(Path("mine.yaml"))
    assert (written.data.name, written.export.target) == ("digits", "mobile")
    assert written.budget.max_bytes == 300_000


def test_what_flags_say_is_not_asked(asked: Any) -> None:
    code, shown = asked([], "--data", "digits", "--target", "arm", "--limit", "max_bytes=1MB")
    assert code == 0
    assert "Your" not in shown
    Path("mine.yaml").unlink()
    assert "Your" not in asked([], "--yes")[1]


def test_no_answer_is_an_error(asked: Any) -> None:
    code, shown = asked(["\x04"])
    assert code == 2
    assert "init got no answer; give --data, --target and --limit, or --yes" in shown
    assert not Path("mine.yaml").exists()


def test_off_a_terminal_nothing_is_asked() -> None:
    code, out, err = init("mine")  # its input is empty: a question would fail
    assert (code, err) == (0, "")
    assert "Your" not in out


def test_every_key_of_the_budget_can_be_a_limit() -> None:
    from compress.pipeline import Budget

    assert set(starting.LIMITS) == set(Budget.model_fields)
    for key in starting.LIMITS:
        assert starting.limit_of(f"{key}=0.5" if key != "max_bytes" else "max_bytes=5").key == key
    with pytest.raises(ConfigError):
        starting.limit_of("")
    assert issubclass(ConfigError, CompressError)
