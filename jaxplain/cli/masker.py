"""`jaxplain train masker`: a network that masks what a classifier needs, in one forward run."""

from pathlib import Path
from typing import Any

from jaxplain.cli import compilation
from jaxplain.cli.console import progress, say
from jaxplain.cli.train import SUFFIX, find_place, tell_counts, teller
from jaxplain.report import duration, percent

FLOWERS = "an8flower/"


def train_masking(
    model: str | None,
    data: str | None,
    *,
    weights: str | None,
    out: Path | None,
    checkpoints: Path | None,
    pictures: int | None,
    seed: int,
    cache: bool,
    **settings: Any,
) -> None:
    """Train a masking network, write it and print how good it is.

    Args:
        model: the classifier.
        data: what it learns from; None for what the classifier was trained on.
        weights: of the classifier; None for those that ship with it.
        out: a file, or a folder for it.
        checkpoints: folder of checkpoints.
        pictures: use only so many.
        seed: of everything random.
        cache: keep compiled programs.
        **settings: fields of `MaskerRecipe`; None for its own.

    Raises:
        ValueError: no classifier, or a setting out of range.
        OSError: a file cannot be written.
    """
    from jaxplain.cli.fit import named_data
    from jaxplain.methods import masker
    from jaxplain.models import load_model
    from jaxplain.training import open_data
    from jaxplain.training.masker import MaskerRecipe, train_masker

    if model is None:
        raise ValueError(
            "--model is missing; expected the classifier that the masker is to explain"
        )
    path = find_place(out, f"{Path(model).stem}.masker{SUFFIX}", checkpoints)
    source = named_data(model, data)
    given = {name: value for name, value in settings.items() if value is not None}
    # The colour of a flower survives every blur: there, closed masks show none.
    blurred = {"blurred": 0.0} if source.startswith(FLOWERS) else {}
    recipe = MaskerRecipe(**{**blurred, **given})
    compilation.keep(option=cache)
    classifier = load_model(model, weights)
    # A picture may have any labels: none are looked at.
    opened = open_data(source, multilabel=True, pictures=pictures, seed=seed)
    tell_counts(model, opened)
    with progress(0) as advance:
        result = train_masker(
            classifier,
            opened,
            recipe,
            source=source,
            seed=seed,
            checkpoint_dir=checkpoints,
            progress=teller(
                advance,
                f"masker of {model}",
                lambda done: f"validation {min(epoch.validation_loss for epoch in done):.3f}",
            ),
        )
    masker.save(path, result.masker)
    found = result.figures
    say(
        f"masker of {model}: open on {percent(found['area'])} of a test picture, in which the "
        f"class has {percent(found['preserved'])}; the rest leaves it {percent(found['destroyed'])}"
        f"; {len(result.history)} epochs, {duration(result.seconds)}"
    )
    say(path)
