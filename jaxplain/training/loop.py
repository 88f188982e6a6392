"""The training loop: one jitted step, a loop on the host around it, checkpoints, early stopping.

The loop is on the host because XLA's CPU backend compiles the weight gradient of a convolution
inside `lax.scan` to something two orders of magnitude slower than outside (measured, JAX 0.10.2).
Steps are long enough for it not to matter; the host looks at a loss only every `SYNC` steps.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from jaxplain.checkpoints import Checkpoints

SYNC = 10
"""Steps between two looks at the loss."""

SAVE = 50
"""Steps between two checkpoints."""


class Epoch(NamedTuple):
    """One pass over the training pictures.

    Attributes:
        loss: mean while training, in nats.
        accuracy: share of the answers that were right when they came: a class a picture, or, where
            pictures have several, a label.
        validation_loss: mean of the validation pictures, in nats.
        validation_score: accuracy there; the mean average precision of several labels.
    """

    loss: float
    accuracy: float
    validation_loss: float
    validation_score: float


class Progress(NamedTuple):
    """How far a training is.

    Attributes:
        step: steps done.
        steps: steps at most.
        loss: mean of the last few steps.
        history: the epochs done.
    """

    step: int
    steps: int
    loss: float
    history: tuple[Epoch, ...]


class State(NamedTuple):
    """What training changes: arrays only.

    Attributes:
        variables: {"params": ..., "batch_stats": ...} of what is trained.
        optimiser: state of AdamW.
        best: variables of the best epoch so far.
        totals: (2,) sums of losses and of right answers in this epoch.
    """

    variables: Any
    optimiser: Any
    best: Any
    totals: Float[Array, "2"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long and how fast to train; every recipe is one.

    Attributes:
        epochs: passes over the training pictures, at most.
        patience: epochs without progress on the validation pictures after which to stop.
        batch_size: pictures a step; all of them if there are fewer.
        learning_rate: of AdamW, after a warm-up of `warmup` steps; it falls to a hundredth by half
            a cosine.
        warmup: steps.
        weight_decay: of the kernels.

    Raises:
        ValueError: a number out of range.
    """

    epochs: int
    patience: int
    batch_size: int
    learning_rate: float
    warmup: int
    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        self.check_least(epochs=1, patience=1, batch_size=1, warmup=0)
        self.check_above_zero("learning_rate")

    def check_least(self, **least: int) -> None:
        """Raise ValueError for a field that is less than it may be."""
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least {bound}")

    def check_above_zero(self, name: str) -> None:
        """Raise ValueError unless a field is above zero, and finite."""
        if not 0 < getattr(self, name) < float("inf"):
            raise ValueError(f"{name} is {getattr(self, name)}; expected above zero")


@runtime_checkable
class Learner(Protocol):
    """What the loop trains: where it begins, what a step lowers, how good it is."""

    @property
    def frozen(self) -> Any:
        """A pytree that `loss` gets as it is."""
        ...

    def __len__(self) -> int:
        """How many pictures there are to learn from."""
        ...

    def first(self) -> dict[str, Any]:
        """The variables before the first step."""
        ...

    def fetch(self, rows: np.ndarray) -> tuple[Any, Any]:
        """The inputs and labels of some of the training pictures."""
        ...

    def loss(
        self, params: Any, statistics: Any, frozen: Any, inputs: Any, labels: Any, key: jax.Array
    ) -> tuple[jax.Array, tuple[Any, jax.Array]]:
        """The loss of a batch, and (new statistics, share of right answers)."""
        ...

    def measure(self, variables: Any) -> tuple[float, float]:
        """The loss and the score of the validation pictures."""
        ...


@dataclasses.dataclass(frozen=True)
class Loop:
    """The loop on the host.

    Attributes:
        learner: what is trained.
        schedule: for how long, and how fast.
        seed: of the order of the pictures, and of what is random in a step.
        progress: called every few steps.
    """

    learner: Learner
    schedule: Schedule
    seed: int
    progress: Callable[[Progress], None]

    @property
    def batch_size(self) -> int:
        """Pictures a step."""
        return min(self.schedule.batch_size, len(self.learner))

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in the training pictures."""
        # A last, smaller batch would be another program; these pictures come next time.
        return len(self.learner) // self.batch_size

    @functools.cached_property
    def optimiser(self) -> optax.GradientTransformation:
        """AdamW; the learning rate rises for `warmup` steps, and falls by half a cosine."""
        schedule = self.schedule
        steps = self.steps_per_epoch * schedule.epochs
        rate = optax.warmup_cosine_decay_schedule(
            0.0,
            schedule.learning_rate,
            schedule.warmup,
            max(steps, schedule.warmup + 1),
            schedule.learning_rate / 100,
        )
        decayed = functools.partial(jax.tree.map, lambda leaf: leaf.ndim > 1)
        return optax.adamw(rate, weight_decay=schedule.weight_decay, mask=decayed)

    def first(self) -> State:
        """Return the state before the first step."""
        variables = self.learner.first()
        optimiser = jax.jit(self.optimiser.init)(variables["params"])
        return State(variables, optimiser, variables, jnp.zeros(2))

    @functools.cached_property
    def step(self) -> Callable[..., State]:
        """One step: (state, frozen, key, inputs, labels) -> state."""

        @jax.jit
        def step(state: State, frozen: Any, key: jax.Array, inputs: Any, labels: Any) -> State:
            params, statistics = state.variables["params"], state.variables["batch_stats"]
            slope_of = jax.value_and_grad(self.learner.loss, has_aux=True)
            (loss, (statistics, right)), slope = slope_of(
                params, statistics, frozen, inputs, labels, key
            )
            updates, optimiser = self.optimiser.update(slope, state.optimiser, params)
            params = optax.apply_updates(params, updates)
            variables = {"params": params, "batch_stats": statistics}
            return State(variables, optimiser, state.best, state.totals + jnp.stack([loss, right]))

        return step

    def run(self, checkpoints: Checkpoints | None) -> tuple[State, tuple[Epoch, ...]]:
        """Train to the end; return the last state and the epochs.

        Raises:
            ValueError: the loss is not finite any more, or checkpoints are of another training.
            OSError: they cannot be written.
        """
        state, done, history = self.first(), 0, ()
        if checkpoints is not None and (found := checkpoints.resume(state)) is not None:
            done, kept, notes = found
            state = jax.tree.map(jnp.asarray, kept)
            history = tuple(Epoch(*values) for values in notes["history"])
        steps, key = self.steps_per_epoch, jax.random.fold_in(jax.random.key(self.seed), 1)
        total = steps * self.schedule.epochs
        looked, before = done, float(state.totals[0])
        while len(history) < self.schedule.epochs and not self.stalled(history):
            epoch = len(history)
            order = self.order(epoch)
            while done < (epoch + 1) * steps:
                inputs, labels = self.learner.fetch(order[done - epoch * steps])
                now = jax.random.fold_in(key, done)
                state = self.step(state, self.learner.frozen, now, inputs, labels)
                done += 1
                if done % SYNC == 0 or done == (epoch + 1) * steps:
                    sum_so_far = float(state.totals[0])
                    loss = (sum_so_far - before) / (done - looked)
                    looked, before = done, sum_so_far
                    self.progress(Progress(done, total, loss, history))
                if checkpoints is not None and done % SAVE == 0 and done < (epoch + 1) * steps:
                    checkpoints.save(done, state, {"history": [list(e) for e in history]})
            state, history = self.end_epoch(state, history)
            before = 0.0
            if checkpoints is not None:
                checkpoints.save(done, state, {"history": [list(e) for e in history]})
            self.progress(Progress(done, total, history[-1].loss, history))
        return state, history

    def order(self, epoch: int) -> np.ndarray:
        """Return which pictures each step of an epoch takes, (steps, batch)."""
        random = np.random.Generator(np.random.PCG64([self.seed, epoch]))
        order = random.permutation(len(self.learner))
        return order[: self.steps_per_epoch * self.batch_size].reshape(
            self.steps_per_epoch, self.batch_size
        )

    def end_epoch(
        self, state: State, history: tuple[Epoch, ...]
    ) -> tuple[State, tuple[Epoch, ...]]:
        """Look at the validation pictures, and keep the variables if they are the best so far."""
        means = np.asarray(state.totals) / self.steps_per_epoch
        if not np.isfinite(means).all():
            raise ValueError(
                f"the loss is {means[0]} in epoch {len(history) + 1}; expected a finite one: lower "
                f"the learning rate, {self.schedule.learning_rate}"
            )
        loss, score = self.learner.measure(state.variables)
        history = (*history, Epoch(float(means[0]), float(means[1]), loss, score))
        best = state.variables if best_epoch(history) == len(history) - 1 else state.best
        return state._replace(best=best, totals=jnp.zeros(2)), history

    def stalled(self, history: tuple[Epoch, ...]) -> bool:
        """Say whether to stop early."""
        return bool(history) and len(history) - 1 - best_epoch(history) >= self.schedule.patience


def best_epoch(history: tuple[Epoch, ...]) -> int:
    """Return the number of the epoch with the best score, or of these that with the least loss."""
    scores = [(-epoch.validation_score, epoch.validation_loss) for epoch in history]
    return scores.index(min(scores))
