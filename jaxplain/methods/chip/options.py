"""What a fit can be told."""

import dataclasses
from typing import Literal

from jaxplain.names import unknown

Gates = Literal["fresh", "shared"]


@dataclasses.dataclass(frozen=True)
class Options:
    """What `fit` and `gather` take beside the data; see `fit`."""

    num_gates: int
    keep: float
    sigma: float | None
    gates: Gates
    every: int
    chunk: int
    rows: int | None

    def __post_init__(self) -> None:
        for name in ("num_gates", "every", "chunk", "rows"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; expected at least 1")
        if not 0 < self.keep < 1:
            state = "closed" if self.keep <= 0 else "open"
            raise ValueError(
                f"keep is {self.keep}: all gates would be {state}; expected a probability above 0 "
                "and below 1"
            )
        if self.gates not in ("fresh", "shared"):
            raise ValueError(unknown("gates", str(self.gates), ("fresh", "shared")))
        if self.sigma is not None and not 0 < self.sigma < float("inf"):
            raise ValueError(f"sigma is {self.sigma}; expected above 0")
        if (1 - self.keep) / self.width**2 > 60:
            raise ValueError(
                f"sigma is {self.sigma}: a typical gate vector would weigh "
                f"exp(-{(1 - self.keep) / self.width**2:.0f}); it is in units of the square root "
                "of the number of channels, see the documentation of fit"
            )

    @property
    def width(self) -> float:
        """Sigma, or its default: a typical gate vector then weighs 1/e."""
        return (1 - self.keep) ** 0.5 if self.sigma is None else self.sigma
