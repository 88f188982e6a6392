"""Batches: everything once an epoch, the same for the same seed, and resumed where it stopped."""

import itertools
import json

import numpy as np
import pytest

from jaxplain.data.loaders import ArraySource, batches

NUMBERS = ArraySource(label=np.arange(23), image=np.arange(23 * 4).reshape(23, 2, 2))


def labels(**options) -> list[list[int]]:
    size = options.pop("batch_size", 4)
    return [batch["label"].tolist() for batch in batches(NUMBERS, size, **options)]


def test_unshuffled_batches_are_in_order():
    found = list(batches(NUMBERS, 5))
    assert [len(batch["label"]) for batch in found] == [5, 5, 5, 5, 3]
    np.testing.assert_array_equal(np.concatenate([b["label"] for b in found]), np.arange(23))
    np.testing.assert_array_equal(found[1]["image"][0], [[20, 21], [22, 23]])


def test_every_epoch_has_everything_in_its_own_order():
    flat = list(itertools.chain(*labels(shuffle=True, epochs=3)))
    epochs = [flat[:23], flat[23:46], flat[46:]]
    assert all(sorted(epoch) == list(range(23)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in [*epochs, range(23)]}) == 4


def test_the_seed_decides_and_threads_do_not():
    one = labels(shuffle=True, seed=5, epochs=2, num_threads=0)
    assert one == labels(shuffle=True, seed=5, epochs=2, num_threads=3)
    assert one != labels(shuffle=True, seed=6, epochs=2)


@pytest.mark.parametrize("shuffle", [False, True])
def test_processes_share_the_examples(shuffle):
    parts = [
        labels(shuffle=shuffle, epochs=2, process_index=index, process_count=3)
        for index in range(3)
    ]
    alone = [itertools.chain(*labels(shuffle=shuffle, epochs=2))]
    flat = sorted(itertools.chain(*itertools.chain(*parts)))
    assert flat == sorted(itertools.chain(*alone))
    first = [list(itertools.chain(*part))[:7] for part in parts]
    assert len(set(itertools.chain(*first))) == 21


def test_dropping_the_remainder_gives_all_processes_equal_batches():
    for index in range(3):
        found = labels(
            batch_size=3, drop_remainder=True, epochs=2, process_index=index, process_count=3
        )
        assert [len(batch) for batch in found] == [3] * 4


def test_without_an_end():
    endless = batches(NUMBERS, 23, epochs=None, shuffle=True)
    seen = [tuple(next(endless)["label"]) for _ in range(5)]
    endless.close()
    assert len(set(seen)) == 5
    assert all(sorted(epoch) == list(range(23)) for epoch in seen)


@pytest.mark.parametrize("stop", [0, 1, 5, 8])
def test_a_new_iterator_goes_on_where_the_old_one_stopped(stop):
    """The state passes through JSON, as it would in a checkpoint."""
    options = {"shuffle": True, "seed": 2, "epochs": 3}
    whole = labels(**options)
    first = batches(NUMBERS, 4, **options)
    for _ in range(stop):
        next(first)
    state = json.loads(json.dumps(first.get_state()))
    first.close()
    second = batches(NUMBERS, 4, **options)
    second.set_state(state)
    assert [batch["label"].tolist() for batch in second] == whole[stop:]


def test_strings_are_stacked():
    source = [{"id": "a"}, {"id": "long"}]
    (batch,) = batches(source, 2)
    assert batch["id"].tolist() == ["a", "long"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"num_threads": -1}, "num_threads must be at least 0, got -1"),
        ({"process_count": 0}, "process_count must be at least 1, got 0"),
        ({"process_index": 2, "process_count": 2}, "process_index must be 0 to 1, got 2"),
        ({"batch_size": 24, "drop_remainder": True}, "23 examples gives no batch of 24"),
        ({"process_index": 23, "process_count": 24}, "gives no batch of 4 to process 23 of 24"),
    ],
)
def test_bad_arguments_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        labels(**options)


@pytest.mark.parametrize("arrays", [{}, {"a": np.zeros(3), "b": np.zeros(4)}])
def test_arrays_of_unequal_length_are_refused(arrays):
    with pytest.raises(ValueError, match="equally long"):
        ArraySource(**arrays)
