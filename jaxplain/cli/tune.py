"""`jaxplain train --model`: a new head for a network, trained on the user's own pictures."""

import re
from pathlib import Path
from typing import Any

from jaxplain.cli import compilation
from jaxplain.cli.console import progress, say
from jaxplain.cli.train import SUFFIX, find_place, tell_counts, teller
from jaxplain.report import duration, percent


def model_in(weights: str | None) -> str | None:
    """Return the network that a file of weights says it is of; None if `weights` name no file.

    Raises:
        ValueError: the file is damaged, or does not say.
    """
    if weights is None or not Path(weights).is_file():
        return None
    from jaxplain.models import architecture_in

    return architecture_in(weights)


def tune_classifier(
    model: str | None,
    data: str | None,
    *,
    out: Path | None,
    checkpoints: Path | None,
    pictures: int | None,
    seed: int,
    cache: bool,
    **settings: Any,
) -> None:
    """Fine-tune a network, write its weights and print how good it is.

    Args:
        model: the network.
        data: what it learns: see `jaxplain.training.open_data`.
        out: a file, or a folder for it; None for one in this folder.
        checkpoints: folder to go on from, or None.
        pictures: use only so many.
        seed: of everything random.
        cache: keep compiled programs.
        **settings: of `FineTuning`; None for its own.

    Raises:
        ValueError: an unknown name, a setting out of range, or data that do not fit.
        OSError: a picture cannot be read, or a folder written.
    """
    from jaxplain.models.weights import store
    from jaxplain.training import FineTuning, fine_tune, open_data

    if model is None or data is None:
        raise ValueError(
            f"--{'model' if model is None else 'data'} is missing; expected --model and --data to "
            f"fine-tune a network, or the name of a classifier to train anew"
        )
    given = {name: value for name, value in settings.items() if value is not None}
    tuning = FineTuning(model=model, data=data, **(_begin(model) | given))
    path = find_place(out, _named(model, data), checkpoints)
    if path.exists() and path.resolve() == Path(tuning.weights).resolve():
        raise ValueError(f"--out {str(path)!r} is the file of weights, which it would replace")
    compilation.keep(option=cache)
    several = tuning.head == "multilabel"
    opened = open_data(data, multilabel=several, pictures=pictures, seed=seed)
    tell_counts(f"{len(opened.class_names)} classes", opened)
    unit = "mean average precision" if several else "right"
    with progress(0) as advance:

        def prepared(done: int, total: int) -> None:
            advance("what stays of the network sees each picture once", done=done, total=total)

        result = fine_tune(
            tuning,
            opened,
            seed=seed,
            checkpoint_dir=checkpoints,
            progress=teller(
                advance,
                model,
                lambda done: (
                    f"validation {percent(max(epoch.validation_score for epoch in done))} {unit}"
                ),
            ),
            preparing=prepared,
        )
    store.save(path, result.weights)
    say(
        f"{model}: {percent(result.score)} {unit} on the test pictures after "
        f"{len(result.history)} epochs, {duration(result.seconds)}"
    )
    say(path)


def _begin(model: str) -> dict[str, Any]:
    """Where a network begins unless the user says otherwise: at the weights that there are."""
    from jaxplain.models import find_architecture

    known = list(find_architecture(model).weights)
    return {"weights": known[0]} if known else {}


def _named(model: str, data: str) -> str:
    """What the file of weights is called unless the user says so."""
    words = re.findall(r"[A-Za-z0-9]+", data.rstrip("/").rpartition("/")[2].rpartition(":")[2])
    return "-".join([model, *words]) + SUFFIX
