"""Data sets on disk as PASCAL VOC is prepared: several classes a picture, some difficult."""

import io
import logging

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from jaxplain.data.labelled import checksum
from jaxplain.data.prepared import read_prepared

CLASSES = ("cat", "dog", "bird")
# (class, difficult) of the objects of each picture.
OBJECTS = [
    [(0, False)],
    [(1, False), (0, True)],
    [(2, False), (2, True), (1, False)],
    [(0, True)],
    [],
    [(1, False)],
]


def picture(index):
    return np.random.default_rng(index).integers(0, 256, (10 + index, 12, 3), dtype=np.uint8)


def encoded(index):
    file = io.BytesIO()
    Image.fromarray(picture(index)).save(file, "PNG")
    file.seek(0)
    return file


class Scenes(tfds.core.GeneratorBasedBuilder):
    """Made for these tests."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [  # noqa: RUF012
        tfds.core.BuilderConfig(name=name) for name in ("labels", "objects", "one", "nameless")
    ]

    def _info(self):
        features = tfds.features
        label = features.ClassLabel(names=CLASSES)
        kinds = {
            "labels": {
                "labels": features.Sequence(label),
                "labels_no_difficult": features.Sequence(label),
            },
            "objects": {"objects": features.Sequence({"label": label, "is_difficult": np.bool_})},
            "one": {"label": label},
            "nameless": {"number": np.int32},
        }
        shown = {"image": features.Image(encoding_format="png")}
        return tfds.core.DatasetInfo(
            builder=self,
            features=features.FeaturesDict(shown | kinds[self.builder_config.name]),
        )

    def _split_generators(self, dl_manager):
        splits = ("train",) if self.builder_config.name == "one" else ("train", "test")
        return {split: self._generate_examples() for split in splits}

    def _generate_examples(self):
        many = 12 if self.builder_config.name == "one" else len(OBJECTS)
        for index in range(many):
            objects = OBJECTS[index % len(OBJECTS)]
            kinds = {
                "labels": {
                    "labels": sorted({label for label, _ in objects}),
                    "labels_no_difficult": sorted({label for label, hard in objects if not hard}),
                },
                "objects": {
                    "objects": [{"label": label, "is_difficult": hard} for label, hard in objects]
                },
                "one": {"label": index % 3},
                "nameless": {"number": 3},
            }
            yield index, {"image": encoded(index), **kinds[self.builder_config.name]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    tfds.disable_progress_bar()
    for config in ("labels", "objects", "one", "nameless"):
        builder = Scenes(data_dir=folder, config=config, file_format="array_record")
        builder.download_and_prepare(download_dir=folder / "none")
    logger.setLevel(level)
    return folder


def sorted_labels(labels):
    return sorted(labels.tolist())


@pytest.mark.parametrize("config", ["labels", "objects"])
def test_difficult_objects_count_for_nothing(folder, config, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(folder))
    data = read_prepared(f"scenes/{config}", multilabel=True)
    assert data.class_names == CLASSES
    expected = [[1, 0, 0], [-1, 1, 0], [0, 1, 1], [-1, 0, 0], [0, 0, 0], [0, 1, 0]]
    assert sorted_labels(data.test.labels) == sorted(expected)
    together = np.concatenate([data.train.labels, data.validation.labels])
    assert sorted_labels(together) == sorted(expected)
    # Each picture has its own labels.
    for place, label in enumerate(data.test.labels):
        index = expected.index(label.tolist())
        np.testing.assert_array_equal(data.test.images[place], picture(index))


def test_one_class_each_and_no_splits(folder):
    data = read_prepared("scenes/one", data_dir=folder)
    assert [len(part.labels) for part in data[:3]] == [6, 3, 3]
    assert data.train.labels.shape == (6,)
    for part in data[:3]:
        assert sorted(set(part.labels.tolist())) == [0, 1, 2]
    several = read_prepared("scenes/one", data_dir=folder, multilabel=True)
    np.testing.assert_array_equal(several.test.labels.argmax(1), data.test.labels)
    assert checksum(data.train.images) != checksum(data.test.images)


def test_what_cannot_be_used_is_said(folder):
    with pytest.raises(FileNotFoundError, match=r"data set 'voc/2007' is not in .*array_record"):
        read_prepared("voc/2007", data_dir=folder)
    with pytest.raises(ValueError, match=r"have not exactly one class .*: multilabel"):
        read_prepared("scenes/labels", data_dir=folder)
    with pytest.raises(ValueError, match="no classes with names"):
        read_prepared("scenes/nameless", data_dir=folder)
