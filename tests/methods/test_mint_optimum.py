"""MINT's weights are those of the convex problem in the fine weights alone, solved another way."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from scipy.optimize import lsq_linear

from jaxplain import superpixels
from jaxplain.methods import mint
from jaxplain.methods.surrogate import Draw, states
from jaxplain.model import Model

KEY = jax.random.key(11)
SAMPLES, CLASSES = 128, 3
COARSE = superpixels.grid((8, 8), rows=2, columns=2)
FINE = superpixels.grid((8, 8), rows=4, columns=4)
T = superpixels.membership(COARSE, FINE).astype(float)
TWINS = [2, 3]
"""Fine superpixels of one coarse one."""


def _layers(w, x, np=np, tag=lambda layer, _: layer):
    """A convolution of one pixel, and one of 2 × 2 with that stride; in either NumPy."""
    shallow = tag(np.maximum(np.einsum("bhwc,ck->bhwk", x, w["shallow"]), 0), "shallow")
    windows = shallow.reshape(-1, 4, 2, 4, 2, 5)
    deep = np.maximum(np.einsum("bhpwqk,pqkl->bhwl", windows, w["deep"]), 0)
    return shallow, tag(deep, "deep")


def _logits(w, deep, np=np):
    return np.einsum("bhwl,hwlc->bc", deep, w["out"])


def _network(w, x):
    return _logits(w, _layers(w, x, jnp, checkpoint_name)[1], jnp)


def _case(seed):
    """Weights of a network, and two images."""
    draw = np.random.default_rng(seed)
    weights = {
        "shallow": draw.normal(0.2, 0.5, (2, 5)),
        "deep": draw.normal(0.1, 0.5, (2, 2, 5, 6)),
        "out": draw.normal(0, 0.2, (4, 4, 6, CLASSES)),
    }
    return weights, draw.uniform(0.2, 1.5, (2, 8, 8, 2))


def _problem(weights, image, s):
    """Rows √h zᶜ, √h zᶠ and, of each class, √h y: eqs. (3)–(8)."""
    shown = s[:, FINE][..., None] * image
    h = np.exp(-((image - shown) ** 2).sum((1, 2, 3)) / (0.25 * (image**2).sum()))
    odds = np.exp(_logits(weights, _layers(weights, shown)[1]))
    y = odds / odds.sum(1, keepdims=True)
    shallow, deep = (layer.sum((0, -1)) for layer in _layers(weights, image[None]))
    places = (np.arange(8) + 0.5) / 2 - 0.5
    larger = np.stack([np.interp(places, np.arange(4), row) for row in np.eye(4)], 1)
    deep = larger @ deep @ larger.T
    a_coarse = np.array([deep[i == COARSE].mean() for i in range(4)])
    a_fine = np.array([shallow[i == FINE].mean() for i in range(16)])
    root = np.sqrt(h)[:, None]
    return root * (s @ (T / T.sum(0)) * a_coarse), root * (s * a_fine), (root * y).T


def _optimum(coarse, fine, y):
    r"""Minimise ½‖zᶜTᵀw - y‖² + ½‖zᶠw - y‖² + λ_c‖wT‖₁ + λ_f‖w‖₁ by its dual.

    With :math:`H = L L^T` the curvature of the loss and c its slope, that is a least-squares
    problem in a box, :math:`\min \|L^{-1} (c - T a - b)\|` over :math:`|a| \le \lambda_c` and
    :math:`|b| \le \lambda_f`, which active sets end exactly; :math:`w = H^{-1} (c - T a - b)`.
    Where H is not regular, proximal points make it so. The conditions of an optimum are asserted.
    """
    both = np.concatenate([coarse @ T.T, fine])
    gram, corr = both.T @ both, both.T @ np.concatenate([y, y])
    near = 1e-2 * np.diag(gram).mean()
    root = np.linalg.cholesky(gram + near * np.eye(len(gram)))
    sides = np.concatenate([T, np.eye(len(T))], 1)
    levels = [0.01 * np.abs(y @ coarse).max(), 0.01 * np.abs(y @ fine).max()]
    box = np.repeat(levels, T.shape[::-1])
    w, before = np.zeros(len(T)), np.inf
    while np.abs(w - before).max() > 1e-13 * np.abs(w).max():
        right = np.linalg.solve(root, corr + near * w)
        found = lsq_linear(
            np.linalg.solve(root, sides), right, (-box, box), method="bvls", tol=1e-15
        )
        before, w = w, np.linalg.solve(root.T, -found.fun)
    left, sums = corr - gram @ w - sides @ found.x, np.concatenate([w @ T, w])
    assert np.abs(left).max() < 1e-11 * np.abs(corr).max()
    np.testing.assert_allclose(found.x * sums, box * np.abs(sums), atol=1e-11 * box.max())
    return w


def _check(mine, right):
    np.testing.assert_allclose(mine, right, rtol=0, atol=1e-5 * np.abs(right).max())


def test_weights_are_those_of_the_convex_problem():
    unique = []
    with jax.enable_x64(True):
        s = np.asarray(states(Draw(KEY, False, 1), jnp.arange(SAMPLES), len(T)), float)
        for seed in range(3):
            weights, images = _case(seed)
            # Where an image is black a shallow feature is zero: only the sum of such weights tells.
            images[1] *= ~np.isin(FINE, TWINS)[..., None]
            found = mint.explain(
                Model.from_function(_network, weights, input_shape=(8, 8, 2)),
                jnp.asarray(images),
                np.tile(np.arange(CLASSES), (2, 1)),
                (COARSE, FINE),
                key=KEY,
                num_samples=SAMPLES,
                chunk=2 * SAMPLES,
                layer="deep",
                shallow="shallow",
                antithetic=False,
                control=False,
            )
            assert found.converged.all()
            for i, image in enumerate(images):
                coarse, fine, ys = _problem(weights, image, s)
                rank = np.linalg.matrix_rank(np.concatenate([coarse @ T.T, fine]), rtol=1e-6)
                unique.append(bool(rank == len(T)))
                for j, y in enumerate(ys):
                    w, mine = _optimum(coarse, fine, y), np.asarray(found.fine_weights[i, j, :16])
                    _check(found.coarse_weights[i, j, :4], w @ T)
                    _check(coarse @ (mine @ T), coarse @ (w @ T))
                    _check(fine @ mine, fine @ w)
                    if unique[-1]:
                        _check(mine, w)
                        np.testing.assert_array_equal(mine != 0, np.abs(w) > 1e-9 * abs(w).max())
    assert unique == [True, False] * 3
