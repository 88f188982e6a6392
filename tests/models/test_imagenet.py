"""Classes by name."""

import pytest

from jaxplain.models.imagenet import class_names, find_class


def test_there_are_a_thousand_different_names():
    names = class_names()
    assert len(names) == len(set(names)) == 1000
    assert all(name == name.strip() for name in names)
    assert "" not in names
    # Indices that every user of these weights knows.
    assert (names[0], names[207], names[281], names[340], names[999]) == (
        "tench",
        "golden retriever",
        "tabby",
        "zebra",
        "toilet tissue",
    )


@pytest.mark.parametrize(
    ("wanted", "index"),
    [
        ("zebra", 340),
        (" Zebra ", 340),
        ("ZEBRA", 340),
        ("crane", 517),
        ("crane bird", 134),
        ("cardigan", 474),
        ("207", 207),
        ("hammerhead", 4),
        ("labrador", 208),
    ],
)
def test_a_class_is_found(wanted, index):
    assert find_class(class_names(), wanted) == index


def test_names_come_before_indices():
    assert find_class(("7", "3", "x"), "3") == 1
    assert find_class(("7", "3", "x"), "2") == 2


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("CARDIGAN", r"class 'CARDIGAN' is ambiguous: Cardigan \(264\), cardigan \(474\)$"),
        ("shark", r"ambiguous: great white shark \(2\), tiger shark \(3\)$"),
        ("terrier", r"ambiguous: toy terrier \(158\), .*West Highland white terrier \(203\)$"),
        ("zebre", "unknown class 'zebre'; nearest: zebra"),
        ("1000", "unknown class '1000'"),
        ("-1", "unknown class '-1'"),
        ("", "unknown class ''"),
        ("²", "unknown class '²'"),
    ],
)
def test_what_is_not_one_class_is_refused(wanted, message):
    with pytest.raises(ValueError, match=message):
        find_class(class_names(), wanted)


def test_a_long_list_is_cut():
    names = [f"bird {number}" for number in range(50)]
    with pytest.raises(ValueError, match=r"bird 19 \(19\), and 30 more$"):
        find_class(names, "bird")
