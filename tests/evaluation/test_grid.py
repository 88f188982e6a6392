"""Grid energy, against the whole spectrum."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxplain.evaluation import grid_energy


def test_it_is_the_power_at_the_multiples_of_the_frequency():
    maps = np.random.default_rng(0).uniform(size=(3, 13, 21)).astype(np.float32)
    power = np.abs(np.fft.fft2(maps[:, :12, :20].astype(np.float64))) ** 2
    peaks = power[:, ::3, ::5]  # 12 / 4 and 20 / 4
    expected = peaks.sum((1, 2)) / power[:, 0, 0] - 1
    np.testing.assert_allclose(grid_energy(jnp.asarray(maps), 4), expected, rtol=1e-3)


def test_maps_without_a_mean_have_none():
    maps = jnp.stack([jnp.zeros((4, 4)), jnp.tile(jnp.array([[1.0, -1.0]]), (4, 2))])
    assert jnp.isnan(grid_energy(maps, 2)).tolist() == [True, True]


@pytest.mark.parametrize("stride", [0, 1, 5])
def test_strides_that_make_no_grid_are_refused(stride):
    with pytest.raises(ValueError, match=f"stride is {stride}"):
        grid_energy(jnp.ones((1, 4, 6)), stride)
