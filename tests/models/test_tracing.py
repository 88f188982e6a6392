"""What the package reads off the networks: receptive fields."""

import jax
import jax.numpy as jnp

from jaxplain.adapters import LinenApply
from jaxplain.model import Model
from jaxplain.models.inception import GoogLeNet


def test_every_layer_of_googlenet_with_positions_has_a_receptive_field():
    network = GoogLeNet()
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), images)
    model = Model.from_function(LinenApply(network), shapes, input_shape=(64, 64, 3))
    fields = {layer.name: layer.receptive_field for layer in model.layers()}
    # conv1: 7 wide at stride 2; maxpool1: 7 + 2 * 2 = 11 at stride 4.
    assert (fields["conv1"].size, fields["conv1"].stride) == ((7, 7), (2, 2))
    assert (fields["maxpool1"].size, fields["maxpool1"].stride) == ((11, 11), (4, 4))
    assert fields["inception3a"] is not None
