"""Pictures: rendered flowers with known evidence, handwritten digits, and the user's own."""

SPLITS = ("train", "validation", "test")
"""The parts of every data set here: to learn from, to choose by, to report on."""
