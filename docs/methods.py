"""Writes the README's table of methods from the table that the package itself reads."""

from pathlib import Path

from jaxplain.methods import METHODS

README = Path(__file__).parents[1] / "README.md"
START, END = "<!-- methods: written by docs/methods.py -->\n", "<!-- methods end -->\n"


def table() -> str:
    """The table in Markdown, one row a method."""
    rows = ["| `--methods` | Method | Sees | Reference |", "| --- | --- | --- | --- |"]
    for method in METHODS.values():
        sees = "gradients" if method.gradient else "predictions only"
        rows.append(f"| `{method.name}` | {method.title} | {sees} | {method.reference} |")
    return "\n".join(rows) + "\n"


def written(text: str) -> str:
    """`text` with the table between its two marks."""
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    README.write_text(written(README.read_text()))
