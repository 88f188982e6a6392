"""A network of a few hundred numbers with everything that weights are made of."""

from collections import OrderedDict
from typing import ClassVar

import flax.linen as nn
import jax
import numpy as np
from fixture_weights import fixture

from jaxplain.models.network import Network, Taps, batch_norm, conv
from jaxplain.models.weights.fill import torch_plan, variable_shapes


class Tiny(Network):
    """Convolution, batch norm, ReLU; a dense layer that reads the flattened map; the classes."""

    num_classes: int = 4

    head: ClassVar[str] = "logits"
    flattened = {"fc6": (2, 3)}  # noqa: RUF012 - a ClassVar of Network
    torch_only = ("aux.",)

    def forward(self, x: jax.Array, tap: Taps, train: bool) -> jax.Array:
        x = tap(nn.relu(batch_norm(conv(x, "conv1", 5, 3), "bn1", train)), "conv1")
        x = x[:, :2, :3].reshape(x.shape[0], -1)
        x = tap(nn.relu(nn.Dense(6, name="fc6")(x)), "fc6")
        return tap(nn.Dense(self.num_classes, name="logits")(x), "logits")

    def torch_names(self) -> dict[str, str]:
        return {"conv1": "features.0", "bn1": "features.1", "logits": "classifier"}


class Plain(Network):
    """A convolution and the classes: what MatConvNet's file of these tests holds."""

    num_classes: int = 4

    head: ClassVar[str] = "logits"

    def forward(self, x: jax.Array, tap: Taps, train: bool) -> jax.Array:
        x = tap(nn.relu(conv(x, "conv1", 5, 3)), "conv1")
        return tap(nn.Dense(self.num_classes, name="logits")(x.mean((1, 2))), "logits")


def state_dict() -> OrderedDict[str, np.ndarray]:
    """Return the tensors of `Tiny` as torch names and lays them out."""
    network = Tiny()
    plan = torch_plan(network, variable_shapes(network), {})
    tensors = OrderedDict((slot.name, fixture(slot.name, slot.shape)) for slot in plan.values())
    tensors["features.1.num_batches_tracked"] = np.array(3)
    tensors["aux.weight"] = np.zeros((2, 2), np.float32)
    return tensors
