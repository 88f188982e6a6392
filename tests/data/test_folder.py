"""Folders of pictures: classes by folder or by table, and splits that are said or shared out."""

import csv

import numpy as np
import pytest
from PIL import Image

from jaxplain.data.folder import Files, read_folder
from jaxplain.data.labelled import checksum, single, split_rows


def paint(path, grey=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (10, 9), grey).save(path)
    return path


@pytest.fixture
def folders(tmp_path):
    for number in range(30):
        paint(tmp_path / ("rose", "tulip", "aster")[number % 3] / f"{number:02}.PNG", number)
    paint(tmp_path / ".hidden" / "x.png")
    (tmp_path / "rose" / "Thumbs.db").write_bytes(b"x")
    paint(tmp_path / "rose" / "._01.png")
    return tmp_path


def numbers(part):
    return [int(path.stem) for path in part.images.paths]


def test_a_folder_a_class(folders):
    data = read_folder(folders)
    assert data.class_names == ("aster", "rose", "tulip")
    assert [len(part.labels) for part in data[:3]] == [18, 6, 6]
    assert sorted(n for part in data[:3] for n in numbers(part)) == list(range(30))
    for part in data[:3]:
        for index, (number, label) in enumerate(zip(numbers(part), part.labels, strict=True)):
            assert ("rose", "tulip", "aster")[number % 3] == data.class_names[label]
            np.testing.assert_array_equal(part.images[index], np.full((9, 10, 3), number))
        assert set(part.labels.tolist()) == {0, 1, 2}
    again, other = read_folder(folders), read_folder(folders, seed=1)
    assert numbers(again.test) == numbers(data.test) != numbers(other.test)


def test_several_labels_a_picture(tmp_path):
    table = "File,split,labels\n"
    for number in range(20):
        paint(tmp_path / f"{number}.png", number)
        named = [name for name, every in (("two", 2), ("three", 3)) if number % every == 0]
        table += ",".join([f"{number}.png", "", *named, ""]) + "\n"
    (tmp_path / "labels.csv").write_text("\ufeff" + table, "utf-8")
    data = read_folder(tmp_path, multilabel=True)
    assert data.class_names == ("three", "two")
    for part in data[:3]:
        for number, label in zip(numbers(part), part.labels, strict=True):
            assert label.tolist() == [number % 3 == 0, number % 2 == 0]
        assert part.labels.any(0).all()
        assert part.labels.dtype == np.int8
    with pytest.raises(ValueError, match=r"11 of 20 pictures have not exactly one class \(.*has 2"):
        read_folder(tmp_path)


def test_a_table_of_rows_and_splits(tmp_path):
    for number in range(6):
        paint(tmp_path / "a" / f"{number}.png", number)
    rows = [
        f"{s},a/{n}.png,{'xy'[n % 2]}" for n, s in enumerate(["train"] * 2 + ["val", "test"] * 2)
    ]
    (tmp_path / "labels.csv").write_text(
        "\n".join(["split,file,label", *rows, "", "train,a/0.png,y"])
    )
    data = read_folder(tmp_path, multilabel=True)
    assert [numbers(part) for part in data[:3]] == [[0, 1], [2, 4], [3, 5]]
    assert data.train.labels.tolist() == [[1, 1], [0, 1]]


def test_splits_that_are_folders(folders):
    def moved(part):
        for name in ("rose", "tulip", "aster"):
            (folders / part).mkdir(exist_ok=True)
            (folders / name).rename(folders / part / name)

    moved("train")
    shared = read_folder(folders)
    assert [len(part.labels) for part in shared[:3]] == [18, 6, 6]
    for number in range(3):
        paint(folders / "test" / ("rose", "tulip", "aster")[number] / "90.png")
    data = read_folder(folders)
    assert [len(part.labels) for part in data[:3]] == [24, 6, 3]
    assert data.class_names == ("aster", "rose", "tulip")
    paint(folders / "val" / "rose" / "91.png")
    assert [len(part.labels) for part in read_folder(folders)[:3]] == [30, 1, 3]
    paint(folders / "iris" / "92.png")
    with pytest.raises(
        ValueError, match=r"holds splits \(test, train, val\), and beside them iris"
    ):
        read_folder(folders)


def table(folder, text):
    paint(folder / "a.png")
    (folder / "labels.csv").write_text(text)


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("", ValueError, r"labels\.csv: the first row is ''; expected file,label"),
        ("name,label\na.png,x", ValueError, "the first row is 'name, label'"),
        ("file,label\n,x", ValueError, "row 2: no file is named"),
        (
            "file,label\n\na.png,x\nb.png,y\nc.png,y",
            FileNotFoundError,
            r"there: .*b\.png, .*c\.png",
        ),
        (
            "file,split,label\na.png,tran,x",
            ValueError,
            "row 2: unknown split 'tran'; nearest: train",
        ),
        ("file,split\na.png,train\na.png,test", ValueError, r"row 3: a\.png is in two splits"),
        ("file,label\na.png,x", ValueError, "too few classes to tell apart: x"),
        ("file,label", ValueError, "holds no pictures"),
        ('file,label\na.png,"x', ValueError, "is no table: unexpected end of data"),
        (f"file,label\na.png,{'x' * 200_000}", ValueError, "is no table: field larger than"),
    ],
)
def test_what_is_wrong_with_a_table_is_said(tmp_path, text, error, said):
    table(tmp_path, text)
    with pytest.raises(error, match=said):
        read_folder(tmp_path)


HOSTILE = (
    "<script>alert(1)</script>".replace("/", "∕"), "'; rm -rf ~ #", "--help", "%s {0} $HOME",
    "a\u2028b\x85c", 'say "x", y', "ünï ☃",
)  # fmt: skip


def test_names_are_taken_as_they_are(tmp_path):
    for number, name in enumerate(HOSTILE):
        for copy in range(5):
            paint(tmp_path / "folders" / name / f"{name} {copy}.png", 10 * number)
    data = read_folder(tmp_path / "folders")
    assert data.class_names == tuple(sorted(HOSTILE))
    for part in data[:3]:
        for index, label in enumerate(part.labels):
            grey = 10 * HOSTILE.index(data.class_names[label])
            np.testing.assert_array_equal(part.images[index], np.full((9, 10, 3), grey))

    rows = [
        (str(path.relative_to(tmp_path)), path.parent.name)
        for path in sorted(tmp_path.rglob("*.png"))
    ]
    with (tmp_path / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("file", "label"), *rows])
    told = read_folder(tmp_path)
    assert told.class_names == data.class_names
    for part in told[:3]:
        for path, label in zip(part.images.paths, part.labels, strict=True):
            assert path.parent.name == told.class_names[label]


def test_a_class_without_pictures_is_named(folders):
    (folders / "empty").mkdir()
    (folders / "empty" / "notes.txt").write_text("none yet")
    with pytest.raises(ValueError, match="empty' holds no pictures; expected those of a class"):
        read_folder(folders)


def test_what_is_no_folder_of_pictures_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such folder: .*none"):
        read_folder(tmp_path / "none")
    with pytest.raises(NotADirectoryError, match=r"a\.png' is a file; expected a folder"):
        read_folder(paint(tmp_path / "a.png"))
    with pytest.raises(ValueError, match="holds no pictures; expected a folder a class"):
        read_folder(tmp_path)
    (tmp_path / "rose").mkdir()
    with pytest.raises(ValueError, match="rose' holds no pictures; expected those of a class"):
        read_folder(tmp_path)
    for number in range(2):
        paint(tmp_path / "rose" / f"{number}.png")
        paint(tmp_path / "tulip" / f"{number}.png")
    with pytest.raises(ValueError, match="no pictures for validation; at least three of a class"):
        read_folder(tmp_path)
    (tmp_path / "labels.csv").write_bytes(b"file,label\n\xff")
    with pytest.raises(ValueError, match="is not text in UTF-8"):
        read_folder(tmp_path)


def test_the_shares_of_many_pictures_are_as_asked_for():
    random = np.random.default_rng(0)
    labels = (random.random((3000, 5)) < [0.5, 0.3, 0.1, 0.02, 0.01]).astype(np.int8)
    for given in (labels, labels.argmax(1)):
        rows = split_rows(given)
        assert sorted(np.concatenate(list(rows.values()))) == list(range(3000))
        assert abs(len(rows["test"]) - 600) <= 5
        assert abs(len(rows["validation"]) - 450) <= 5
    test = labels[split_rows(labels)["test"]].mean(0)
    np.testing.assert_allclose(test, labels.mean(0), atol=0.03)
    only = split_rows(labels, validation=0.0)
    assert len(only["validation"]) == 0
    assert len(only["train"]) + len(only["test"]) == 3000


def test_uncounted_labels_are_no_class():
    assert single(np.array([[-1, 1], [1, -1]])).tolist() == [1, 0]
    with pytest.raises(ValueError, match=r"1 of 2 .*\(picture 1 has 0\)"):
        single(np.array([[-1, 1], [0, -1]]))


def test_a_checksum_knows_the_files_and_their_order(folders):
    paths = tuple(sorted((folders / "rose").glob("*.PNG")))
    one = checksum(Files(paths))
    assert one != checksum(Files(paths[::-1]))
    paths[3].write_bytes(paths[3].read_bytes() + b"x")
    assert one != checksum(Files(paths))
