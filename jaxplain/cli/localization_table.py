"""What `jaxplain localize` found, as a table for people and as JSON for programs."""

import dataclasses
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxplain.cli.console import show_table, table

if TYPE_CHECKING:
    from jaxplain.evaluation import Estimate

FORMAT = "jaxplain.localization/1"
RULES = {"max": "of the maximum, largest part", "mean": "times the mean, all parts"}


@dataclass(frozen=True)
class Line:
    """A method's errors with one rule for boxes.

    Attributes:
        method: its name.
        title: for people.
        relative_to: "max", with the largest component, or "mean", with all pixels.
        threshold: found on the pictures kept for it.
        top: guesses -> share of pictures in error.
        known: the same when the true class is given.
    """

    method: str
    title: str
    relative_to: str
    threshold: float
    top: Mapping[int, "Estimate"]
    known: "Estimate"


@dataclass(frozen=True)
class Board:
    """All errors, and on what they were found.

    Attributes:
        data: where the pictures came from.
        model: the network.
        digest: of its parameters.
        tuning: pictures that the thresholds were found on.
        judged: pictures that the errors are of.
        whole: whether whole pictures were squashed to the network's input.
        seed: of the order of the pictures, and of everything else that is random.
        answers: guesses -> the network's own error.
        lines: a method and a rule each.
        facts: versions and device.
    """

    data: str
    model: str
    digest: str
    tuning: int
    judged: int
    whole: bool
    seed: int
    answers: Mapping[int, "Estimate"]
    lines: Sequence[Line]
    facts: Mapping[str, str]

    def heads(self) -> list[str]:
        """Return the heads of the columns."""
        guesses = [f"Top-{top}" for top in self.answers]
        return ["Method", "Threshold", *guesses, "Class known"]

    def cells(self, line: Line) -> list[str]:
        """Return a line's cells: errors in percent."""
        errors = [*line.top.values(), line.known]
        return [
            line.title,
            f"{line.threshold:g} {RULES[line.relative_to]}",
            *(percent(error) for error in errors),
        ]

    def to_markdown(self) -> str:
        """Return the table, with what is to be known about it below."""
        heads = self.heads()
        rows = [heads, ["---", "---", *["---:"] * (len(heads) - 2)]]
        rows += [self.cells(line) for line in self.lines]
        seen = "whole, squashed" if self.whole else "as the network crops them"
        own = ", ".join(f"top-{top} {percent(error)}" for top, error in self.answers.items())
        right = (
            "a guess is right if its class is, and its box has an IoU of 0.5 or more with one of "
            "the class"
        )
        notes = [
            f"{self.judged:,} pictures of {self.data}, {seen}; thresholds of {self.tuning:,} more.",
            f"Network {self.model}; its own classification errors: {own}.",
            f"Localisation errors in percent, with 95 % intervals: {right}.",
        ]
        lines = ["| " + " | ".join(plain(cell) for cell in row) + " |" for row in rows]
        return "\n".join([*lines, "", *(f"- {plain(note)}" for note in notes)]) + "\n"

    def to_json(self) -> str:
        """Return everything as JSON."""
        content = {"format": FORMAT, **dataclasses.asdict(self)}
        return json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def percent(error: "Estimate") -> str:
    """Return an error with its interval.

    Example:
        >>> from jaxplain.evaluation import Estimate
        >>> percent(Estimate(0.5, 0.25, 0.75, 8))
        '50.0 (25.0–75.0)'
    """
    value, low, high = (100 * (each or 0.0) for each in (error.value, error.low, error.high))
    return f"{value:.1f} ({low:.1f}–{high:.1f})"


def plain(text: str) -> str:
    """Keep a name from ending its cell or its line, or becoming HTML."""
    return html.escape(" ".join(text.split()), quote=False).replace("|", r"\|")


def show(board: Board) -> None:
    """Print the table."""
    heads = board.heads()
    sides = ["left", "left", *["right"] * (len(heads) - 2)]
    rows = table(f"{board.data}: localisation errors, %", list(zip(heads, sides, strict=True)))
    for line in board.lines:
        rows.add_row(*board.cells(line), style="dim" if line.method == "centre" else None)
    show_table(rows)
