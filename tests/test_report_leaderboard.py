"""The page of the leaderboard: complete, escaped, and with plots that hold what they plot."""

import html
import re

import numpy as np
import pytest
from report_examples import PAYLOADS

from jaxplain.evaluation.leaderboard import MEASURES, Leaderboard, Standing, ranked
from jaxplain.evaluation.results import Estimate
from jaxplain.report.leaderboard import render_leaderboard


def example(titles=("Good", "Poor", "Slow")):
    """A leaderboard of three methods, a yardstick and one that failed."""
    random = np.random.default_rng(0)
    lines = []
    for place, title in enumerate((*titles, "Random map")):
        values = {m.name: 0.9 - 0.2 * place for m in MEASURES}
        values["seconds"] = 0.003 * 40.0**place
        estimates = {
            name: Estimate(value, max(value - 0.05, 0.0), min(value + 0.05, 1.0), 6)
            for name, value in values.items()
        }
        curves = {
            name: tuple(random.random(21).tolist()) for name in ("iou", "insertion", "deletion")
        }
        lines.append(
            Standing(
                f"m{place}",
                title,
                2 if place == 2 else 6,
                estimates,
                curves,
                costly=place == 2,
                baseline=place == 3,
                reference="Someone 2014",
            )
        )
    lines.append(Standing("no", "No", 6, {}, error=f"it says {PAYLOADS[0]}"))
    return Leaderboard("flowers", "net", "ab" * 32, 0, 0.99, 7.5, ranked(lines), {"jax": "0.10"})


def test_every_figure_is_on_the_page():
    page = render_leaderboard(example())
    body = re.search(r'<table class="scores summary board.*?</table>', page, re.DOTALL).group()
    assert body.count("<tr") == 1 + 4
    assert body.count('<td class="score') == 4 * len(MEASURES)
    assert "2 pictures" in body
    assert "No is missing: it says" in page
    # Two plots of three dots each, and no dot outside.
    dots = re.findall(r'<circle cx="([-\d.]+)%" cy="([-\d.]+)%"', page)
    assert len(dots) == 6
    assert all(0 <= float(each) <= 100 for pair in dots for each in pair)
    assert page.count('<polyline class="own"') == 2 * 4


def test_the_quickest_is_left_and_the_best_is_up():
    page = render_leaderboard(example())
    (first,) = re.findall(r'<svg class="plot" role="img" aria-label="Quality.*?</svg>', page, re.S)
    dots = [
        (float(x), float(y))
        for x, y in re.findall(r'<circle cx="([-\d.]+)%" cy="([-\d.]+)%"', first)
    ]
    # In the order of the table: ever slower by the same factor, ever poorer.
    steps = np.diff(np.array(dots), axis=0)
    assert (steps > 0).all()
    np.testing.assert_allclose(steps[0], steps[1], atol=0.02)


def test_whatever_a_title_says_it_stays_text():
    page = render_leaderboard(example(PAYLOADS[:3]))
    assert "<script>document" not in page
    assert "onerror=" not in re.sub(r"&[#\w]+;[^<]*", "", page)
    assert page.count("<script") == 1
    assert "default-src 'none'" in html.unescape(page)


def test_measures_without_figures_leave_no_plot():
    lines = (Standing("m", "M", 6, {"energy": Estimate(0.5, None, None, 6)}),)
    page = render_leaderboard(Leaderboard("d", "n", "x", 0, 1.0, 7.0, lines))
    assert "<circle" not in page
    assert "<polyline" not in page


def test_nothing_to_show_is_refused():
    lines = (Standing("m", "M", 6, {}, error="no"),)
    with pytest.raises(ValueError, match="no method"):
        render_leaderboard(Leaderboard("d", "n", "x", 0, 1.0, 7.0, lines))
