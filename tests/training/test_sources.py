"""What a user calls data, and where what is made of it is kept."""

import numpy as np
import pytest
from PIL import Image

from jaxplain.data.labelled import checksum
from jaxplain.training import open_data
from jaxplain.training.inputs import Store, chunks_of, in_chunks


def test_flowers_are_rendered_as_many_as_asked_for():
    data = open_data("an8flower/single_6c", pictures=20)
    assert [len(part.labels) for part in data[:3]] == [13, 3, 4]
    assert data.train.images[0].shape == (112, 112, 3)
    several = open_data("an8flower/single_6c", pictures=20, multilabel=True)
    np.testing.assert_array_equal(several.train.labels.argmax(1), data.train.labels)
    assert (several.train.labels.sum(1) == 1).all()


def test_some_pictures_of_a_folder(tmp_path):
    for number in range(60):
        path = tmp_path / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("L", (9, 9), number).save(path)
    some, again = (open_data(f"folder:{tmp_path}", pictures=20) for _ in range(2))
    assert [len(part.labels) for part in some[:3]] == [13, 3, 4]
    for part, other in zip(some[:3], again[:3], strict=True):
        assert checksum(part.images) == checksum(other.images)
        for index, label in enumerate(part.labels):
            assert part.images[index][0, 0, 0] % 2 == label  # each still has its own label
    assert len(open_data(f"folder:{tmp_path}").train.labels) == 40


@pytest.mark.parametrize(
    ("source", "options", "said"),
    [
        ("an8flower", {}, "unknown data 'an8flower'; nearest: an8flower/single_6c"),
        ("digits", {"pictures": 3}, "pictures is 3; expected at least 10"),
    ],
)
def test_data_that_are_none_are_refused(source, options, said):
    with pytest.raises(ValueError, match=said):
        open_data(source, **options)


def parts():
    yield np.arange(6, dtype=np.float32).reshape(2, 3)
    yield np.full((1, 3), 7, np.float32)


def test_what_is_too_large_for_memory_lies_in_a_file(tmp_path):
    expected = np.concatenate(list(parts()))
    dtype = np.dtype(np.float32)
    with Store(None, memory=36) as store:
        first = store.keep("a", 1, (3, 3), dtype, parts())
        second = store.keep("b", 1, (3, 3), dtype, parts())
        assert isinstance(second, np.memmap)
        assert not isinstance(first, np.memmap)
        for found in (first, second):
            np.testing.assert_array_equal(found, expected)
            assert found.dtype == dtype
    with Store(tmp_path) as store:
        store.keep("a", 1, (3, 3), dtype, parts())
    with Store(tmp_path) as store:
        kept = store.keep("a", 1, (3, 3), dtype, iter(()))  # is there already
        np.testing.assert_array_equal(kept, expected)
        other = store.keep("a", 2, (3, 3), dtype, (part + 1 for part in parts()))
        np.testing.assert_array_equal(other, expected + 1)
    assert [path.name for path in tmp_path.iterdir()] == ["a-00000002.npy"]


def broken():
    yield np.zeros((2, 3), np.float32)
    raise OSError("disk full")


def test_a_file_that_could_not_be_finished_does_not_count(tmp_path):
    with Store(tmp_path) as store, pytest.raises(OSError, match="disk full"):
        store.keep("a", 1, (3, 3), np.dtype(np.float32), broken())
    assert list(tmp_path.iterdir()) == []


def test_the_last_chunk_is_filled_up():
    seen = []

    def run(part):
        seen.append(part.shape)
        return part * 2

    images = np.arange(35, dtype=np.uint8).reshape(35, 1, 1, 1)
    found = np.concatenate(list(in_chunks(run, chunks_of(images, lambda x: x + np.uint8(1)))))
    np.testing.assert_array_equal(found, (images + 1) * 2)
    assert set(seen) == {(16, 1, 1, 1)}
