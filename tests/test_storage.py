"""What is written is whole or not there at all, and what is read is what was written: injected faults, one by one."""

import errno
import functools
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import full_disk
import numpy as np
import pytest
import torch
from full_disk import Disk
from tiny import tiny_pipeline

from compress.console import explain
from compress.errors import ArtifactError, ResourceError
from compress.events import Event
from compress.files import checksums, durable, run_folder
from compress.pruning.sensitivity_table import Row, Table
from compress.running import kept
from compress.running.kept import Finished
from compress.running.origin import find_origin
from compress.running.runner import run
from compress.training.target_files import Layout, TargetFile
from compress.verbs.comparing import compare_runs

FULL = errno.ENOSPC


def failing(folder: Path, action: Callable[[], object]) -> Iterator[str]:
    """Do something with a fault at its first write, its second and so on, until it gets through; the sentences."""
    for number in range(100):
        with Disk(folder, number).watched() as disk:
            try:
                action()
            except ResourceError as error:
                said = str(error)
            else:
                return
        assert len(disk.sites) > number
        yield said
    raise AssertionError("it never got through")


# One file


def test_a_file_is_replaced_whole_or_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "inner" / "file"
    durable.write(path, "earlier")
    for said in failing(tmp_path, lambda: durable.write(path, b"later" * 1000)):
        # Where only the folder's fsync failed, the new one is there.
        assert path.read_text() in ("earlier", "later" * 1000)
        durable.write(path, "earlier")
        assert said.startswith(f"{path} cannot be written: No space left on device (5,000 bytes are needed, ")
        assert said.endswith(
            " bytes are free). Free some space, or choose another folder with --out; what was finished is kept"
        )
    assert path.read_bytes() == b"later" * 1000
    assert [each.name for each in path.parent.iterdir()] == ["file"]


def test_a_line_is_appended_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    durable.append(path, "one")
    for _ in failing(tmp_path, lambda: durable.append(path, "two")):
        assert durable.lines(path)[:1] == ["one"]
        assert path.read_text() in ("one\n", "one\ntwo\n")  # the latter where only the disk's answer was missing
        path.write_text("one\n")
    assert durable.lines(path) == ["one", "two"]


def test_a_torn_line_is_left_out_and_the_next_one_stands_on_its_own(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"one\ntw\xc3")
    assert durable.lines(path) == ["one"]
    durable.append(path, "three")
    assert durable.lines(path)[0::2] == ["one", "three"]


def in_the_way(kind: str, path: Path) -> None:
    if kind == "file":
        path.write_text("")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(path.with_name("nowhere"))


@pytest.mark.parametrize(
    ("kind", "place", "said"),
    [
        ("file", "a", "a is there and no folder"),
        ("link", "a", "a is a link to nothing"),
        ("folder", "a/b", "b is a folder"),
        ("folder", "a/b.unfinished", "b.unfinished is there and no folder"),
    ],
)
def test_what_is_in_the_way_of_a_file(kind: str, place: str, said: str, tmp_path: Path) -> None:
    (tmp_path / place).parent.mkdir(exist_ok=True)
    in_the_way(kind, tmp_path / place)
    with pytest.raises(ResourceError) as caught:
        durable.write(tmp_path / "a" / "b", "x")
    assert said.partition(" is ")[2] in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path / 'a' / 'b'} cannot be written: ")


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("precious")
    for name in ("file", "file.unfinished", "lines"):
        (tmp_path / name).symlink_to(tmp_path / "outside")
    durable.write(tmp_path / "file", "x")
    with pytest.raises(ResourceError, match=r"lines cannot be written: it is a link\."):
        durable.append(tmp_path / "lines", "x")
    assert (tmp_path / "outside").read_text() == "precious"
    assert (tmp_path / "file").read_text() == "x"


def test_no_place_for_temporary_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.mkdtemp", lambda *_: (_ for _ in ()).throw(FileNotFoundError(2, "No usable one")))
    with pytest.raises(ResourceError, match="no temporary folder can be made: No usable one"), durable.temporary():
        pass


# JSON that knows its own checksum


def test_every_flipped_bit_and_every_cut_of_a_sealed_file_is_found_out(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    checksums.write(path, {"text": "é\n\u202e", "numbers": [1, 2.5, None], "empty": {}})
    assert checksums.read(path)["numbers"] == [1, 2.5, None]
    raw = path.read_bytes()
    damaged = [raw[:end] for end in range(len(raw))]
    damaged += [raw[:i] + bytes([raw[i] ^ 1 << bit]) + raw[i + 1 :] for i in range(len(raw)) for bit in range(8)]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(ArtifactError, match=r"a\.json (is damaged|was made by an earlier version)"):
            checksums.read(path)


# A stage's folder


@pytest.fixture
def finished(small_net: Callable, tmp_path: Path) -> Path:
    """The folder of a finished stage, with a curve and a variant."""
    return finish(small_net, tmp_path)


def finish(small_net: Callable, parent: Path) -> Path:
    folder = parent / "stages" / "0-quantize-abc"
    unfinished = kept.start(folder)
    durable.write(unfinished / "train.jsonl", '{"epoch": 1, "loss": 0.5}\n')
    kept.finish(unfinished, Finished("quantize", "abc", folder, small_net(0), 1.5, {"ptq": small_net(1)}, ("a note",)))
    return folder


def test_a_stage_is_read_as_it_was_written(finished: Path, small_net: Callable) -> None:
    found = kept.load(finished)
    assert found is not None
    assert (found.stage, found.seconds, found.notes) == ("quantize", 1.5, ("a note",))
    assert found.curve == ({"epoch": 1, "loss": 0.5},)
    for net, seed in ((found.net, 0), (found.beside["ptq"], 1)):
        wanted = small_net(seed).module.state_dict()
        assert all(torch.equal(value, wanted[name]) for name, value in net.module.state_dict().items())


def test_bits_flipped_and_ends_missing_in_every_file_of_a_stage_are_found_out(finished: Path) -> None:
    random = np.random.default_rng(0)
    files = [path for path in finished.rglob("*") if path.is_file()]
    names = {"stage.json", "net.json", "weights.safetensors", "train.jsonl", "ptq/net.json", "ptq/weights.safetensors"}
    assert {path.relative_to(finished).as_posix() for path in files} == names
    injected = 0
    for path in files:
        raw = path.read_bytes()
        places = [0, len(raw) - 1, *random.integers(0, len(raw), 10)]
        damaged = [raw[:i] + bytes([raw[i] ^ 1 << int(random.integers(8))]) + raw[i + 1 :] for i in places]
        damaged += [b"", raw[: len(raw) // 2], raw[:-1], raw + b"\n", None]
        for content in damaged:
            path.unlink() if content is None else path.write_bytes(content)
            with pytest.raises(ArtifactError) as caught:
                kept.load(finished)
            assert str(path) in str(caught.value)
            path.write_bytes(raw)
            injected += 1
    assert kept.load(finished) is not None
    assert injected >= 100


def test_a_stage_of_an_earlier_version_is_not_taken_over(finished: Path) -> None:
    summary = json.loads((finished / "stage.json").read_text())
    (finished / "stage.json").write_text(json.dumps({key: summary[key] for key in ("stage", "key", "seconds")}))
    with pytest.raises(ArtifactError, match=r"stage\.json was made by an earlier version, without checksums"):
        kept.load(finished)


def test_a_stage_that_only_lacks_its_name_gets_it(finished: Path) -> None:
    unfinished = kept.unfinished_of(finished)
    finished.rename(unfinished)
    (unfinished / "checkpoints").mkdir()
    kept.give_up(unfinished)
    found = kept.load(finished)
    assert found is not None
    assert not unfinished.exists()
    assert not (finished / "checkpoints").exists()


def test_half_a_stage_is_no_stage_and_leaves_its_checkpoints(finished: Path) -> None:
    unfinished = kept.unfinished_of(finished)
    finished.rename(unfinished)
    (unfinished / "weights.safetensors").write_bytes(b"half")
    durable.write(unfinished / "checkpoints" / "a", "whole")
    assert kept.load(finished) is None
    assert kept.start(finished) == unfinished
    assert [path.relative_to(unfinished).as_posix() for path in unfinished.rglob("*")] == [
        "checkpoints",
        "checkpoints/a",
    ]
    kept.give_up(unfinished)
    assert (unfinished / "checkpoints" / "a").read_text() == "whole"


def test_a_disk_that_is_full_at_any_write_of_a_stage_loses_no_checkpoint(small_net: Callable, tmp_path: Path) -> None:
    folder = tmp_path / "stages" / "0-quantize-abc"
    durable.write(kept.start(folder) / "checkpoints" / "a", "whole")
    sentences = [*failing(tmp_path, lambda: try_to_finish(small_net, tmp_path))]
    assert len(sentences) > 30
    assert kept.load(folder) is not None


def try_to_finish(small_net: Callable, tmp_path: Path) -> None:
    folder = tmp_path / "stages" / "0-quantize-abc"
    try:
        finish(small_net, tmp_path)
    except ResourceError:
        kept.give_up(kept.unfinished_of(folder))
        saved = kept.unfinished_of(folder) / "checkpoints" / "a"
        if not saved.exists():  # then all else is there
            assert kept.load(folder) is not None
        raise


# The rows of an analysis, and a teacher's logits

ROWS = [Row("net", "", 0, 0.0, 0, 90.0, 0.0, 0.5), Row("group", "a", 8, 0.5, 4, 71.25, 18.75, 1.5)]


def test_rows_that_are_not_as_they_were_written_are_measured_again(tmp_path: Path) -> None:
    path, said = tmp_path / "rows.csv", []
    Table(path).start("key")
    table = Table(path)
    assert table.start("key") == []
    for row in ROWS:
        table.append(row)
    assert Table(path, said.append).start("key") == ROWS
    assert said == []
    path.write_text(path.read_text().replace("71.25", "91.25"))
    assert Table(path, said.append).start("key") == ROWS[:1]
    assert said == ["rows.csv is damaged at row 2; it is measured again from there"]
    path.write_text(path.read_text() + "group,a,8,0.5,4,71")
    assert Table(path, said.append).start("key") == ROWS[:1]
    assert len(said) == 1


def test_a_full_disk_costs_one_row_at_most(tmp_path: Path) -> None:
    def measure() -> None:
        table = Table(tmp_path / "rows.csv")
        for row in ROWS[len(table.start("key")) :]:
            table.append(row)

    assert len([*failing(tmp_path, measure)]) > 10
    assert Table(tmp_path / "rows.csv").start("key") == ROWS


def test_a_full_disk_leaves_no_logits_that_count(tmp_path: Path) -> None:
    layout = Layout(4, 1, 3, False)
    file = TargetFile(tmp_path / "targets", "k")

    def write() -> None:
        file.prepare(layout)
        file.write(layout, None, [torch.zeros(4, 6, dtype=torch.uint8)])

    for said in failing(tmp_path, write):
        assert said.endswith("`targets: online`")
        assert not file.description.exists()
    assert file.checked() == layout


# A run's folder


@pytest.mark.parametrize("name", run_folder.FOLDERS)
@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_file_where_a_run_needs_a_folder(kind: str, name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    in_the_way(kind, tmp_path / name)
    said = "a file" if kind == "file" else "a link to nothing"
    with pytest.raises(ResourceError) as caught:
        run_folder.make(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path / name} is {said} where a run needs a folder; move it away, or choose another folder with --out"
    )


@pytest.mark.parametrize("name", run_folder.FILES)
def test_a_folder_where_a_run_writes_a_file(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir(parents=True)
    with pytest.raises(ResourceError, match="is a folder where a run writes a file; move it away, or choose another"):
        run_folder.make(tmp_path)


@pytest.mark.parametrize("kind", ["file", "link"])
def test_no_folder_where_the_run_folder_should_be(kind: str, tmp_path: Path) -> None:
    in_the_way(kind, tmp_path / "out")
    with pytest.raises(ResourceError, match=r"out is a (file|link to nothing), and a run needs a folder there; choose"):
        run_folder.make(tmp_path / "out")


def test_a_run_folder_may_be_a_link_to_one(tmp_path: Path) -> None:
    (tmp_path / "large disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "large disk")
    run_folder.make(tmp_path / "out")
    assert (tmp_path / "out").is_symlink()
    assert (tmp_path / "large disk").is_dir()


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EIO])
def test_a_run_folder_that_cannot_be_written(number: int, tmp_path: Path) -> None:
    with Disk(tmp_path, 0, error=number).watched(), pytest.raises(ResourceError) as caught:
        run_folder.make(tmp_path)
    assert str(caught.value).startswith(f"the folder {tmp_path} cannot be written: {os.strerror(number)}")
    assert ("bytes are free" in str(caught.value)) == (number == errno.ENOSPC)


# Whole runs


@pytest.fixture(scope="module", autouse=True)
def fast() -> Iterator[None]:
    with full_disk.quick():
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """An undisturbed run's folder, and the calls that wrote there."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return folder, full_disk.undisturbed(folder)[0]


def test_disks_that_fail_at_writes_of_every_kind(whole: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, sites = whole
    chosen = full_disk.spread(sites, 12)
    found = [*full_disk.disturbed(tmp_path / "run", chosen)]
    assert len(found) == 12
    assert [(fault.site, fault.said, fault.problems) for fault in found if fault.problems] == []
    assert {fault.site.split()[0] for fault in found} >= {"mkdir", "write", "fsync"}
    assert full_disk.mended(tmp_path / "run", full_disk.result(folder)) == []


DAMAGED = (
    "models/baseline.onnx", "models/quantize.int8.onnx", "models/alternatives/quantize-ptq.int8.onnx",
    "predictions/baseline.csv", "test.npz", "report.json", "report.md", "report.html", "pipeline.yaml",
    "pictures/accuracy-size.svg", "stages/baseline-*/proof.json", "stages/0-quantize-*/weights.safetensors",
)  # fmt: skip


def test_what_is_damaged_in_a_run_folder_is_said_and_made_again(whole: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole[0], tmp_path / "run"))
    places = [next(folder.glob(pattern)) for pattern in DAMAGED]
    before = [path.read_bytes() for path in places]
    for i, (path, raw) in enumerate(zip(places, before, strict=True)):
        middle = len(raw) // 2
        path.write_bytes(raw[:middle] + (bytes([raw[middle] ^ 4]) + raw[middle + 1 :] if i % 2 else b""))
    (folder / ".lock").write_text('{"host": "gone", "pid": 7, "started": "2026-01-02"}')
    events: list[Event] = []
    with full_disk.quick():
        run(
            tiny_pipeline(**full_disk.PIPELINE),
            folder,
            emit=events.append,
        )
    said = [event["text"] for event in events if event["event"] == "warning"]
    assert {"event": "taken over", "host": "gone", "pid": 7, "started": "2026-01-02"} in events
    for path in places:
        assert [text for text in said if path.relative_to(folder).as_posix() in text], path
    assert full_disk.result(folder) == full_disk.result(whole[0])
    assert (folder / "pipeline.yaml").read_bytes() == before[DAMAGED.index("pipeline.yaml")]
    assert run_folder.damaged(folder) == {}


@pytest.mark.parametrize("name", ["report.json", "checksums.json"])
def test_damaged_reports_are_not_compared(name: str, whole: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole[0], tmp_path / "run"))
    path = folder / name
    raw = path.read_bytes()
    digit = next(i for i in range(len(raw) // 3, len(raw)) if 49 <= raw[i] <= 56)
    path.write_bytes(raw[:digit] + bytes([raw[digit] + 1]) + raw[digit + 1 :])
    with pytest.raises(ArtifactError) as caught:
        compare_runs([folder])
    assert str(caught.value) == (
        f"{path} is damaged: its SHA-256 is not the one that it was written with; run the pipeline again, what is done "
        "is kept"
    )


def test_a_file_is_not_compared_with_a_damaged_net(whole: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole[0], tmp_path / "run"))
    model = folder / "models" / "quantize.int8.onnx"
    origin = find_origin(model, None)
    assert origin is not None
    assert origin.net is not None
    (weights,) = folder.glob("stages/0-quantize-*/weights.safetensors")
    raw = weights.read_bytes()
    weights.write_bytes(raw[:-9] + bytes([raw[-9] ^ 1]) + raw[-8:])
    origin = find_origin(model, None)
    assert origin is not None
    assert origin.net is None
    assert origin.reason == f"{weights} is damaged: its SHA-256 is not the one that it was written with"


def test_renewed_checksums_bless_nothing_else(whole: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole[0], tmp_path / "run"))
    for name in ("report.md", "models/baseline.onnx", "models/gone.onnx.unfinished"):
        (folder / name).write_text("other")
    run_folder.seal(folder, run_folder.REPORT)
    assert set(run_folder.damaged(folder)) == {"models/baseline.onnx"}
    assert not (folder / "models" / "gone.onnx.unfinished").exists()


@functools.cache
def mounts() -> bool:
    """Whether this user may mount a small disk."""
    return os.geteuid() == 0 and shutil.which("mount") is not None


@pytest.mark.skipif(not mounts(), reason="only root may mount a small disk")
def test_a_disk_that_is_really_full(whole: tuple[Path, list[str]], tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(*options: str) -> bool:
        words = ["mount", "-t", "tmpfs", "-o", ",".join(options), "none", str(disk)]
        return subprocess.run(words, capture_output=True).returncode == 0

    if not mount("size=96k"):
        pytest.skip("no small disk can be mounted here")
    try:
        with full_disk.quick():
            code, said = full_disk.ended(disk / "run")
        assert code == 6, said
        assert "cannot be written: No space left on device (" in said
        assert mount("remount", "size=64m")
        assert full_disk.mended(disk / "run", full_disk.result(whole[0])) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_every_error_of_the_system_has_a_sentence(tmp_path: Path) -> None:
    for number in full_disk.ERRORS:
        error = durable.cannot_write(tmp_path / "a", OSError(number, os.strerror(number)), 7)
        text, code = explain(error)
        assert code == 6
        assert os.strerror(number) in text
