"""The pipeline file: what it may say, what is filled in, what is refused and in which words."""

import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import raw_pipeline

from compress.errors import ConfigError
from compress.losses import KD, CrossEntropy
from compress.pipeline import Pipeline, parsed, read
from compress.recipe import Training
from compress.yamlfile import MOST_BYTES, apply_override, parse_yaml

SHIPPED = sorted((Path(__file__).parent.parent / "pipelines").rglob("*.yaml"))
SHORTEST: dict[str, Any] = {"data": "digits", "student": "mobilenet_v2", "stages": ["prune"]}


def pipeline(**changes: Any) -> Pipeline:
    return parsed({"name": "test"} | SHORTEST | changes, "test.yaml")


def refusal(raw: dict[str, Any]) -> list[str]:
    """The lines of the error that a file gets, without the first."""
    with pytest.raises(ConfigError) as caught:
        parsed({"name": "test"} | raw, "test.yaml")
    first, *lines = str(caught.value).splitlines()
    assert first == "test.yaml is not a pipeline:"
    return [line.removeprefix("  ") for line in lines]


def written(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


# What is filled in


def test_the_shortest_file(tmp_path: Path) -> None:
    found = read(written(tmp_path / "short.yaml", "data: digits\nstudent: mobilenet_v2\nstages: [prune]\n"))
    assert (found.name, found.seed, found.teacher) == ("short", 0, ())
    assert [stage.name for stage in found.stages] == ["prune"]


def test_the_baseline_trains_as_long_as_all_stages_on_the_distill_schedule() -> None:
    distill = {"distill": {"training": {"epochs": 4, "lr": 0.02, "schedule": "step", "milestones": [2, 3]}}}
    rest = [{"prune": {"training": {"epochs": 3}}}, {"quantize": {"training": {"epochs": 1}}}]
    training = pipeline(teacher="resnet18", stages=[distill, *rest]).baseline.training
    assert training == Training(epochs=8, lr=0.02, schedule="step", milestones=(4, 6))


def test_without_a_distill_stage_the_baseline_takes_the_usual_schedule() -> None:
    stages = [{"prune": {"training": {"epochs": 3}}}, {"quantize": {"training": {"epochs": 2}}}]
    assert pipeline(stages=stages).baseline.training == Training(epochs=5)


def test_a_student_with_weights_is_its_own_baseline() -> None:
    student = {"mobilenet_v2": {"weights": "IMAGENET1K_V1"}}
    assert pipeline(student=student).baseline.training is None
    given = pipeline(student=student, baseline={"training": {"epochs": 2}})
    assert given.baseline.training == Training(epochs=2)


def test_a_teacher_is_trained_unless_it_has_weights() -> None:
    (trained,) = pipeline(teacher="resnet18").teacher
    (loaded,) = pipeline(teacher={"model": "resnet18", "weights": "r.pth"}).teacher
    (both,) = pipeline(teacher={"model": "resnet18", "weights": "r.pth", "training": {"epochs": 1}}).teacher
    assert trained.training == Training()
    assert loaded.training is None
    assert both.training == Training(epochs=1)


def test_teachers_may_be_none_one_or_a_list() -> None:
    listed = pipeline(teacher=["resnet18", {"model": "resnet34", "training": {"epochs": 3}}])
    assert listed.teacher_names == ("teacher", "teacher-2")
    assert [teacher.training.epochs for teacher in listed.teacher if teacher.training] == [30, 3]
    assert pipeline(teacher=["resnet18"]) == pipeline(teacher="resnet18")
    assert pipeline(teacher=[]) == pipeline(teacher=None) == pipeline()
    written = [yaml.safe_load(pipeline(teacher=each).as_yaml())["teacher"] for each in (None, ["resnet18"])]
    assert written == [None, yaml.safe_load(pipeline(teacher="resnet18").as_yaml())["teacher"]]


def test_weights_may_stand_beside_the_teachers_model_or_among_its_keys() -> None:
    beside = pipeline(teacher={"model": {"resnet18": {"stem": "imagenet"}}, "weights": "r.pth", "keep_head": True})
    among = pipeline(teacher={"model": {"resnet18": {"stem": "imagenet", "weights": "r.pth", "keep_head": True}}})
    assert beside == among
    (teacher,) = beside.teacher
    assert (teacher.model.weights, teacher.model.keep_head) == ("r.pth", True)


def test_recovery_learns_from_the_labels_alone_without_a_teacher() -> None:
    assert pipeline().stages[0].losses == (CrossEntropy(),)


def test_recovery_learns_from_the_teacher_as_the_distill_stage_does() -> None:
    distill = {"distill": {"losses": [{"kd": {"temperature": 2}}]}}
    found = pipeline(teacher="resnet18", stages=[distill, "prune", "quantize"])
    assert [stage.losses for stage in found.stages] == [(KD(temperature=2),)] * 3
    own = pipeline(teacher="resnet18", stages=["prune"])
    assert own.stages[0].losses == (CrossEntropy(weight=0.1), KD(temperature=4, weight=0.9))


def test_a_stage_fills_a_partly_given_training_with_its_own_defaults() -> None:
    found = pipeline(stages=[{"quantize": {"training": {"epochs": 2}}}])
    assert (found.stages[0].training.epochs, found.stages[0].training.lr) == (2, 0.0003)


@pytest.mark.parametrize(
    ("target", "weights", "activations"),
    [("onnxruntime", "int8", "uint8"), ("onnxruntime-avx2", "int7", "uint8"), ("tensorrt", "int8", "int8"),
     ("arm", "int8", "uint8"), ("mobile", "int8", "uint8")],
)  # fmt: skip
def test_the_target_says_how_numbers_are_written(target: str, weights: str, activations: str) -> None:
    stage: Any = pipeline(stages=["quantize"], export={"target": target}).stages[0]
    assert (stage.weights, stage.activations) == (weights, activations)


def test_what_a_quantize_stage_says_itself_stays() -> None:
    stage: Any = pipeline(stages=[{"quantize": {"weights": "int4"}}], export={"opset": 21}).stages[0]
    assert (stage.weights, stage.activations) == ("int4", "uint8")


def test_the_target_says_what_widths_are_multiples_of() -> None:
    def align(stage: Any, target: str) -> int | None:
        found: Any = pipeline(stages=[stage], export={"target": target}).stages[0]
        return found.align  # type: ignore[no-any-return]

    assert [align("prune", target) for target in ("onnxruntime", "arm")] == [None, 8]
    assert align({"prune": {"align": 16}}, "arm") == 16


def test_published_weights_bring_their_preprocessing() -> None:
    data: Any = pipeline(student={"mobilenet_v2": {"weights": "IMAGENET1K_V1"}}).data
    assert data.mean == (0.485, 0.456, 0.406)
    assert data.std == (0.229, 0.224, 0.225)
    assert (data.resize, data.interpolation) == ("crop", "bilinear")


def test_a_teachers_published_weights_bring_it_too() -> None:
    data: Any = pipeline(teacher={"model": "resnet18", "weights": "IMAGENET1K_V1"}).data
    assert data.mean == (0.485, 0.456, 0.406)


def test_published_preprocessing_never_overrides_what_the_file_gives() -> None:
    own = {"mean": 0.5, "resize": "squash", "interpolation": "nearest"}
    data: Any = pipeline(data={"digits": own}, student={"mobilenet_v2": {"weights": "IMAGENET1K_V1"}}).data
    assert (data.mean, data.resize, data.interpolation) == ((0.5,), "squash", "nearest")
    assert data.std == (0.229, 0.224, 0.225)


def test_published_preprocessing_of_grey_images_is_the_colours_mean() -> None:
    student = {"mobilenet_v2": {"weights": "IMAGENET1K_V1"}}
    data: Any = pipeline(data={"digits": {"channels": 1}}, student=student).data
    assert data.mean == (pytest.approx((0.485 + 0.456 + 0.406) / 3),)
    assert data.std == (pytest.approx((0.229 + 0.224 + 0.225) / 3),)


def test_weights_from_a_file_bring_no_preprocessing() -> None:
    data: Any = pipeline(student={"mobilenet_v2": {"weights": "net.pth"}}).data
    assert (data.mean, data.resize) == (None, "squash")


# Round trips


CONSTRUCTED: list[dict[str, Any]] = [
    SHORTEST,
    {**SHORTEST, "teacher": "resnet18", "stages": ["distill", "prune", "quantize"]},
    {**SHORTEST, "teacher": {"model": "resnet50", "weights": "IMAGENET1K_V2"}},
    {**SHORTEST, "student": {"mobilenet_v2": {"weights": "IMAGENET1K_V1", "keep_head": True, "width": 1.0}}},
    {**SHORTEST, "data": {"npz": {"path": "a b/ü.npz", "mean": 0.5, "std": [0.1], "class_names": [0, "no", "ü"]}}},
    {**SHORTEST, "stages": [{"distill": {"losses": ["cross_entropy"]}}, {"quantize": {"method": "ptq"}}]},
    {**SHORTEST, "budget": {"max_bytes": 1000, "max_accuracy_drop": 0.5}, "export": {"input": "uint8_nhwc"}, "seed": 7},
    {**SHORTEST, "export": {"target": "arm"}, "stages": ["prune", "quantize"]},
    {**SHORTEST, "export": {"target": "tensorrt"}, "stages": [{"quantize": {"weights": "int7"}}]},
    {**SHORTEST, "name": "a: 'b' #c", "student": "resnet50_cifar", "benchmark": {"threads": 2}},
    raw_pipeline(),
]


def again(first: Pipeline, tmp_path: Path) -> Pipeline:
    return read(written(tmp_path / "pipeline.yaml", first.as_yaml()))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_files_come_back_from_what_they_resolve_to(path: Path, tmp_path: Path) -> None:
    assert again(read(path), tmp_path) == read(path)


@pytest.mark.parametrize("raw", CONSTRUCTED)
def test_a_resolved_pipeline_comes_back_from_its_yaml(raw: dict[str, Any], tmp_path: Path) -> None:
    first = parsed({"name": "test"} | raw, "test.yaml")
    second = again(first, tmp_path)
    assert second == first
    assert second.key == first.key
    assert second.as_yaml() == first.as_yaml()


def test_a_changed_value_changes_the_key() -> None:
    assert pipeline().key != pipeline(seed=1).key


@pytest.mark.parametrize(
    ("name", "slug"),
    [("mobilenet", "mobilenet"), ("my net / v2", "my-net-v2"), ("../..", "run"), ("nul.x", "run-nul.x")],
)
def test_slug_is_a_folder_name(name: str, slug: str) -> None:
    assert pipeline(name=name).slug == slug


# What is refused


def test_all_errors_of_a_file_at_once() -> None:
    raw = {
        "data": {"digits": {"size": 4}},
        "teacher": {
            "model": {"resnet18": {"stm": "small", "weights": [1]}},
            "weigths": "r.pth",
            "training": {"epochs": -1},
        },
        "student": "mobilnet_v2",
        "stages": [{"distill": {"losses": [{"kd": {"temperature": 0}}]}}, "pruned"],
        "sead": 1,
    }
    assert refusal(raw) == [
        "sead: no such key. Did you mean 'seed'?",
        "data.digits.size: should be greater than or equal to 8, not 4",
        "teacher.weigths: no such key. Did you mean 'weights'?",
        "teacher.model.resnet18.stm: no such key. Did you mean 'stem'?",
        "teacher.model.resnet18.weights: should be a valid string",
        "teacher.training.epochs: should be greater than or equal to 0, not -1",
        "student: no 'mobilnet_v2' here. Did you mean 'mobilenet_v2'?",
        "stages.0.distill.losses.0.kd.temperature: should be greater than 0, not 0",
        "stages.1: no 'pruned' here. Did you mean 'prune'?",
    ]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"student": None}, "student: should be a name, or one `name: {key: value}`"),
    (
        {"data": {"digits": {"size": 16}, "fit": "crop", "size": 8}},
        "data: should be a name, or one `name: {key: value}`; did you mean `digits: {size: …}`?",
    ),
    ({"student": {"mobilenet_v2": {"wdith": 1}}}, "student.mobilenet_v2.wdith: no such key. Did you mean 'width'?"),
    ({"student": {"mobilenet_v2": 3}},
     "student.mobilenet_v2: should be a valid dictionary or instance of mobilenet_v2, not 3"),
    ({"student": {"mobilenet_v2": {"weights": {}}}}, "student.mobilenet_v2.weights: should be a valid string"),
    ({"teacher": {"weights": "r.pth"}}, "teacher.model: is missing"),
    ({"teacher": {"model": {"resnet18": {"weights": "a.pth"}}, "weights": "b.pth"}},
     "teacher: weights stands beside the model and among its keys; give it once"),
    ({"stages": []}, "stages: should name at least one stage, such as `- distill`"),
    ({"stages": "prune"}, "stages: should be a valid tuple, not 'prune'"),
    ({"stages": ["distill"]}, "stages.0.distill.losses: kd needs a teacher; add `teacher: {model: resnet50}`"),
    ({"stages": [{"distill": {"losses": []}}], "teacher": "resnet18"},
     "stages.0.distill.losses: should name at least one loss, such as `- kd`"),
    ({"stages": ["quantize", "prune"]},
     "stages.1.prune: prune after quantize cannot work: rounding is fixed to the layers; put quantize last"),
    ({"stages": ["quantize", "quantize"]},
     "stages.1.quantize: quantized twice cannot work: rounding is fixed to the layers; put quantize last"),
    ({"stages": [{"prune": {"keep_macs": 1.5}}]}, "stages.0.prune.keep_macs: should be less than 1, not 1.5"),
    ({"stages": [{"prune": {"training": {"epochs": -3}}}]},
     "stages.0.prune.training.epochs: should be greater than or equal to 0, not -3"),
    ({"stages": [{"prune": {"training": {"epochs": "many"}}}]},
     "stages.0.prune.training.epochs: should be a valid integer, unable to parse string as an integer, not 'many'"),
    ({"student": {"mobilenet_v2": {"weights": "IMAGENET1K_V3"}}},
     "student.mobilenet_v2.weights: torchvision has no weights 'IMAGENET1K_V3' for mobilenet_v2. "
     "Did you mean 'IMAGENET1K_V2'?"),
    ({"teacher": {"model": "resnet18", "weights": "net.bin"}},
     "teacher.model.resnet18.weights: torchvision has no weights 'net.bin' for resnet18 (a file should end in "
     ".safetensors, .pt, .pth, .onnx). Known: DEFAULT, IMAGENET1K_V1"),
    ({"student": {"mobilenet_v1": {"weights": "IMAGENET1K_V1"}}},
     "student.mobilenet_v1.weights: mobilenet_v1 is not one of torchvision's models, so there are no published weights "
     "'IMAGENET1K_V1' for it; give a file (.safetensors, .pt, .pth, .onnx)"),
    ({"name": ""}, "name: should have at least 1 character, not ''"),
    ({"seed": -1}, "seed: should be greater than or equal to 0, not -1"),
    ({"budget": {"max_byte": 1}}, "budget.max_byte: no such key. Did you mean 'max_bytes'?"),
    ({"export": {"opset": 11}}, "export.opset: should be greater than or equal to 18, not 11"),
    ({"export": {"opset": 22}}, "export.opset: should be less than or equal to 21, not 22"),
    ({"export": {"target": "coreml"}},
     "export.target: should be 'onnxruntime', 'onnxruntime-avx2', 'tensorrt', 'arm', 'mobile', 'float16' or 'float', "
     "not 'coreml'"),
    ({"export": {"target": "float16"}, "stages": ["quantize"]},
     "stages.0.quantize: target float16 takes no int8 file: CoreML runs no QuantizeLinear; leave the stage out or "
     "change export.target"),
    ({"export": {"target": "float"}, "stages": ["prune", "quantize"]},
     "stages.1.quantize: target float takes no int8 file: CoreML runs no QuantizeLinear; leave the stage out or "
     "change export.target"),
    ({"stages": [{"quantize": {"weights": "int4"}}]},
     "stages.0.quantize.weights: int4 needs opset 21, not 18; set export.opset: 21"),
    ({"export": {"target": "mobile", "opset": 21}, "stages": [{"quantize": {"weights": "int4"}}]},
     "stages.0.quantize.weights: target mobile takes int8 or int7, not int4: an .ort file stores them as 8 bits"),
    ({"export": {"target": "onnxruntime-avx2"}, "stages": [{"quantize": {"weights": "int8"}}]},
     "stages.0.quantize.weights: target onnxruntime-avx2 takes int7 or int4, not int8: without VNNI, sums of two "
     "products of 8 bits overflow 16 bits"),
    ({"export": {"target": "tensorrt"}, "stages": [{"quantize": {"activations": "uint8"}}]},
     "stages.0.quantize.activations: target tensorrt takes int8, not uint8: TensorRT takes no zero points other "
     "than 0"),
    ({"export": {"target": "tensorrt"}, "stages": [{"quantize": {"ranges": "dynamic"}}]},
     "stages.0.quantize.ranges: target tensorrt takes static, not dynamic: TensorRT wants activation scales that stand "
     "in the file"),
    ({"stages": [{"quantize": {"activations": "int8"}}]},
     "stages.0.quantize.activations: target onnxruntime takes uint8, not int8: ONNX Runtime has fast kernels for uint8 "
     "activations only"),
    ({"export": {"target": "arm"}, "stages": [{"prune": {"align": 12}}]},
     "stages.0.prune.align: target arm wants multiples of 8, not 12"),
    ({"export": {"target": "mobile"}, "benchmark": {"batch": 4}},
     "benchmark.batch: files for target mobile take 1 image at a time, not 4"),
    ({"stages": [{"quantize": {"method": "ptq", "learn": "lsq"}}]},
     "stages.0.quantize.learn: lsq learns scales in training, and method ptq trains nothing; set method: qat"),
    ({"stages": [{"quantize": {"ranges": "dynamic", "learn": "pact"}}]},
     "stages.0.quantize.learn: pact learns ranges, and dynamic ones are not kept; leave out one of the two"),
    ({"data": {"synthetic": {"classes": 10, "samples": 5}}},
     "data.synthetic: samples (5) should be at least classes (10): each split has all"),
    ({"teacher": ["resnet18", {"model": "resnet18", "view": {"sise": 32}}]},
     "teacher.1.view.sise: no such key. Did you mean 'size'?"),
    ({"teacher": ["resnet18", "resnet81"]}, "teacher.1.model: no 'resnet81' here. Did you mean 'resnet18'?"),
    ({"teacher": ["resnet18", {"model": "resnet34", "weights": "IMAGENET1K_V9"}]},
     "teacher.1.model.resnet34.weights: torchvision has no weights 'IMAGENET1K_V9' for resnet34. "
     "Did you mean 'IMAGENET1K_V1'?"),
    ({"teacher": {"model": "resnet18", "view": {"size": 4}}},
     "teacher.view.size: should be greater than or equal to 8, not 4"),
    ({"teacher": {"model": "resnet18", "view": {"channels": 2}}}, "teacher.view.channels: should be 1 or 3, not 2"),
    ({"unlabelled": {}}, "unlabelled.path: is missing"),
    ({"unlabelled": {"folder": "x", "path": "y"}}, "unlabelled.folder: no such key. Known: damaged, max_damaged, path"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "line"), REFUSED, ids=[line[:40] for _, line in REFUSED])
def test_refused(changes: dict[str, Any], line: str) -> None:
    assert refusal(SHORTEST | changes) == [line]


def test_missing_keys_are_named() -> None:
    assert refusal({}) == ["data: is missing", "student: is missing", "stages: is missing"]


def test_contradictions_come_together() -> None:
    raw = SHORTEST | {"stages": ["distill", "quantize", "prune"], "student": {"resnet18": {"weights": "nothing"}}}
    assert len(refusal(raw)) == 3


# Overrides


def overridden(text: str, *overrides: str) -> Any:
    raw = yaml.safe_load(text)
    for override in overrides:
        apply_override(raw, override)
    return raw


@pytest.mark.parametrize(
    ("text", "override", "wanted"),
    [
        ("seed: 0", "seed=3", {"seed": 3}),
        ("{}", "data.digits.size=16", {"data": {"digits": {"size": 16}}}),
        ("data: digits", "data.digits.size=16", {"data": {"digits": {"size": 16}}}),
        ("data: {digits: null}", "data.digits.size=16", {"data": {"digits": {"size": 16}}}),
        ("student: a", "student=b", {"student": "b"}),
        ("student: a", "student={b: {width: 0.5}}", {"student": {"b": {"width": 0.5}}}),
        ("stages: [distill, prune]", "stages.prune.keep_macs=0.4",
         {"stages": ["distill", {"prune": {"keep_macs": 0.4}}]}),
        ("stages: [distill, prune]", "stages.1.prune.keep_macs=0.4",
         {"stages": ["distill", {"prune": {"keep_macs": 0.4}}]}),
        ("stages: [{prune: {align: 8}}]", "stages.prune.training.epochs=0",
         {"stages": [{"prune": {"align": 8, "training": {"epochs": 0}}}]}),
        ("stages: [a, b]", "stages.1=c", {"stages": ["a", "c"]}),
        ("stages: [a, b]", "stages.b={x: 1}", {"stages": ["a", {"b": {"x": 1}}]}),
        ("stages: [d: {losses: [k, {c: {w: 1}}]}]", "stages.d.losses.c.w=2",
         {"stages": [{"d": {"losses": ["k", {"c": {"w": 2}}]}}]}),
        ("stages: [d: {losses: [k, {c: {w: 1}}]}]", "stages.d.losses.k.t=2",
         {"stages": [{"d": {"losses": [{"k": {"t": 2}}, {"c": {"w": 1}}]}}]}),
        ("a: 1", "a=", {"a": None}),
        ("a: 1", "a=x=y", {"a": "x=y"}),
        ("a: 1", "a=[1, 2]", {"a": [1, 2]}),
    ],
)  # fmt: skip
def test_override(text: str, override: str, wanted: Any) -> None:
    assert overridden(text, override) == wanted


def test_an_override_does_not_reach_through_an_alias() -> None:
    raw = overridden("{a: &t {epochs: 1}, b: *t}", "a.epochs=2")
    assert raw == {"a": {"epochs": 2}, "b": {"epochs": 1}}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed", "--set seed: should read path.to.key=value"),
        ("=3", "--set =3: should read path.to.key=value"),
        ("a..b=3", "--set a..b=3: should read path.to.key=value"),
        ("seed={", "--set seed={: the value is not valid YAML"),
        ("seed=!!int ''", "--set seed=!!int '': the value is not valid YAML"),
        ("seed=!!python/name:os.system", "--set seed=!!python/name:os.system: the value is not valid YAML"),
        ("seed.x=3", "--set seed.x=3: seed is 0, which has no x"),
        ("stages.2.prune.align=8", "--set stages.2.prune.align=8: there are 2 items, counted from 0, and no 2"),
        ("stages.quantize=1",
         "--set stages.quantize=1: no item is called 'quantize' (there are: prune, prune); give a position from 0"),
        ("stages.prune.align=8",
         "--set stages.prune.align=8: 2 items are called 'prune' (there are: prune, prune); give a position from 0"),
        ("stages.0.distill.x=8", "--set stages.0.distill.x=8: 0 is 'prune', which has no distill"),
    ],
)  # fmt: skip
def test_override_refused(override: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        overridden("{seed: 0, stages: [prune, prune: {align: 4}]}", override)
    assert str(caught.value) == said


# YAML


def test_rates_in_scientific_notation_are_numbers(tmp_path: Path) -> None:
    text = "{data: digits, student: mobilenet_v2, stages: [prune: {training: {lr: 1e-3, weight_decay: 5E-4}}]}"
    training = read(written(tmp_path / "p.yaml", text)).stages[0].training
    assert (training.lr, training.weight_decay) == (0.001, 0.0005)


def test_aliases_and_merges_work(tmp_path: Path) -> None:
    text = (
        "data: digits\nstudent: mobilenet_v2\nteacher: {model: resnet18, training: &t {epochs: 3, lr: 0.5}}\n"
        "stages:\n- distill: {training: *t}\n- prune: {training: {<<: *t, epochs: 1}}\n"
    )
    distill, prune = read(written(tmp_path / "p.yaml", text)).stages
    assert (distill.training.epochs, distill.training.lr) == (3, 0.5)
    assert (prune.training.epochs, prune.training.lr) == (1, 0.5)


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    assert parse_yaml(written(tmp_path / "p.yaml", b"\xef\xbb\xbfseed: 1")) == {"seed": 1}


ODD: list[tuple[str | bytes, str]] = [
    ("", "p.yaml is not a pipeline: it should be a mapping with the keys data, student and stages"),
    ("# nothing\n", "it should be a mapping"),
    ("- data\n- student\n", "it should be a mapping"),
    ("just words", "it should be a mapping"),
    ("data: [1, 2\nstudent: x", "is not valid YAML: while parsing a flow sequence"),
    ("a: b: c", "is not valid YAML: mapping values are not allowed here"),
    ("data:\n\tsize: 1", "is not valid YAML: while scanning"),
    ("seed: 1\ndata: digits\nseed: 2\n", "is not valid YAML: the key 'seed' stands here twice in"),
    ("data: {digits: {size: 8, size: 16}}", "the key 'size' stands here twice"),
    ("{[1, 2]: 3}", "is not valid YAML: a key should be a word"),
    ("a: *nowhere", "is not valid YAML: found undefined alias"),
    ("a: !!python/object/apply:os.system [true]", "could not determine a constructor"),
    ("a: !!int ''", "is not valid YAML"),
    ("a: !!bool maybe", "is not valid YAML"),
    ("a: \x00", "is not valid YAML: unacceptable character"),
    ("[" * 20_000, "is not valid YAML: it is nested too deep"),
    ("".join(f"{' ' * i}a:\n" for i in range(500)), "is not valid YAML: it is nested too deep"),
    (b"\x89PNG\r\n\x1a\n" + bytes(100), "is not UTF-8 text (invalid start byte at byte 0)"),
    ("&a [*a]", "what an anchor (&) names holds an alias (*) of itself"),
    ("a: &a {a: *a}\ndata: *a\nstudent: *a\nstages: *a", "what an anchor (&) names holds an alias (*) of itself"),
    ("x" * 400_000, "it should be a mapping"),
    ("{" + "é" * 400_000, "p.yaml is larger than 500,000 bytes, which no pipeline file is"),
    (bytes(range(32, 127)) * 11_000, f"is larger than {MOST_BYTES:,} bytes"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "said"), ODD, ids=range(len(ODD)))
def test_odd_yaml(content: str | bytes, said: str, tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        read(written(tmp_path / "p.yaml", content))
    assert said in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert time.monotonic() - began < 5


def test_aliases_that_multiply_are_not_expanded(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    text = "\n".join([*lines, "data: {digits: {class_names: *a11}}", "student: mobilenet_v2", "stages: *a11"])
    with pytest.raises(ConfigError, match="it holds more than 10,000 values, aliases counted each time"):
        read(written(tmp_path / "p.yaml", text))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no pipeline file .*nothing.yaml; `compress init` writes one"):
        read(tmp_path / "nothing.yaml")


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory; give a YAML file"):
        read(tmp_path)


def test_calibration_alone_adds_no_epochs_to_the_baseline() -> None:
    training = {"epochs": 3}
    stages = [{"distill": {"training": training}}, {"quantize": {"method": "ptq"}}]
    raw = {"name": "x", "data": "digits", "teacher": "resnet18", "student": "mobilenet_v2", "stages": stages}
    pipeline = parsed(raw, "x.yaml")
    assert pipeline.stages[1].training.epochs == 0
    assert pipeline.baseline.training is not None
    assert pipeline.baseline.training.epochs == 3
