"""Annotations of ILSVRC, written as the challenge writes them."""

import numpy as np
import pytest

from jaxplain.data.ilsvrc import Ilsvrc, read_boxes, seen_boxes
from jaxplain.preprocessing import Preprocessing

SYNSETS = ("n01440764", "n02391049")


def annotation(*objects):
    """An annotation with (synset, (xmin, ymin, xmax, ymax)) objects."""
    inner = "".join(
        f"<object><name>{name}</name><pose>Unspecified</pose><bndbox><xmin>{x0}</xmin>"
        f"<ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
        for name, (x0, y0, x1, y1) in objects
    )
    return f"<annotation><size><width>20</width><height>10</height></size>{inner}</annotation>"


@pytest.fixture
def folder(tmp_path):
    text = annotation(
        (SYNSETS[1], (3, 2, 7, 5)), (SYNSETS[0], (0, 0, 1, 1)), (SYNSETS[1], (9, 0, 19, 9))
    )
    (tmp_path / "ILSVRC2012_val_00000001.xml").write_text(text)
    return tmp_path


def example(name="ILSVRC2012_val_00000001.JPEG", label=1):
    return {"image": np.zeros((10, 20, 3), np.uint8), "label": label, "file_name": name}


def test_a_picture_comes_with_the_boxes_of_its_class(folder):
    data = Ilsvrc([example()], folder, SYNSETS)
    (found,) = data
    assert len(data) == 1
    assert found.label == 1
    assert found.picture.shape == (10, 20, 3)
    # The last pixel is inside: bottom and right are one further.
    assert found.boxes.tolist() == [[2, 3, 6, 8], [0, 9, 10, 20]]


def test_names_may_be_bytes_and_never_lead_out_of_the_folder(folder):
    inner = folder / "val"
    inner.mkdir()
    (folder / "ILSVRC2012_val_00000001.xml").rename(inner / "ILSVRC2012_val_00000001.xml")
    (folder / "secret.xml").write_text(annotation((SYNSETS[1], (0, 0, 1, 1))))
    data = Ilsvrc(
        [example(b"val/ILSVRC2012_val_00000001.JPEG"), example("../secret.JPEG")], inner, SYNSETS
    )
    assert len(data[0].boxes) == 2
    with pytest.raises(FileNotFoundError):
        data[1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation><object>", "no annotation of ILSVRC"),
        ("<annotation><object><name>n02391049</name></object></annotation>", "ymin is missing"),
        (annotation(("n02391049", ("a", 0, 1, 1))), "no annotation of ILSVRC"),
        (annotation(("n01440764", (0, 0, 1, 1))), "no box of n02391049"),
        ("<annotation>" + " " * 1_000_001 + "</annotation>", "more than 1000000 bytes"),
    ],
)
def test_broken_annotations_are_refused(tmp_path, text, message):
    path = tmp_path / "a.xml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_boxes(path, "n02391049")


def test_entities_do_not_explode(tmp_path):
    lines = ['<!ENTITY a0 "aaaaaaaaaa">']
    lines += [f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 12)]
    path = tmp_path / "a.xml"
    path.write_text(f"<!DOCTYPE annotation [{''.join(lines)}]><annotation>&a11;</annotation>")
    with pytest.raises(ValueError, match="no annotation of ILSVRC"):
        read_boxes(path, "n02391049")


def test_a_folder_that_is_none_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no folder"):
        Ilsvrc([], tmp_path / "missing", SYNSETS)


def test_boxes_follow_the_crop():
    crop = Preprocessing((8, 8), (0.5,) * 3, (0.5,) * 3, resize=10)
    # 10 x 20 stays 10 x 20; the crop starts at row 1, column 6.
    found = seen_boxes(np.array([[1, 6, 9, 14], [0, 0, 10, 20]]), (10, 20), crop)
    assert found.tolist() == [[0, 0, 8, 8], [-1, -6, 9, 14]]
