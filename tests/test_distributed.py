import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import two_processes
from torch import nn
from two_processes import COUNTS, MASKS, NORMS, RAISED, images, norm, spreading, values

import compress.distributed.joining as joining
from compress.console import explain
from compress.distributed.group import Group, as_current, current
from compress.distributed.joining import start
from compress.distributed.launch import NEEDED, Launch, this_launch
from compress.distributed.slices import gather, once, own
from compress.distributed.synchronized import synchronized
from compress.edits.quantizers import dynamically_rounded
from compress.errors import ConfigError, DataError, ResourceError
from compress.files import durable
from compress.training.loop import Loop, Progress

CPU = torch.device("cpu")
SCRIPT = Path(two_processes.__file__)
MOST_S = 60  # after a process was killed
WHOLE = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return str(server.getsockname()[1])


@pytest.fixture(scope="module")
def left(tmp_path_factory) -> list[dict]:
    """What two processes found, of which the second was killed in the end: arrays of each, then words of each."""
    folder = tmp_path_factory.mktemp("two")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    found = subprocess.run([*torchrun, SCRIPT, folder, free_port()], capture_output=True, text=True, timeout=200)
    assert (folder / "killed").exists(), found.stderr
    took = time.time() - float((folder / "killed").read_text())
    assert found.returncode == 1
    assert found.stdout == ""  # the library says nothing of its own
    arrays = [dict(np.load(folder / f"{rank}.npz")) for rank in range(2)]
    return [*arrays, *(json.loads((folder / f"{rank}.json").read_text()) | {"took": took} for rank in range(2))]


def parts(left, name: str) -> np.ndarray:
    """The rows of both processes."""
    return np.concatenate([left[rank][name] for rank in range(2)])


def both(left, name: str) -> np.ndarray:
    """What the two processes have alike, to the bit."""
    np.testing.assert_array_equal(left[0][name], left[1][name])
    return left[0][name]


@pytest.mark.parametrize("kind", ["rows", "maps"])
@pytest.mark.parametrize("count", COUNTS)
def test_gathered_rows_are_those_of_all_and_each_gets_its_own_gradient(left, kind, count):
    whole = values(count, *((2,) if kind == "rows" else (2, 3, 3))).numpy()
    np.testing.assert_array_equal(both(left, f"gather/{kind}/{count}"), whole)
    flat = whole.reshape(count, -1)
    expected = 3 * flat**2 + 2 * np.cos(flat @ flat.T) @ flat
    np.testing.assert_allclose(parts(left, f"gather/{kind}/{count}/gradient"), expected.reshape(whole.shape), 1e-12)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", NORMS)
def test_batch_norm_is_that_of_the_whole_batch(left, name, dtype, count):
    _, shape, mean = NORMS[name]
    layer = norm(name, torch.float64)
    inputs = images(count, shape, mean, dtype).double().requires_grad_()
    for _ in range(2):
        inputs.grad = None
        layer.zero_grad()
        given = layer(inputs)
        (given * values(count, *shape, seed=99)).sum().backward()
    key = f"norm/{name}/{dtype}/{count}/"
    # In float32 a mean of 1,000 leaves a spread of 1 with four digits.
    exact = {"rtol": 1e-9, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-6 * max(mean, 10)}
    np.testing.assert_allclose(parts(left, f"{key}given"), given.detach(), **exact)
    np.testing.assert_allclose(parts(left, f"{key}gradient"), inputs.grad, **exact)
    for parameter, value in layer.named_parameters():
        np.testing.assert_allclose(both(left, key + parameter), value.grad, **exact)
    for buffer, value in layer.named_buffers():
        np.testing.assert_allclose(both(left, key + buffer), value, **exact)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("layout", ["maps", "channels_last"])
@pytest.mark.parametrize("name", MASKS)
def test_masks_are_those_of_a_single_process(left, name, layout, count):
    torch.manual_seed(7)
    whole = images(count, (4, 3, 3), 1.0, torch.float32)
    if layout == "channels_last":
        whole = whole.contiguous(memory_format=torch.channels_last)
    given = MASKS[name]().train()(whole.clone(memory_format=torch.preserve_format))
    assert 0 < int((given == 0).sum()) < given.numel()
    np.testing.assert_array_equal(parts(left, f"mask/{name}/{layout}/{count}"), given)
    np.testing.assert_array_equal(both(left, f"mask/{name}/{layout}/{count}/next"), torch.rand(3))


@pytest.mark.parametrize("count", COUNTS)
def test_quantizers_follow_the_whole_batch(left, count):
    quantizer = two_processes.following_quantizer()
    for step in range(3):
        quantizer(spreading(count, step))
    np.testing.assert_array_equal(both(left, f"range/{count}"), [float(quantizer.scale), int(quantizer.zero_point)])
    np.testing.assert_array_equal(parts(left, f"dynamic/{count}"), dynamically_rounded(spreading(count, 0)))


def test_extremes_along_a_dimension_are_left_alone(left):
    assert [left[rank]["columns"].tolist() for rank in range(2)] == [[3, 5], [13, 15]]


def test_gradients_are_summed_those_that_all_have_averaged(left):
    np.testing.assert_array_equal(both(left, "sum/0"), 3 * np.arange(6.0).reshape(3, 2).T)
    for i, expected in ((1, [30.0] * 4), (2, [300.0]), (3, [1500.0] * 2)):
        np.testing.assert_array_equal(both(left, f"sum/{i}"), expected)


def test_a_penalty_counts_once(left):
    assert both(left, "once") == 3
    np.testing.assert_array_equal(both(left, "once/gradient"), [3, -3])


def test_random_states_and_weights_are_those_of_the_first(left):
    torch.manual_seed(0)
    np.testing.assert_array_equal(both(left, "aligned"), torch.rand(2))
    np.testing.assert_array_equal(both(left, "copied/0"), np.zeros((2, 2)))
    assert both(left, "copied/1") == 0


@pytest.mark.parametrize("train", [two_processes.trained, two_processes.rounding_trained])
def test_training_gives_the_weights_of_a_single_process(left, train):
    alone, name = train(), {"trained": "trained", "rounding_trained": "rounding"}[train.__name__]
    assert {key for key in left[0] if key.startswith(f"{name}/")} == {f"{name}/{key}" for key in alone}
    for key, value in alone.items():
        np.testing.assert_allclose(both(left, f"{name}/{key}"), value.detach(), rtol=1e-5, atol=1e-5, err_msg=key)


def test_the_first_decides(left):
    said = left[2]["said"]
    assert said["agreed"] == [[False, True, True], []]
    assert said["broadcast"] == {"a": [1, 0.1, float("inf")], "ü": None}
    assert said["empty"] == ""
    assert said["first"] == {"rank": 0, "size": 1}  # inside, it is alone: others could not answer


def test_what_the_first_leaves_the_others_find(left):
    assert [left[rank]["said"]["in turn"] for rank in (2, 3)] == [False, True]


@pytest.mark.parametrize("name", RAISED)
def test_what_the_first_raises_ends_all_with_one_exit_code(left, name):
    error = RAISED[name]
    code = error.code if isinstance(error, SystemExit) else explain(error)[1]
    first, second = (said["said"][name] for said in left[2:])
    assert first[2] == second[2] == code


def test_processes_that_differ_are_named(left):
    kind, words, code = left[2]["said"]["same"]
    assert (kind, code) == ("ModelError", 4)
    assert words.startswith("process 1 has another pruned net than process 0")


def test_a_batch_of_fewer_images_than_processes_is_refused(left):
    kind, words, code = left[2]["said"]["rows"]
    assert (kind, code) == ("ConfigError", 2)
    assert words.startswith("a batch of 1 images cannot be shared out among 2 processes: start at most 1")


def test_rows_that_are_not_a_process_s_own_are_refused(left):
    assert left[2]["said"]["foreign"][:2] == ["ValueError", "1 rows were given, and rows 0 to 2 are this process's"]


def test_an_error_in_one_process_ends_the_others_with_its_words(left):
    assert left[2]["words"][0] == ["DataError", "process 1 of 2: 0001.png is damaged"]


def test_a_killed_process_ends_the_others(left):
    kind, words = left[2]["words"][1]
    assert kind == "Lost"
    assert words.startswith("process 0 of 2 lost another one while exchanging values: it was ended from outside")
    assert "/" not in words
    assert left[2]["waited"] < MOST_S / 6
    assert left[2]["took"] < MOST_S  # torchrun


@pytest.fixture
def pair() -> list[Group]:
    """Two groups' last words to each other."""
    store = torch.distributed.HashStore()
    return [Group(rank, 2, store=store) for rank in range(2)]


@pytest.mark.parametrize(
    ("word", "raised", "said"),
    [(DataError("x.png"), DataError, "process 1 of 2: x.png"), (SystemExit(143), SystemExit, "130"),
     (None, SystemExit, "130")],
)  # fmt: skip
def test_a_signal_that_came_because_of_an_error_gives_way_to_the_error(monkeypatch, pair, word, raised, said):
    monkeypatch.setattr(joining, "this_launch", lambda device: Launch(0, 2, device))
    monkeypatch.setattr(joining, "_joined", lambda launch: pair[0])
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)
    if word is not None:
        pair[1].leave_word(word)
    with pytest.raises(raised, match=said), start(CPU):
        raise SystemExit(130)


@pytest.mark.parametrize(("word", "least", "most"), [(None, 0.3, 2.0), (DataError("x"), 0.0, 0.2)])
def test_the_first_has_a_while_to_say_why_it_ends(monkeypatch, pair, word, least, most):
    monkeypatch.setattr("compress.distributed.group.LAST_S", 0.3)
    if word is not None:
        pair[0].leave_word(word)
    began = time.monotonic()
    for group in reversed(pair):
        group.let_first_end()
    assert least <= time.monotonic() - began < most


def test_memory_that_gives_out_in_one_of_several_ends_them():
    loop = SimpleNamespace(progress=Progress("prune"))
    words = "stage prune: out of memory with a batch of 64 images shared out among 3 processes. Lower"
    with as_current(Group(1, 3)), pytest.raises(ResourceError, match=words):
        Loop.halve(loop, 64)


def test_a_process_that_only_reads_changes_nothing(tmp_path):
    kept = tmp_path / "kept"
    kept.write_text("as it was")
    with durable.reading_only():
        durable.write(kept, "new")
        durable.append(kept, "more")
        durable.remove(kept)
        durable.rename(tmp_path, tmp_path / "other")
        assert durable.folder(tmp_path / "folder") == tmp_path / "folder"
        with durable.writing(tmp_path / "file") as file:
            file.write(b"nothing")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"kept": "as it was"}
    durable.remove(kept)
    assert not kept.exists()


def test_a_single_process_is_left_as_it_is():
    rows = torch.ones(3, 2, requires_grad=True)
    layer = nn.BatchNorm1d(2)
    assert current() == Group(0, 1, CPU)
    assert current().leads
    assert gather(rows, 3) is rows
    assert once(rows) is rows
    assert own(rows) is rows
    with synchronized(3), start(CPU) as group:
        assert group is current()
        assert layer(rows).shape == rows.shape
        group.sum_gradients([rows])
        group.copy_first([rows])
        group.same("net", "x")
        group.barrier()
        assert group.agreed(True, False) == (True, False)
        assert group.broadcast((1, 2)) == (1, 2)
        with pytest.raises(ZeroDivisionError):
            group.first(lambda: 1 // 0)
    assert current() is not group


@pytest.mark.parametrize("count", [4, 5, 9])
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_shares_differ_by_at_most_one_row(count, size):
    shares = [Group(rank, size).rows(count) for rank in range(size)]
    assert [row for share in shares for row in range(count)[share]] == [*range(count)]
    assert max(s.stop - s.start for s in shares) - min(s.stop - s.start for s in shares) <= 1


def test_the_group_is_put_back_after_an_error():
    before = current()
    with pytest.raises(ZeroDivisionError), as_current(Group(1, 2)):
        assert current().size == 1 // 0
    assert current() is before


@pytest.mark.parametrize("environ", [{}, {"WORLD_SIZE": "1"}, {"RANK": "0", "WORLD_SIZE": "1"}, {"MASTER_ADDR": "x"}])
def test_a_process_that_was_started_alone_is_alone(environ):
    launch = this_launch(CPU, environ)
    assert (launch.rank, launch.size) == (0, 1)


def test_torchruns_variables_say_which_process_this_is():
    launch = this_launch(CPU, WHOLE)
    assert (launch.rank, launch.size, launch.device, launch.address) == (1, 4, CPU, "127.0.0.1:29500")


WRONG = {
    **{f"no {name}": ({name: None}, f"{name} not; start with `torchrun") for name in NEEDED},
    "empty": ({"MASTER_ADDR": ""}, "MASTER_ADDR not;"),
    "word": ({"RANK": "one"}, "RANK is 'one' and should be a whole number from 0 to 3;"),
    "rank": ({"RANK": "4"}, "RANK is '4' and should be a whole number from 0 to 3;"),
    "negative": ({"LOCAL_RANK": "-1"}, "LOCAL_RANK is '-1' and should be a whole number from 0 to 1;"),
    "size": ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0' and should be a whole number from 1 to 65536;"),
    "port": ({"MASTER_PORT": "70000"}, "MASTER_PORT is '70000' and should be a whole number from 1 to 65535;"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_half_set_environment_is_refused(name):
    change, words = WRONG[name]
    environ = {key: value for key, value in (WHOLE | change).items() if value is not None}
    with pytest.raises(ConfigError) as caught:
        this_launch(CPU, environ)
    assert words in str(caught.value)


def test_fewer_gpus_than_processes_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="LOCAL_RANK is 1, and there are 1 GPUs here: start at most"):
        this_launch(torch.device("cuda"), WHOLE)
    assert this_launch(torch.device("cuda"), WHOLE | {"LOCAL_RANK": "0"}).device == torch.device("cuda", 0)


def test_a_group_of_the_callers_own_is_in_the_way(monkeypatch):
    for name, value in WHOLE.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    with pytest.raises(ConfigError, match=r"has a torch\.distributed process group already"), start(CPU):
        pass


def test_others_that_cannot_be_met_are_said(monkeypatch):
    monkeypatch.setattr("compress.distributed.joining.ANSWER_S", 0.2)
    for name, value in (WHOLE | {"MASTER_PORT": free_port()}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ResourceError, match=r"process 1 of 4 did not meet the others at 127\.0\.0\.1:"), start(CPU):
        pass
