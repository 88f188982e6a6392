"""`jaxplain data build` and `jaxplain train`: the data sets and the classifiers, made anew."""

from pathlib import Path

from jaxplain.cli import compilation
from jaxplain.cli.console import note, progress, say
from jaxplain.cli.train import SUFFIX, find_place, teller
from jaxplain.report import duration, percent


def build_flowers(
    variant: str, *, folder: Path | None, size: int, seed: int, per_class: tuple[int, int, int]
) -> None:
    """Render a data set and print its folder; what it holds and whether it is new is told beside.

    Raises:
        ValueError: an argument is out of range.
        OSError: the folder cannot be written.
    """
    import os

    from jaxplain.data import SPLITS
    from jaxplain.data.an8flower import find_variant
    from jaxplain.data.builder import build

    classes = len(find_variant(variant).class_names)
    rendered = 0

    with progress(classes * sum(per_class)) as advance:

        def tick(done: int, total: int) -> None:
            nonlocal rendered
            rendered = done
            advance(f"rendering {variant}")

        path = build(
            variant,
            folder,
            size=size,
            seed=seed,
            per_class=per_class,
            workers=os.cpu_count() or 1,
            progress=tick,
        )
    splits = ", ".join(
        f"{classes * count:,} for {split}" for split, count in zip(SPLITS, per_class, strict=True)
    )
    what = f"{classes} classes of flowers, {size} × {size} pixels, with their evidence: {splits}"
    note(f"{variant}: {what}" if rendered else f"{variant}: there already, left as it is: {what}")
    note("read it with jaxplain.data.builder.flowers(FOLDER, 'train')")
    say(path)


def train_classifier(
    name: str,
    *,
    data: str | None = None,
    pictures: int | None = None,
    out: Path | None,
    checkpoints: Path | None,
    epochs: int | None,
    batch_size: int | None,
    learning_rate: float | None,
    seed: int,
    cache: bool,
) -> None:
    """Train a classifier, write its weights and print how good it is.

    Raises:
        ValueError: an unknown name, a setting out of range, or pictures that do not fit.
        OSError: a folder cannot be written, or the pictures cannot be read.
    """
    from jaxplain.models import find_architecture
    from jaxplain.models.weights import store
    from jaxplain.training import find_recipe, in_memory, open_data, train

    find_recipe(name)
    path = find_place(out, f"{name}{SUFFIX}", checkpoints)
    compilation.keep(option=cache)
    note(f"{name}: preparing the pictures")
    own = None
    if data is not None:
        named = open_data(data, pictures=pictures, seed=seed)
        own = in_memory(named, find_architecture(name).preprocessing)
    with progress(0) as advance:
        result = train(
            name,
            data=own,
            source=data or "",
            seed=seed,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            checkpoint_dir=checkpoints,
            progress=teller(
                advance,
                name,
                lambda done: (
                    f"{percent(max(epoch.validation_score for epoch in done))} of the validation "
                    "pictures right"
                ),
            ),
        )
    store.save(path, result.weights)
    say(
        f"{name}: {percent(result.score)} of the test pictures right after "
        f"{len(result.history)} epochs, {duration(result.seconds)}"
    )
    say(path)
