"""Folders of images as people have them: what `init` says of one is what a run does with it."""

import os
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from compress.data.image_folder import ImageFolder
from compress.errors import DataError
from compress.files.image_files import folders, image_files
from compress.verbs import starting

TAKEN_APART = unicodedata.normalize("NFD", "Käse")  # as macOS writes file names
COMPOSED = unicodedata.normalize("NFC", "Käse")


def fill(root: Path, places: dict[str, int]) -> Path:
    """A folder with so many images in each place; the name of a file stands for one of it, which is no image."""
    for place, count in places.items():
        if Path(place).suffix:
            (root / place).parent.mkdir(parents=True, exist_ok=True)
            (root / place).write_bytes(b"x")
            continue
        (root / place).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.new("RGB", (9, 9), (len(place), 9 * i, 0)).save(root / place / f"{i}.JPG")
    return root


@dataclass(frozen=True)
class Case:
    """Places with images, the classes that are found, how many images are to learn from, and what is warned of."""

    places: dict[str, int]
    classes: tuple[str, ...]
    images: int
    warned: tuple[str, ...] = ()


TAKEN = {
    "sets": Case({"training_set/a": 5, "training_set/b": 5, "test_set/a": 2, "test_set/b": 2}, ("a", "b"), 10),
    "capitals": Case({"Training Images/a": 5, "Training Images/b": 5}, ("a", "b"), 10),
    "a train among vehicles": Case({"car": 4, "train": 4}, ("car", "train"), 8),
    "valid and invalid": Case({"invalid": 4, "valid": 4}, ("invalid", "valid"), 8),
    "taken apart": Case({f"train/{TAKEN_APART}": 5, "train/b": 5, f"test/{COMPOSED}": 2, "test/b": 2},
                        (TAKEN_APART, "b"), 10),
    "deeper": Case({"7 up/x/y": 3, "7 up": 1, "🥤/x": 3}, ("7 up", "🥤"), 7),
    "what systems leave": Case({"a": 4, "b": 4, "a/.DS_Store": 1, "a/Thumbs.db": 1, "a/._0.jpg": 1, "__MACOSX/a": 1,
                                ".thumbnails": 2, "b/desktop.ini": 1}, ("a", "b"), 8),
    "unread": Case({"a": 4, "b": 4, "a/1.HEIC": 1, "a/2.heic": 1, "b/notes.txt": 1}, ("a", "b"), 8,
                   ("Left out 2 images in formats that are not read: 1.HEIC and 1 more; convert HEIC to JPEG or PNG.",
                    "Left out, being no images by their suffix: notes.txt.")),
    "loose": Case({"": 2, "a": 4, "b": 4}, ("a", "b"), 8, ("Left out 2 images beside the class folders: 0.JPG and",)),
    "other splits": Case({"train/a": 5, "train/b": 5, "extra/a": 2}, ("a", "b"), 10,
                         ("Left out, being no split by their name: extra/; known: train, val and test.",)),
}  # fmt: skip


@pytest.mark.parametrize("case", TAKEN.values(), ids=TAKEN)
def test_a_run_learns_from_what_init_found(case: Case, tmp_path: Path) -> None:
    fill(tmp_path, case.places)
    images, warnings = starting.look(tmp_path)
    data = ImageFolder(path=tmp_path, size=8)(0)
    # Sorted as the folders are named; called by their composed names.
    assert data.class_names == tuple(images["train"]) == tuple(unicodedata.normalize("NFC", c) for c in case.classes)
    assert sum(map(len, images["train"].values())) == case.images
    assert sum(map(len, (data.train, data.val, data.test))) == sum(
        len(paths) for named in images.values() for paths in named.values()
    )
    assert list(data.warnings) == warnings
    assert len(warnings) == len(case.warned)
    for said, expected in zip(warnings, case.warned, strict=True):
        assert said.startswith(expected)


REFUSED = {
    "nothing": ({}, "has no class folders; put each class's images into its own, such as .*cat/1.jpg"),
    "no classes": ({"": 5}, "has no class folders; put each"),
    "one class": ({"a": 5}, "there is only one class, 'a'; a classifier needs two or more"),
    "wrapped": ({"photos/a": 3, "photos/b": 3}, r"holds one folder, photos/\. Did you mean '.*/photos'\?"),
    "wrapped twice": ({"x/y/train/a": 3, "x/y/test/a": 3}, r"holds one folder, x/\. Did you mean '.*/x/y'\?"),
    "a table": ({"images": 5, "labels.csv": 1}, r"has no folder for each class, and labels\.csv is not read; put each"),
    "boxes": ({"train/images": 3, "train/labels": 0}, "train has the layout of object detection or segm.* labels/ for"),
    "an empty class": ({"a": 3, "b": 0}, r"1 class folder has no images; add some, .*\n  .*/b$"),
    "all unread": ({"a/1.heic": 1, "b/2.heic": 1}, r"2 class folders have .*\n  .*/a: 1.heic cannot be read; convert"),
    "hidden answers": ({"train/a": 3, "train/b": 3, "test": 3}, "test has images but no class folders, so nobody can"),
    "case": ({"train/Cat": 3, "train/b": 3, "test/cat": 1, "test/b": 1},
             r"train/Cat has no counterpart in .*test but 'cat', differently written; every"),
    "no train": ({"test/a": 3, "test/b": 3}, "has test/ but no train/"),
    "two trains": ({"train/a": 3, "training_set/a": 3}, "has both train/ and training_set/; keep one of them"),
    "two encodings": ({TAKEN_APART: 3, COMPOSED: 3}, "has two folders called Käse, in different encodings"),
}  # fmt: skip


@pytest.mark.parametrize(("places", "said"), REFUSED.values(), ids=REFUSED)
def test_init_refuses_what_a_run_would(places: dict[str, int], said: str, tmp_path: Path) -> None:
    fill(tmp_path, places)
    for refused in (lambda: starting.images_of(str(tmp_path)), lambda: ImageFolder(path=tmp_path, size=8)(0)):
        with pytest.raises(DataError, match=said):
            refused()


@pytest.mark.parametrize(
    "places", [{"a": 2, "b": 2}, {"train/a": 1, "train/b": 1, "test/a": 1, "test/b": 1}], ids=["nothing", "no val"]
)
def test_too_few_images_to_split(places: dict[str, int], tmp_path: Path) -> None:
    fill(tmp_path, places)
    with pytest.raises(DataError, match=r"too few images to split some off for validation and test; give [32] or more"):
        starting.images_of(str(tmp_path))
    with pytest.raises(DataError, match="there are no validation images; give some, or three or more"):
        ImageFolder(path=tmp_path, size=8)(0)
    fill(tmp_path, {f"{place}/more": 2 for place in places if "test" not in place})
    assert starting.images_of(str(tmp_path)) == tmp_path
    assert len(ImageFolder(path=tmp_path, size=8)(0).val)


def test_a_folder_that_may_not_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, {"a": 3, "b": 3})
    listed = os.scandir

    def refused(path: str) -> object:
        if str(path).endswith("/b"):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(DataError, match="/b cannot be read: permission denied"):
        image_files(tmp_path / "b")
    assert [path.name for path in folders(tmp_path)] == ["a", "b"]


def test_where_a_relative_folder_was_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fill(tmp_path, {"photos/a": 3, "photos/b": 3})
    with pytest.raises(
        DataError, match=rf"there is no folder photo; .*, seen from {tmp_path}\. Did you mean 'photos'\?"
    ):
        ImageFolder(path=Path("photo"), size=8)(0)


def test_links_to_images_and_to_nothing(tmp_path: Path) -> None:
    fill(tmp_path, {"far": 4, "a": 3})
    (tmp_path / "all").mkdir()
    (tmp_path / "all/a").symlink_to(tmp_path / "a")
    (tmp_path / "all/b").symlink_to(tmp_path / "far")
    images, _ = starting.look(tmp_path / "all")
    assert {name: len(paths) for name, paths in images["train"].items()} == {"a": 3, "b": 4}
    (tmp_path / "a/dead.jpg").symlink_to(tmp_path / "nowhere.jpg")
    with pytest.raises(DataError, match=r"dead.jpg: no such file or directory\nor leave out with `damaged: skip` and"):
        ImageFolder(path=tmp_path / "all", size=8)(0)


@pytest.mark.parametrize(("good", "bad"), [(18, 2), (62, 29)])  # 0.29 * 100 is less than 29
@pytest.mark.parametrize("damaged", ["stop", "skip"])
def test_the_share_that_is_named_is_enough(damaged: str, good: int, bad: int, tmp_path: Path) -> None:
    fill(tmp_path, {"a": good, "b": 9})
    for i in range(bad):
        (tmp_path / f"a/x{i:02}.jpg").write_text("no image")
    dataset = ImageFolder(path=tmp_path, size=8)
    with pytest.raises(DataError, match="`max_damaged: ") as caught:
        dataset.model_copy(update={"damaged": damaged})(0)
    share = float(str(caught.value).partition("`max_damaged: ")[2].partition("`")[0])
    assert (bad - 1) / (good + 9 + bad) < share < bad / (good + 9 + bad) + 0.02
    data = dataset.model_copy(update={"damaged": "skip", "max_damaged": share})(0)
    assert sum(map(len, (data.train, data.val, data.test))) == good + 9


def test_a_table_of_labels_becomes_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(fill(tmp_path, {"images": 6}))
    rows = "".join(f"{i}.JPG,{label}\n" for i, label in enumerate(["cat", "dog äöü"] * 3))
    Path("labels.csv").write_text(f"file,label\n{rows}", encoding="utf-8")
    script = Path(__file__).parent.parent / "examples" / "sort_by_table.py"
    exec(compile(script.read_text(encoding="utf-8"), str(script), "exec"), {})
    images, _ = starting.look(Path("sorted"))
    assert {name: len(paths) for name, paths in images["train"].items()} == {"cat": 3, "dog äöü": 3}
