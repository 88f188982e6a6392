"""Slow NumPy float64 versions, written from the papers, that share no code with the package.

Relevance: a network is a list of layers on flat vectors, every convolution a dense matrix. Each
layer has `forward(x)` and `backward(x, relevance of its output)`, which returns the relevance of x.
Equations: Bach et al. 2015 (epsilon, alpha-beta), Montavon et al. 2017 (z^B), Andeol et al. 2021
(gamma), Zhang et al. 2016 (excitation backprop).
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

Rule = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def convolution_matrix(
    kernel: np.ndarray,
    shape: tuple[int, int, int],
    *,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0)),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Return the matrix (H W C, H' W' K) of a convolution, and (H', W', K).

    kernel: (kh, kw, C / groups, K); shape: (H, W, C) of the input.
    """
    height, width, channels = shape
    kh, kw, per_group, filters = kernel.shape
    assert per_group * groups == channels
    size = [
        (n + sum(p) - (k - 1) * d - 1) // s + 1
        for n, k, s, p, d in zip((height, width), (kh, kw), stride, padding, dilation, strict=True)
    ]
    matrix = np.zeros((height, width, channels, *size, filters))
    for i, j in np.ndindex(*size):
        for a, b in np.ndindex(kh, kw):
            y = i * stride[0] + a * dilation[0] - padding[0][0]
            x = j * stride[1] + b * dilation[1] - padding[1][0]
            if not (0 <= y < height and 0 <= x < width):
                continue
            for k in range(filters):
                group = k // (filters // groups)
                for c in range(per_group):
                    matrix[y, x, group * per_group + c, i, j, k] += kernel[a, b, c, k]
    out = (size[0], size[1], filters)
    return matrix.reshape(math.prod(shape), math.prod(out)), out


def batch_norm(
    matrix: np.ndarray,
    bias: np.ndarray,
    scale: np.ndarray,
    shift: np.ndarray,
    mean: np.ndarray,
    var: np.ndarray,
    epsilon: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Fold a batch norm, given for each output, into a dense layer."""
    factor = scale / np.sqrt(var + epsilon)
    return matrix * factor, (bias - mean) * factor + shift


def _sign(z: np.ndarray) -> np.ndarray:
    return np.where(z >= 0, 1.0, -1.0)


def epsilon_rule(epsilon: float = 1e-6) -> Rule:
    """R_i = sum_j x_i w_ij / (z_j + epsilon sign z_j) R_j."""

    def rule(x, w, b, relevance):
        z = x @ w + b
        return np.array(
            [
                sum(
                    x[i] * w[i, j] / (z[j] + epsilon * _sign(z[j])) * relevance[j]
                    for j in range(len(z))
                )
                for i in range(len(x))
            ]
        )

    return rule


def alpha_beta_rule(alpha: float, beta: float, epsilon: float = 1e-6) -> Rule:
    """R_i = sum_j (alpha z_ij^+ / z_j^+ - beta z_ij^- / z_j^-) R_j, where z_ij = x_i w_ij."""

    def rule(x, w, b, relevance):
        z = x[:, None] * w
        up, down = np.maximum(z, 0), np.minimum(z, 0)
        z_up, z_down = up.sum(0) + np.maximum(b, 0), down.sum(0) + np.minimum(b, 0)
        share = alpha * up / (z_up + epsilon * _sign(z_up)) - beta * down / (
            z_down + epsilon * _sign(z_down)
        )
        return share @ relevance

    return rule


def gamma_rule(gamma: float, epsilon: float = 1e-6) -> Rule:
    """Contributions of the output's own sign weigh 1 + gamma, whatever the signs of the inputs."""

    def rule(x, w, b, relevance):
        z, total = x[:, None] * w, x @ w + b
        found = np.zeros_like(x)
        for j in range(len(total)):
            if total[j] == 0:
                continue
            favoured = np.maximum if total[j] > 0 else np.minimum
            shares = z[:, j] + gamma * favoured(z[:, j], 0)
            whole = shares.sum() + b[j] + gamma * favoured(b[j], 0)
            found += shares / (whole + epsilon * _sign(whole)) * relevance[j]
        return found

    return rule


def box_rule(low: np.ndarray, high: np.ndarray, epsilon: float = 1e-6) -> Rule:
    """R_i = sum_j (x_i w_ij - l_i w_ij^+ - h_i w_ij^-) / sum_i (...) R_j."""

    def rule(x, w, b, relevance):
        z = x[:, None] * w - low[:, None] * np.maximum(w, 0) - high[:, None] * np.minimum(w, 0)
        whole = z.sum(0)
        return (z / (whole + epsilon * _sign(whole))) @ relevance

    return rule


def flat_rule(epsilon: float = 1e-6) -> Rule:
    """Every input in the window of an output gets the same share; zero weights lie outside it."""

    def rule(x, w, b, relevance):
        connected = (w != 0).astype(float)
        return (connected / (connected.sum(0) + epsilon)) @ relevance

    return rule


def excitation_rule(sign: float = 1.0) -> Rule:
    """P_i = sum_j x_i w_ij^+ / sum_i x_i w_ij^+ P_j; 0 where the denominator is."""

    def rule(x, w, b, relevance):
        z = x[:, None] * np.maximum(sign * w, 0)
        whole = z.sum(0)
        share = np.divide(z, whole, out=np.zeros_like(z), where=whole != 0)
        return share @ relevance

    return rule


@dataclasses.dataclass
class Affine:
    """z = x w + b with a rule."""

    weight: np.ndarray
    bias: np.ndarray
    rule: Rule

    def forward(self, x):
        return x @ self.weight + self.bias

    def backward(self, x, relevance):
        return self.rule(x, self.weight, self.bias, relevance)


class Relu:
    """Hands its relevance on."""

    def forward(self, x):
        return np.maximum(x, 0)

    def backward(self, x, relevance):
        return relevance


@dataclasses.dataclass
class Leaky(Relu):
    """A leaky ReLU hands its relevance on, too."""

    slope: float

    def forward(self, x):
        return np.where(x > 0, x, self.slope * x)


@dataclasses.dataclass
class Average:
    """A linear map that shares relevance in proportion to the contributions."""

    weight: np.ndarray

    def forward(self, x):
        return x @ self.weight

    def backward(self, x, relevance):
        z = x[:, None] * self.weight
        whole = z.sum(0)
        return np.divide(z, whole, out=np.zeros_like(z), where=whole != 0) @ relevance


@dataclasses.dataclass
class MaxPool:
    """Windows of 2 x 2, step 2; the first winner takes all."""

    shape: tuple[int, int, int]

    def _windows(self):
        height, width, channels = self.shape
        index = np.arange(height * width * channels).reshape(self.shape)
        for i, j, k in np.ndindex(height // 2, width // 2, channels):
            yield index[2 * i : 2 * i + 2, 2 * j : 2 * j + 2, k].ravel()

    def forward(self, x):
        return np.array([x[w].max() for w in self._windows()])

    def backward(self, x, relevance):
        found = np.zeros_like(x)
        for window, r in zip(self._windows(), relevance, strict=True):
            found[window[x[window].argmax()]] += r
        return found


@dataclasses.dataclass
class Sum:
    """The sum of branches; relevance in proportion to what each gives."""

    branches: list[list]

    def forward(self, x):
        return sum(run(b, x)[-1] for b in self.branches)

    def backward(self, x, relevance):
        outs = [run(b, x)[-1] for b in self.branches]
        whole = sum(outs)
        share = np.divide(relevance, whole, out=np.zeros_like(whole), where=whole != 0)
        return sum(sweep(b, x, share * o)[0] for b, o in zip(self.branches, outs, strict=True))


@dataclasses.dataclass
class Concatenate:
    """Branches (H, W, C_i) side by side along the channels."""

    branches: list[list]
    channels: list[int]

    def _split(self, values):
        table = values.reshape(-1, sum(self.channels))
        ends = np.cumsum(self.channels)[:-1]
        return [part.ravel() for part in np.split(table, ends, axis=1)]

    def forward(self, x):
        outs = [
            run(b, x)[-1].reshape(-1, c) for b, c in zip(self.branches, self.channels, strict=True)
        ]
        return np.concatenate(outs, 1).ravel()

    def backward(self, x, relevance):
        parts = self._split(relevance)
        return sum(sweep(b, x, r)[0] for b, r in zip(self.branches, parts, strict=True))


def run(layers: list, x: np.ndarray) -> list[np.ndarray]:
    """Return x and the output of every layer."""
    found = [np.asarray(x, np.float64)]
    for layer in layers:
        found.append(layer.forward(found[-1]))
    return found


def sweep(layers: list, x: np.ndarray, relevance: np.ndarray) -> list[np.ndarray]:
    """Return the relevance of x and of the output of every layer."""
    values = run(layers, x)
    found = [np.asarray(relevance, np.float64)]
    for layer, value in zip(reversed(layers), reversed(values[:-1]), strict=True):
        found.append(layer.backward(value, found[-1]))
    return found[::-1]
