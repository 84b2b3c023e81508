"""What the command line shows while it works: bars that fit, plain lines, JSON lines, plans, completion, curves."""

import io
import json
import os
import pty
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from commandline import as_it_was
from made_reports import FULL
from rich.cells import cell_len
from rich.console import Console
from tiny import tiny_pipeline

from compress import cli
from compress.console import show_rows
from compress.errors import ResourceError
from compress.export.targets import TARGETS
from compress.net import Spec, build
from compress.running.plan import Costs, macs_of, plan, searched
from compress.running.runner import run
from compress.running.workload import pieces
from compress.showing import screen as screen_module
from compress.showing.bars import Bar, Bars
from compress.showing.json_lines import json_of
from compress.showing.remaining import Piece, Remaining
from compress.showing.screen import Screen
from compress.showing.tensorboard import TensorBoard
from compress.showing.watched import Wanted, watched
from compress.showing.weights_and_biases import WeightsAndBiases
from compress.stages import Search
from compress.verbs import completing
from compress.verbs.plan_tree import tree

TRAINING = {"epochs": 2, "batch_size": 16, "lr": 0.01}
# No teacher, two epochs, one stage: a whole run takes about a second.
BRIEF: dict[str, Any] = {
    "data": {"synthetic": {"size": 16, "classes": 4, "samples": 32}},
    "student": "tiny",
    "baseline": {"training": TRAINING},
    "stages": [{"train": {"training": TRAINING}}],
    "benchmark": {"rounds": 2},
    "seed": 3,
}
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def epoch(n: int, of: int = 4, **more: Any) -> dict[str, Any]:
    return {
        "event": "epoch", "stage": "distill", "epoch": n, "epochs": of, "step": 10, "steps": 10, "loss": 0.25,
        "accuracy": 50.0, "val_accuracy": 60.0, "lr": 0.1, "images_per_s": 1234.0, "seconds": 1.0, "left_s": 65.0,
    } | more  # fmt: skip


def drawn(bars: Bars, width: int, **options: Any) -> list[str]:
    told = io.StringIO()
    Console(file=told, width=width, force_terminal=True, legacy_windows=False, **options).print(bars)
    return ESCAPES.sub("", told.getvalue()).rstrip("\n").split("\n")


# Bars


@pytest.mark.parametrize("name", ["run", "quantize", "a-very-long-name-of-a-stage-that-nobody-needs", "网络网络网络"])
@pytest.mark.parametrize("width", [5, 20, 39, 40, 60, 80, 100, 200])
def test_bars_are_never_wider_than_the_terminal(width: int, name: str) -> None:
    figures = ("epoch 100/200", "1 h 05 min left", "val 99.1 %", "accuracy 99.5 %", "loss 0.123", "12,345 img/s")
    lines = drawn(Bars([Bar("run", 0.5, ("≈ 2 h 10 min left", "net 3/5")), Bar(name, None, figures)]), width)
    assert len(lines) == 2
    assert all(cell_len(line) < width for line in lines)
    shown = [figure in lines[1] for figure in figures]
    assert shown == sorted(shown, reverse=True)  # the dearest first, none left out before another
    assert shown[0] or width < 40
    assert all(shown) == (width == 200) or width == 100


def test_nothing_to_show_takes_no_line() -> None:
    assert drawn(Bars([]), 80) == [""]


def test_no_colour_means_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    told = io.StringIO()
    Console(file=told, width=80, force_terminal=True).print(Bars([Bar("run", 0.5, ("net 1/2",))]))
    assert not re.search(r"\x1b\[(3|4|9)[0-9]", told.getvalue())
    assert "net 1/2" in told.getvalue()


# The time that is left


def test_the_run_is_as_long_as_its_nets_at_the_speed_of_their_kind() -> None:
    now = [0.0]
    left = Remaining(
        [Piece("teacher", 100, "big"), Piece("baseline", 10, "small"), Piece("distill", 30, "small")], lambda: now[0]
    )
    assert (left.share, left.left_s, left.piece) == (0.0, None, None)
    left({"event": "stage"})
    assert left.left_s is None  # nothing was measured yet
    left(epoch(1, left_s=30.0))  # a quarter of 100 units is done, 75 take 30 s: 0.4 s each
    assert (left.share, left.stage_left_s) == (25 / 140, 30.0)
    assert left.left_s == pytest.approx(30 + 40 * 0.4)
    left({"event": "stage finished", "seconds": 50.0})
    left({"event": "stage"})
    assert left.left_s == pytest.approx(40 * 0.5)  # the teacher took 0.5 s each
    left(epoch(2, left_s=2.0))  # half of 10 units take 2 s: 0.4 s each, and that is the student's speed
    assert left.left_s == pytest.approx(2 + 30 * 0.4)
    left({"event": "unchanged"})
    assert (left.share, left.left_s, left.all_made) == (1.0, 0.0, True)


def test_one_of_several_trainings_in_a_stage_does_not_know_its_end() -> None:
    now = [100.0]
    left = Remaining([Piece("distill", 10, "small")], lambda: now[0])
    left({"event": "stage"})
    left(epoch(1, phase=1, left_s=1.0))
    assert left.stage_left_s is None
    now[0] = 104.0
    left(epoch(2, phase=1, left_s=0.0))
    assert left.stage_left_s == pytest.approx(8.0)  # a quarter in 4 s, half is left


@pytest.mark.parametrize("seeds", [1, 2])
def test_the_pieces_are_what_a_run_makes(seeds: int) -> None:
    pipeline = tiny_pipeline()
    found = pieces(pipeline, seeds=seeds)
    students = ["baseline", "distill", "prune", "quantize"]
    assert [each.name for each in found] == ["teacher", *students * seeds]
    work = {each.name: each.work for each in found}
    assert work["baseline"] == pytest.approx(3 * work["quantize"] - 3 * _lesson(work), rel=2)  # times of one machine
    assert all(each.work > 0 for each in found)


def _lesson(work: dict[str, float]) -> float:
    return work["teacher"] / 3


def test_work_is_counted_in_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    cost = {"tiny": 1.0}
    monkeypatch.setattr("compress.running.workload.forward_seconds", lambda net, _: cost[net.spec.architecture.name])
    found = {each.name: each.work for each in pieces(tiny_pipeline())}
    # Two epochs each: forward and backward are three passes, a lesson is one more; pruning keeps 60 %.
    assert found == pytest.approx(
        {"teacher": 6, "baseline": 18, "distill": 8, "prune": 2 * (1.8 + 1), "quantize": 2 * (1.8 + 1)}
    )
    smoke = {each.name: each.work for each in pieces(tiny_pipeline(), smoke=True)}
    assert smoke["teacher"] == 3


# The screen


def shown(*events: dict[str, Any], quiet: bool = False) -> list[str]:
    """Lines off a terminal."""
    told = io.StringIO()
    with Screen(quiet) as screen:
        screen.console = Console(file=told, width=200)
        for event in events:
            screen(event)
    return told.getvalue().splitlines()


def test_off_a_terminal_an_epoch_is_a_line() -> None:
    step = epoch(1, step=5, event="step")
    del step["val_accuracy"]
    assert shown({"event": "stage", "stage": "distill"}, step, epoch(1), epoch(2, again=True), epoch(2)) == [
        "distill: started",
        "distill: epoch 1/4, 1 min 05 s left, val 60.0 %, accuracy 50.0 %, loss 0.250, 1,234 img/s",
        "distill: epoch 2/4, 1 min 05 s left, val 60.0 %, accuracy 50.0 %, loss 0.250, 1,234 img/s",
    ]


def test_long_epochs_are_told_of_every_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(screen_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    told = io.StringIO()
    screen = Screen()
    screen.console = Console(file=told, width=200)
    for second in range(36):
        now[0] = float(second)
        screen(epoch(1, step=1, event="step"))
    assert len(told.getvalue().splitlines()) == 3


def test_quiet_says_nothing() -> None:
    assert shown({"event": "stage", "stage": "distill"}, epoch(1), {"event": "warning", "text": "x"}, quiet=True) == []


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the pipeline p.yaml."""
    monkeypatch.chdir(tmp_path)
    Path("p.yaml").write_text(yaml.safe_dump(BRIEF))
    return tmp_path


def called(*words: object) -> tuple[Any, str, str]:
    """Exit code, standard output and error."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, as_it_was():
        patch.setattr(sys, "argv", ["compress", *map(str, words)])
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        with pytest.raises(SystemExit) as caught:
            cli.main()
    return caught.value.code, out.getvalue(), err.getvalue()


def at_terminal(width: int, *words: object, **variables: str) -> tuple[Any, str]:
    """Exit code and all that a terminal of this width is sent."""
    master, slave = pty.openpty()
    parts: list[bytes] = []

    def read() -> None:
        while True:
            try:
                parts.append(os.read(master, 65536))
            except OSError:
                return

    reader = threading.Thread(target=read)
    reader.start()
    with (
        os.fdopen(slave, "w", buffering=1, encoding="utf-8") as terminal,
        pytest.MonkeyPatch.context() as patch,
        as_it_was(),
    ):
        for name, value in ({"COLUMNS": str(width), "LINES": "30", "TERM": "xterm"} | variables).items():
            patch.setenv(name, value)
        patch.setattr(sys, "argv", ["compress", *map(str, words)])
        patch.setattr(sys, "stdout", terminal)
        patch.setattr(sys, "stderr", terminal)
        with pytest.raises(SystemExit) as caught:
            cli.main()
    reader.join()
    os.close(master)
    return caught.value.code, b"".join(parts).decode()


@pytest.mark.parametrize("width", [40, 120])
def test_a_run_at_a_terminal(width: int, here: Path) -> None:
    code, sent = at_terminal(width, "run", "p.yaml", "--set", "stages.train.training.epochs=60")
    assert code == 0
    assert sent.count("\x1b[?25l") == sent.count("\x1b[?25h") == 1  # the cursor is back
    lines = [line.strip("\r") for line in ESCAPES.sub("", sent).split("\n")]
    bars = [line for line in re.split(r"[\r\n]", ESCAPES.sub("", sent)) if re.match(r"(run|train|baseline) .*━", line)]
    assert any(re.search(r"epoch \d+/60  ", bar) for bar in bars)
    assert any(re.match(r"run .*net 2/2", bar) for bar in bars)
    assert any("≈" in bar and "left" in bar for bar in bars)
    assert all(cell_len(bar) < width for bar in bars)
    table = next(line for line in lines if "top-1 %" in line)
    assert ("params" in table) == (width == 120)
    assert cell_len(table) <= width
    assert "ms" in table


def test_a_dumb_terminal_is_sent_plain_lines(here: Path) -> None:
    code, sent = at_terminal(100, "run", "p.yaml", TERM="dumb")
    assert code == 0
    assert "\x1b" not in sent
    assert "train: epoch 2/2, " in sent


def test_results_fit_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    told = io.StringIO()
    told.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stdout", told)
    monkeypatch.setenv("TERM", "xterm")
    show_rows(FULL)
    assert all(cell_len(line) <= 40 for line in ESCAPES.sub("", told.getvalue()).splitlines())


# JSON


def test_a_run_as_json_is_events_and_the_result(here: Path) -> None:
    code, out, err = called("run", "p.yaml", "--json", "--set", "budget.max_bytes=10")
    assert (code, err) == (5, "")
    events = [json.loads(line) for line in out.splitlines()]
    assert {"started", "stage", "epoch", "stage finished", "exporting", "finished"} <= {e["event"] for e in events}
    result = events[-1]
    report = json.loads(Path("reports/p/report.json").read_text())
    assert (result["event"], result["exit_code"], result["verdict"]) == ("result", 5, "fail")
    shared = report["rows"][0].keys() & result["rows"][0].keys()
    assert "top1_onnx" in shared
    for told, row in zip(result["rows"], report["rows"], strict=True):
        assert {key: told[key] for key in shared} == {key: row[key] for key in shared}
    assert Path(result["report"]).is_file()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["nothing.yaml"], 2, "no pipeline file nothing.yaml"), (["p.yaml", "--device", "tpu"], 2, "--device tpu"),
        (["p.yaml", "--out", "p.yaml"], 6, "p.yaml is a file"),
    ],
)  # fmt: skip
def test_an_error_as_json_is_the_last_line(words: list[str], code: int, said: str, here: Path) -> None:
    found, out, err = called("run", *words, "--json")
    last = json.loads(out.splitlines()[-1])
    assert (found, last["exit_code"], last["event"]) == (code, code, "error")
    assert last["message"].startswith(said)
    assert err == f"error: {last['message']}\n"


def test_json_has_no_word_for_infinity() -> None:
    text = json_of({"a": [float("nan"), 1.5, (float("inf"),)], 2: Path("x"), "u": "\u202e\x1b"})
    assert json.loads(text) == {"a": [None, 1.5, [None]], "2": "x", "u": "\u202e\x1b"}
    assert text.isascii()


def test_the_other_verbs_as_json(here: Path) -> None:
    Path("bad.yaml").write_text(yaml.safe_dump(BRIEF | {"sead": 1, "student": "tinny"}))
    code, out, err = called("validate", "p.yaml", "bad.yaml", "--json")
    good, bad = json.loads(out)
    assert (code, good) == (2, {"pipeline": "p.yaml", "ok": True, "problems": [], "notes": []})
    assert [problem.split(":")[0] for problem in bad["problems"]] == ["sead", "student"]
    assert "bad.yaml is not a pipeline" in err
    models = json.loads(called("ls", "models", "--json")[1])["models"]
    assert {"name", "summary"} == set(models[0])
    assert {each["name"]: each["summary"] for each in models}["mobilenet_v2"].startswith("MobileNetV2")
    assert {"models", "losses", "targets"} <= json.loads(called("ls", "--json")[1]).keys()
    topics = {each["topic"] for each in json.loads(called("doctor", "--json")[1])}
    assert {"cpu", "flags", "int8", "disk", "extra"} <= topics
    shown = json.loads(called("show", "p.yaml", "--json")[1])
    assert [step["net"] for step in shown["steps"]] == ["baseline", "train"]
    assert shown["seconds"] == pytest.approx(sum(step["seconds"] for step in shown["steps"]))
    assert shown["pipeline"]["seed"] == 3


# Plans


def test_peers_cost_what_they_are() -> None:
    stages = [{"mutual": {"peers": [{"tiny": {"width": 64}}, "tiny"], "training": TRAINING}}]
    step = plan(tiny_pipeline(teacher=None, stages=stages)).steps[-1]
    sizes = [each.params for each in step.beside]
    assert [each.model for each in step.beside] == ["tiny", "tiny"]
    assert sizes[0] > 3 * sizes[1]
    assert sizes[1] == step.params
    assert step.images == 2 * 160
    assert step.disk_bytes == sum(4 * size + 4 * size for size in [*sizes, step.params])
    assert step.seconds is not None
    assert step.seconds > sum(each.seconds or 0 for each in step.beside) > 0


def test_generations_are_counted_and_ask_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compress.running.plan.forward_seconds", lambda net, batch=None: 1.0)
    stages = [{"born_again": {"generations": 3, "training": TRAINING}}]
    step = plan(tiny_pipeline(teacher=None, stages=stages)).steps[-1]
    assert (step.epochs, step.images, step.seconds) == (6, 6 * 160, 6 * 160 * (3 + 1))


@pytest.mark.parametrize("scored_by", ["sharing", "training"])
def test_a_search_costs_its_trainings(scored_by: str) -> None:
    stage = Search.model_validate({
        "scored_by": scored_by, "training": {"epochs": 2, "batch_size": 10},
        "method": {"evolution": {"population": 4, "generations": 2}},
    })  # fmt: skip
    from compress.models import MODELS

    spec = Spec(architecture=MODELS["mobilenet_blocks"](), classes=4, image=(3, 32, 32))
    net = build(spec, 0)
    own = SimpleNamespace(macs=macs_of(net))
    found = searched(stage, net, _step(own.macs), Costs(TARGETS["onnxruntime"], images=105, judged=50), own=1.0)
    judging = 12 * (50 + 512)
    if scored_by == "training":
        assert (found.epochs, found.images) == (24, 24 * 100)
        assert found.seconds == 24 * 100 * 3 + judging
        return
    space = stage.choices(net)
    macs = [
        macs_of(build(Spec(architecture=space.architecture(rungs), classes=4, image=spec.image)))
        for rungs in (space.largest, space.smallest)
    ]
    # The largest, the smallest, and two between them; forward and backward; then every candidate is judged.
    assert found.seconds == pytest.approx(2 * 100 * 3 * 2 * sum(macs) / own.macs + judging)


def _step(macs: int) -> Any:
    from compress.running.plan import Step

    return Step("search", "mobilenet_blocks", 1, macs, 1, 2, 2 * 100, 0.0)


def lines(**changes: Any) -> list[str]:
    """A plan's tree as lines."""
    raw = {k: v for k, v in (BRIEF | {"name": "p"} | changes).items() if v is not None}
    from compress.pipeline import parsed

    pipeline, told = parsed(raw, "p"), io.StringIO()
    Console(file=told, width=1000).print(tree(plan(pipeline), pipeline, raw))
    return told.getvalue().splitlines()


def test_the_tree_says_where_settings_come_from() -> None:
    found = "\n".join(lines(
        teacher={"model": "tiny", "training": TRAINING}, baseline=None,
        stages=[{"distill": {"training": TRAINING}}, {"prune": {"align": 4, "training": TRAINING}}, "quantize"],
    ))  # fmt: skip
    assert "data  synthetic: 32 training images of 3×16×16, 4 classes" in found
    assert "(the distill stage's, over all epochs)" in found
    assert re.search(r"losses  cross_entropy .* kd .*\(by default\)\n", found)
    assert found.count("(as in the distill stage)") == 2
    assert re.search(r"align 4\n", found)
    assert re.search(r"keep_macs 0.5.*\(by default\)", found)
    assert "weights int8, activations uint8  (of target onnxruntime)" in found
    assert re.search(r"── training epochs 2, batch_size 16, lr 0.01\n", found)
    assert "64 images seen" in found  # 32 images, all of them twice


def test_the_tree_of_data_that_are_not_there_knows_no_times() -> None:
    found = "\n".join(lines(data={"image_folder": {"path": "nowhere", "size": 16}}))
    assert "an unknown number of training images" in found
    assert "images unknown · time unknown" in found
    assert "time  unknown until the data are there" in found


# Completion


def test_names_are_completed_without_pytorch(here: Path) -> None:
    Path("p.yaml").write_text(yaml.safe_dump(BRIEF | {"teacher": "tiny", "stages": ["distill", {"prune": {}}]}))
    Path("photos").mkdir()
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent), "_COMPRESS_COMPLETE": "complete_bash"}
    words = {"COMP_WORDS": "compress run p", "COMP_CWORD": "2"}
    code = (
        "import sys; sys.argv = ['compress']\nfrom compress.cli import main\n"
        "try: main()\nfinally: print('heavy:', sorted({'torch', 'onnxruntime', 'numpy'} & set(sys.modules)))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], env=environment | words, capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == ["p.yaml", "photos/", "heavy:", "[]"]


def test_what_can_be_completed(here: Path) -> None:
    Path("p.yaml").write_text(yaml.safe_dump(BRIEF | {"teacher": "tiny", "stages": ["distill", {"prune": {}}]}))
    Path("reports/a").mkdir(parents=True)
    Path("reports/b").mkdir()
    Path("reports/a/report.json").touch()
    Path("net.onnx").touch()
    context = SimpleNamespace(params={"pipeline": Path("p.yaml")})
    ask: Callable[..., Iterator[str]] = completing.stages
    assert [*ask(context, "")] == ["teacher", "baseline", "distill", "prune"]
    assert [*ask(context, "p")] == ["prune"]
    assert [*ask(SimpleNamespace(params={"pipeline": Path("no.yaml")}), "")] == []
    assert [*ask(SimpleNamespace(params={}), "")] == ["baseline"]
    assert [*completing.runs("")] == ["reports/a", "reports/b/"]
    assert [*completing.models("n")] == ["net.onnx"]
    assert [*completing.pipelines("none/x")] == []
    assert [*completing.kinds("mo")] == ["models"]
    assert [name for name, _ in completing.targets("onnx")] == ["onnxruntime", "onnxruntime-avx2"]


def test_help_needs_neither_torch_nor_onnxruntime() -> None:
    code = (
        "import sys; sys.argv = ['compress', 'run', '--help']\nfrom compress.cli import main\n"
        "try: main()\nfinally: print('heavy:', sorted({'torch', 'onnxruntime', 'onnx', 'numpy'} & set(sys.modules)))"
    )
    root = Path(__file__).parent.parent
    found = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert "heavy: []" in found.stdout
    for option in ("--json", "--quiet", "--tensorboard", "--wandb"):
        assert option in found.stdout


def test_the_kinds_that_are_completed_are_those_that_there_are(here: Path) -> None:
    assert set(json.loads(called("ls", "--json")[1])) == set(completing.KINDS)


# TensorBoard and Weights & Biases


class Writer:
    """Stands in for TensorBoard's SummaryWriter."""

    written: list[tuple[str, str, float, int]] = []
    opened: list[tuple[str, int]] = []

    def __init__(self, folder: str, purge_step: int) -> None:
        self.folder = Path(folder).name
        Writer.opened.append((self.folder, purge_step))

    def add_scalar(self, name: str, value: float, step: int) -> None:
        Writer.written.append((self.folder, name, value, step))

    def flush(self) -> None: ...

    def close(self) -> None: ...


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> type[Writer]:
    """The stand-in, where the real one would be imported from."""
    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr("compress.showing.tensorboard.find_spec", lambda _: object())
    Writer.written, Writer.opened = [], []
    return Writer


def test_curves_for_tensorboard(board: type[Writer], here: Path) -> None:
    assert called("run", "p.yaml", "--tensorboard", "--quiet")[0] == 0
    assert board.opened == [("baseline", 1), ("0-train", 1)]
    steps = [(net, step) for net, name, _, step in board.written if name == "val_accuracy"]
    assert steps == [("baseline", 1), ("baseline", 2), ("0-train", 1), ("0-train", 2)]
    assert {"loss", "accuracy", "lr", "images_per_s"} <= {name for _, name, _, _ in board.written}
    (curve,) = Path("reports/p/stages").glob("0-train-*/train.jsonl")
    losses = [json.loads(line)["loss"] for line in curve.read_text().splitlines()]
    assert [value for net, name, value, _ in board.written if (net, name) == ("0-train", "loss")] == losses
    board.written.clear()
    assert called("run", "p.yaml", "--tensorboard", "--quiet")[0] == 0  # all is there
    assert board.written == []


def test_no_epoch_is_written_twice(board: type[Writer], tmp_path: Path) -> None:
    listener = TensorBoard(tmp_path)
    listener({"event": "stage", "stage": "train", "folder": "0-train-abc"})
    for event in (epoch(1, again=True), epoch(2, again=True), epoch(3), epoch(2), {"event": "step"}):
        listener(event)
    # An epoch that comes again after numbers went wrong takes the place of what was written from there on.
    assert board.opened == [("0-train", 3), ("0-train", 2)]
    assert [step for _, name, _, step in board.written if name == "loss"] == [3, 2]
    listener.close()
    listener.close()


def test_real_files_of_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    listener = TensorBoard(tmp_path)
    listener({"event": "stage", "stage": "train", "folder": "0-train-abc"})
    for event in (epoch(1), epoch(2, loss=0.5)):
        listener(event)
    listener.close()
    found = EventAccumulator(str(tmp_path / "tensorboard" / "0-train"))
    found.Reload()
    assert [(each.step, each.value) for each in found.Scalars("loss")] == [(1, 0.25), (2, 0.5)]


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A stand-in for the package."""
    log: list[dict[str, Any]] = []
    summary: dict[str, Any] = {}
    ended: list[int] = []
    begun: list[dict[str, Any]] = []
    metrics: list[str] = []
    run = SimpleNamespace(
        log=log.append, summary=summary, finish=lambda exit_code: ended.append(exit_code),
        define_metric=lambda name, step_metric: metrics.append(f"{name} by {step_metric}"),
    )  # fmt: skip

    def init(**given: Any) -> Any:
        begun.append(given)
        return run

    module = SimpleNamespace(init=init, logged=log, summary=summary, ended=ended, begun=begun, metrics=metrics)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_weights_and_biases(wandb: SimpleNamespace, here: Path) -> None:
    assert called("run", "p.yaml", "--wandb", "mine", "--quiet")[0] == 0
    (begun,) = wandb.begun
    assert (begun["project"], begun["name"], begun["dir"], begun["config"]["seed"]) == ("mine", "p", "reports/p", 3)
    assert wandb.metrics == ["baseline/* by baseline/epoch", "0-train/* by 0-train/epoch"]
    assert [each["0-train/epoch"] for each in wandb.logged if "0-train/epoch" in each] == [1, 2]
    report = json.loads(Path("reports/p/report.json").read_text())
    assert wandb.summary["train/top1"] == report["rows"][-1]["top1_onnx"]
    assert wandb.summary["verdict"] == report["verdict"]
    assert wandb.ended == [0]


def test_a_run_that_fails_ends_there_too(wandb: SimpleNamespace, tmp_path: Path) -> None:
    wanted = Wanted(quiet=True, wandb="mine")

    def fail() -> None:
        with watched(wanted, tmp_path, "p", {}) as watchers:
            watchers({"event": "started"})
            raise ResourceError("no space")

    with pytest.raises(ResourceError, match="no space"):
        fail()
    assert wandb.ended == [1]


def test_nothing_begins_before_the_folder_is_ours(wandb: SimpleNamespace, tmp_path: Path) -> None:
    WeightsAndBiases(tmp_path, "mine", "p", {}).close()
    assert wandb.begun == wandb.ended == []


def test_what_keeps_weights_and_biases_from_beginning(wandb: SimpleNamespace, tmp_path: Path) -> None:
    def refuse(**_: Any) -> None:
        raise RuntimeError("api_key not configured\n(no-tty)")

    wandb.init = refuse
    listener = WeightsAndBiases(tmp_path, "mine", "p", {})
    with pytest.raises(ResourceError, match=r"cannot begin: api_key not configured \(no-tty\). `wandb login` once"):
        listener({"event": "started"})


@pytest.mark.parametrize(
    ("words", "package"), [(["--tensorboard"], "tensorboard"), (["--wandb", "mine"], "wandb")], ids=str
)
def test_a_package_that_is_not_installed(
    words: list[str], package: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr("compress.showing.tensorboard.find_spec", lambda _: None)
    code, out, err = called("run", "p.yaml", *words)
    assert (code, out) == (2, "")
    said = f"{words[0]}: the package {package} is not installed; `pip install -e '.[{package}]'` does that"
    assert err == f"error: {said}\n"
    assert not Path("reports").exists()


def test_watching_changes_no_bit(board: type[Writer], tmp_path: Path) -> None:
    pipeline = tiny_pipeline(**BRIEF | {"teacher": None})
    plain = run(pipeline, tmp_path / "plain")
    with watched(Wanted(as_json=True, tensorboard=True), tmp_path / "seen", "p", {}, pieces(pipeline)) as watchers:
        seen = run(pipeline, tmp_path / "seen", emit=watchers)
    for one, other in zip(plain.report.rows, seen.report.rows, strict=True):
        assert (tmp_path / "plain" / one.onnx).read_bytes() == (tmp_path / "seen" / other.onnx).read_bytes()


def test_the_random_state_is_left_alone() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    pieces(tiny_pipeline())
    assert np.array_equal(before.numpy(), torch.get_rng_state().numpy())


def test_a_net_that_cannot_be_built_is_left_to_the_run_to_tell() -> None:
    small = {"synthetic": {"size": 8, "classes": 4, "samples": 32}}
    assert pieces(tiny_pipeline(student="squeezenet1_1", data=small)) == ()  # its pooling leaves no pixel
    assert pieces(tiny_pipeline(student="tiny", data=small)) != ()
