"""The page: complete, self-contained, escaped, and written whole."""

import base64
import dataclasses
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from report_examples import PAYLOADS, example

from jaxplain import plot
from jaxplain.methods import METHODS
from jaxplain.report import (
    Explained,
    Interval,
    Report,
    Section,
    read_glossary,
    render_report,
    write_report,
)

VOID = {
    "area",
    "base",
    "br",
    "col",
    "embed",
    "hr",
    "img",
    "input",
    "link",
    "meta",
    "source",
    "track",
    "wbr",
}


class Page(HTMLParser):
    """Elements of a page with their attributes and text, checking that they nest."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.text = [], [], {}
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        tag = self.open[-1] if self.open else ""
        self.text.setdefault(tag, []).append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def text():
    return render_report(example())


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def test_the_page_holds_no_address_but_its_own_data(page):
    for tag, attributes in page.elements:
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            if name in attributes:
                assert attributes[name].startswith(("data:", "#")), (tag, name)


def test_styles_point_nowhere(text):
    addresses = re.findall(r"url\(\s*[\"']?([^)\"']*)", text)
    assert len(addresses) == 3 + 2  # a picture for each case, an outline where evidence is known
    for address in addresses:
        assert address.startswith("data:image/")
        decode(address)
    assert "@import" not in text


def test_the_policy_allows_this_style_and_script_and_nothing_else(page):
    (policy,) = [
        m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy"
    ]
    import hashlib

    for tag in ("style", "script"):
        (body,) = page.text[tag]
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy


def test_no_attribute_runs_or_styles(page):
    for tag, attributes in page.elements:
        assert not any(name == "style" or name.startswith("on") for name in attributes), tag


@pytest.mark.parametrize("payload", PAYLOADS)
def test_names_of_classes_files_and_notes_stay_text(payload):
    plain = Page(render_report(example()))
    page = Page(
        render_report(
            example(
                names=[f"{payload}{n}" for n in range(3)],
                picture=payload,
                title=payload,
                notes={"mine": payload},
            )
        )
    )
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in plain.elements], (
        "no element came or went"
    )
    assert payload in "".join(page.text["h4"])
    assert payload in "".join(page.text["h5"])
    assert page.text["title"] == [payload]
    assert any(payload in attributes.get("alt", "") for attributes in page.all("img"))


def test_every_picture_says_what_it_shows_and_can_be_decoded(page):
    images = page.all("img")
    assert len(images) > 20
    for attributes in images:
        assert attributes["alt"].strip()
        decode(attributes["src"])


def test_ids_are_unique_and_every_reference_finds_one(page):
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.elements:
        if attributes.get("href", "").startswith("#"):
            assert attributes["href"][1:] in ids
        for name in ("aria-labelledby", "for"):
            assert set(attributes.get(name, "").split()) <= set(ids)


def test_tables_have_captions_and_scoped_heads(page):
    assert len(page.all("caption")) == len(page.all("table"))
    assert all(head.get("scope") in ("col", "row") for head in page.all("th"))


def test_every_map_of_every_target_is_there(page):
    maps = [
        attributes["data-method"] for attributes in page.all("li") if "data-method" in attributes
    ]
    assert sorted(set(maps)) == ["gradient", "lrp_epsilon_plus", "mine"]
    assert len(maps) == 3 * (2 + 2 + 2)


def test_the_share_inside_the_evidence_is_that_of_the_positive_values():
    report = example()
    section = report.sections[0]
    heatmap = np.full((20, 30), -1.0)
    heatmap[6, 12], heatmap[0, 0] = 3, 1
    case = dataclasses.replace(section.cases[0], explained=[Explained(0, {"gradient": heatmap})])
    text = render_report(Report("t", "", [dataclasses.replace(section, cases=[case])]))
    assert "75 % of it inside the known evidence" in text
    assert "strongest in the upper centre" in text


@pytest.mark.parametrize("signed", [False, True])
def test_maps_keep_their_values_to_the_number_of_shades(signed):
    report = example()
    section = report.sections[0]
    method = dataclasses.replace(section.methods[0], signed=signed)
    heatmap = np.linspace(-1, 1, 200).reshape(10, 20)
    case = dataclasses.replace(
        section.cases[0], mask=None, explained=[Explained(0, {"gradient": heatmap})]
    )
    page = Page(render_report(Report("t", "", [Section("s", "", "abc", [method], [case])])))
    (source,) = [a["src"] for a in page.all("img") if a["alt"].startswith("Gradient for")]
    shown = np.asarray(decode(source).convert("RGBA")).astype(int)
    wanted = plot.heatmap_rgb(heatmap, signed=signed).astype(int)
    visible = shown[..., 3] > 0
    assert np.abs(shown[..., :3] - wanted)[visible].mean() < 3
    assert (visible == (heatmap > 0.03)).mean() > 0.95 or signed
    if signed:
        assert shown[0, 0, 2] > shown[0, 0, 0], "the lowest is blue"
        assert shown[-1, -1, 0] > shown[-1, -1, 2], "the highest is red"


def test_audits_skipped_methods_versions_and_curves_are_told(text):
    for expected in (
        "conv1",
        "z+",
        "no global average",
        "0.1.0",
        "24 held-out pictures",
        "It has seen little.",
    ):
        assert expected in text


def table(page_text, head):
    """The cells of a table's rows, by the head of each row: the table whose caption begins so."""
    part = page_text[page_text.index(f"<caption>{head}") :]
    rows = re.findall(r"<tr.*?</tr>", part[: part.index("</table>")], re.DOTALL)
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]
    plain = [[" ".join(re.sub(r"<.*?>", " ", cell).split()) for cell in row] for row in cells]
    return {row[0]: row[1:] for row in plain}


def test_the_summary_has_every_metric_with_its_interval(text):
    rows = table(text, "Agreement with the known evidence")
    assert rows["Method"] == ["IoU area", "Energy inside", "Time a picture"]
    assert rows["Gradient"] == ["0.40 0.35–0.45", "0.60 0.59–0.61", "10 ms"]
    assert rows["LRP EpsilonPlus"][1] == "–"


def test_every_metric_is_told_class_by_class_with_its_interval(text):
    rows = table(text, "IoU area, by class")
    assert rows["Method"] == ["Mean", "rose", "tulip", "lily"]
    assert rows["Gradient"] == [
        "0.40 0.35–0.45",
        "0.50 0.31–0.69",
        "0.51 0.31–0.69",
        "0.52 0.31–0.69",
    ]
    assert rows["Mine"][1:] == ["–"] * 3
    assert table(text, "Energy inside, by class")["Mine"][1] == "0.21 0.20–0.22"


def test_an_interval_that_is_not_known_is_not_drawn(text):
    report = example()
    section = report.sections[0]
    unknown = {"iou_area": {"gradient": Interval(0.4)}}
    assert section.scores is not None
    scores = dataclasses.replace(section.scores, metrics=unknown, by_class={"rose": unknown})
    section = dataclasses.replace(section, scores=scores)
    page = render_report(dataclasses.replace(report, sections=[section]))
    assert table(page, "Agreement with the known evidence")["Gradient"][0] == "0.40"
    assert table(page, "IoU area, by class")["Gradient"] == ["0.40", "0.40"]
    assert 'class="whisker"' in text
    assert 'class="whisker"' not in page
    assert 'class="range-text"' not in page


def test_methods_that_look_equal_are_best_together_and_a_yardstick_never_is(text):
    part = text[text.index("<caption>Energy inside, by class") :]
    rows = re.findall(r"<tr.*?</tr>", part[: part.index("</table>")], re.DOTALL)
    best = [[("best" in tag) for tag in re.findall(r"<td[^>]*>", row)] for row in rows[1:]]
    assert best == [[True, True, True, True], [False, True, True, True], [False] * 4]


def test_methods_near_noise_are_named_with_both_figures(text):
    (line,) = [line for line in text.splitlines() if "of its energy inside the evidence" in line]
    assert "A random map has 0.05" in line
    assert "Mine 0.12." in line
    assert "Gradient" not in line


def test_the_classes_that_a_network_knows_are_told(page, text):
    assert "This network knows 3 classes and no others: rose, tulip, lily." in text
    section = example().sections[1]

    def told(names):
        return render_report(Report("t", "", [dataclasses.replace(section, class_names=names)]))

    assert "Nobody named the classes" in told([])
    many = told([f"kind {n}" for n in range(1000)])
    assert "knows 1,000 classes" in many
    assert "kind 999" in many


def test_what_the_network_does_not_see_is_dark(page, text):
    (path,) = [a["d"] for a in page.all("path") if a.get("class") == "outside"]
    assert path == "M0 0H90V80H0ZM15.0 20.0h60.0v40.0h-60.0Z"
    assert "the middle 60 × 40 of its 90 × 80 pixels" in text


def test_options_that_differ_between_networks_are_told_of_each():
    report = example()
    first, second = report.sections
    changed = [
        dataclasses.replace(m, options="samples = 3" if m.name == "gradient" else m.options)
        for m in first.methods
    ]
    same = render_report(report)
    assert "Here with" not in same
    text = render_report(
        dataclasses.replace(report, sections=[dataclasses.replace(first, methods=changed), second])
    )
    assert "Here with samples = 3 (Flowers)." in text


def test_a_yardstick_stands_in_the_table_but_has_no_map(page):
    assert "Noise" in "".join(page.text["th"])
    assert not any("Noise" in attributes["alt"] for attributes in page.all("img"))


def test_the_same_report_gives_the_same_bytes(text):
    assert render_report(example()) == text


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"heatmaps": {"gradient": np.full((4, 4), np.nan)}},
            ValueError,
            "16 values that are not finite",
        ),
        (
            {"heatmaps": {"gradint": np.ones((4, 4))}},
            ValueError,
            "unknown method 'gradint'; nearest: gradient",
        ),
        ({"target": 9}, ValueError, "target is 9; expected a class, 0 to 2"),
        ({"target": -1}, ValueError, "target is -1"),
    ],
)
def test_a_report_that_makes_no_sense_is_refused_and_the_old_file_kept(
    tmp_path, change, error, message
):
    path = tmp_path / "report.html"
    path.write_text("old")
    report = example()
    section = report.sections[0]
    explained = dataclasses.replace(Explained(0, {}), **change)
    case = dataclasses.replace(section.cases[0], explained=[explained])
    with pytest.raises(error, match=message):
        write_report(path, Report("t", "", [dataclasses.replace(section, cases=[case])]))
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize("truth", [-1, 3])
def test_a_truth_that_is_no_class_is_refused(truth):
    section = example().sections[0]
    case = dataclasses.replace(section.cases[0], truth=truth)
    with pytest.raises(ValueError, match=f"truth is {truth}; expected a class, 0 to 2"):
        render_report(Report("t", "", [dataclasses.replace(section, cases=[case])]))


def test_a_report_makes_its_folder_and_replaces_an_older_one(tmp_path):
    path = tmp_path / "new" / "report.html"
    for title in ("one", "two"):
        assert write_report(path, example(title=title)) == path
    assert "<title>two</title>" in path.read_text(encoding="utf-8")
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_every_method_is_explained_to_strangers_and_the_glossary_has_no_others():
    glossary = read_glossary()
    assert set(glossary["methods"]) <= set(METHODS)
    for name, method in METHODS.items():
        assert len(glossary["methods"].get(name, method.summary)) > 20
        assert method.function.__module__.split(".")[2] in glossary["families"]


def decode(source):
    """The picture of a data URI."""
    return Image.open(io.BytesIO(base64.b64decode(source.partition("base64,")[2])))
