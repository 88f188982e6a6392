"""GoogLeNet and Inception-V3.

Szegedy et al. 2014, "Going deeper with convolutions", https://arxiv.org/abs/1409.4842, with batch
norm and a 3x3 window where the paper has 5x5, as torchvision's weights have it; Szegedy et al.
2015, "Rethinking the Inception architecture for computer vision", https://arxiv.org/abs/1512.00567.
Neither has the auxiliary classifiers that helped to train it from scratch: they do not take part in
a prediction.

Layers have torchvision's module names and are what those modules return: Conv2d_4a_3x3 is the
activation behind the ReLU, with Conv2d_4a_3x3.conv and Conv2d_4a_3x3.bn before it; inception3a,
Mixed_6e, maxpool1, avgpool, fc (the logits). Poolings inside a block of Inception-V3 are no modules
there; here they are Mixed_5b.avg_pool and Mixed_6a.max_pool, and the two halves of Mixed_7b and
Mixed_7c that are joined inside are Mixed_7b.branch3x3 and Mixed_7b.branch3x3dbl.

Example:
    >>> plain, (_, middle), (_, wide), pooled = GOOGLENET["inception3a"]
    >>> plain + middle + wide + pooled  # the channels that it joins
    256
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxplain.models.network import Network, Pair, Taps, as_function, batch_norm, conv, dropout
from jaxplain.models.pooling import adaptive_average_pool, average_pool, max_pool

# Branches of a block: widths of the 1x1; of the 1x1 and 3x3; of the 1x1 and 3x3; of the 1x1 behind
# the pooling.
GOOGLENET = {
    "inception3a": (64, (96, 128), (16, 32), 32),
    "inception3b": (128, (128, 192), (32, 96), 64),
    "inception4a": (192, (96, 208), (16, 48), 64),
    "inception4b": (160, (112, 224), (24, 64), 64),
    "inception4c": (128, (128, 256), (24, 64), 64),
    "inception4d": (112, (144, 288), (32, 64), 64),
    "inception4e": (256, (160, 320), (32, 128), 128),
    "inception5a": (256, (160, 320), (32, 128), 128),
    "inception5b": (384, (192, 384), (48, 128), 128),
}

# A convolution of a branch: name, features, window, stride, padding.
Step = tuple[str, int, int | Pair, int, int | Pair]


class _Pass:
    """One pass through a network of convolutions with batch norm: what every block needs."""

    def __init__(self, tap: Taps, train: bool):
        self.tap, self.train = tap, train

    def conv(
        self,
        x: jax.Array,
        name: str,
        features: int,
        size: int | Pair,
        stride: int = 1,
        padding: int | Pair = 0,
    ) -> jax.Array:
        """Convolution without bias, batch norm with epsilon 0.001, ReLU."""
        tap = self.tap
        init = nn.initializers.truncated_normal(0.1)
        x = conv(
            x, f"{name}.conv", features, size, stride=stride, padding=padding, bias=False, init=init
        )
        x = tap(x, f"{name}.conv")
        x = tap(batch_norm(x, f"{name}.bn", self.train, epsilon=1e-3), f"{name}.bn")
        return tap(nn.relu(x), name)

    def chain(self, x: jax.Array, block: str, *steps: Step) -> jax.Array:
        """Run convolutions one after the other."""
        for name, features, size, stride, padding in steps:
            x = self.conv(x, f"{block}.{name}", features, size, stride, padding)
        return x

    def max_pool(
        self,
        x: jax.Array,
        name: str,
        size: int,
        *,
        stride: int,
        padding: int = 0,
        ceil: bool = False,
    ) -> jax.Array:
        return self.tap(max_pool(x, name, size, stride=stride, padding=padding, ceil=ceil), name)

    def pooled(self, x: jax.Array, block: str, features: int) -> jax.Array:
        """Average over 3x3 and mix: the last branch of most blocks of Inception-V3."""
        name = f"{block}.avg_pool"
        x = self.tap(average_pool(x, name, 3, stride=1, padding=1), name)
        return self.conv(x, f"{block}.branch_pool", features, 1)

    def join(self, name: str, *branches: jax.Array) -> jax.Array:
        return self.tap(jnp.concatenate(branches, -1), name)

    def classify(self, x: jax.Array, num_classes: int, drop: float) -> jax.Array:
        x = self.tap(adaptive_average_pool(x, (1, 1)), "avgpool")
        x = dropout(x.reshape(x.shape[0], -1), drop, self.train)
        return self.tap(nn.Dense(num_classes, name="fc")(x), "fc")


class GoogLeNet(Network):
    """Nine blocks of four parallel branches."""

    torch_only = ("aux1.", "aux2.")

    def forward(self, x: jax.Array, tap: Taps, train: bool) -> jax.Array:
        """Run the layers."""
        run = _Pass(tap, train)
        x = run.conv(x, "conv1", 64, 7, 2, 3)
        x = run.max_pool(x, "maxpool1", 3, stride=2, ceil=True)
        x = run.conv(x, "conv2", 64, 1)
        x = run.conv(x, "conv3", 192, 3, 1, 1)
        x = run.max_pool(x, "maxpool2", 3, stride=2, ceil=True)
        for name, widths in GOOGLENET.items():
            x = self._block(run, x, name, *widths)
            if name == "inception3b":
                x = run.max_pool(x, "maxpool3", 3, stride=2, ceil=True)
            elif name == "inception4e":
                x = run.max_pool(x, "maxpool4", 2, stride=2, ceil=True)
        return run.classify(x, self.num_classes, 0.2)

    def _block(
        self, run: _Pass, x: jax.Array, name: str, plain: int, middle: Pair, wide: Pair, pooled: int
    ) -> jax.Array:
        pool = run.max_pool(x, f"{name}.branch4.0", 3, stride=1, padding=1, ceil=True)
        return run.join(
            name,
            run.conv(x, f"{name}.branch1", plain, 1),
            run.chain(
                x, name, ("branch2.0", middle[0], 1, 1, 0), ("branch2.1", middle[1], 3, 1, 1)
            ),
            run.chain(x, name, ("branch3.0", wide[0], 1, 1, 0), ("branch3.1", wide[1], 3, 1, 1)),
            run.conv(pool, f"{name}.branch4.1", pooled, 1),
        )


class InceptionV3(Network):
    """Factorised convolutions in eleven blocks; native size 299."""

    torch_only = ("AuxLogits.",)

    def forward(self, x: jax.Array, tap: Taps, train: bool) -> jax.Array:
        """Run the layers."""
        run = _Pass(tap, train)
        x = run.conv(x, "Conv2d_1a_3x3", 32, 3, 2)
        x = run.conv(x, "Conv2d_2a_3x3", 32, 3)
        x = run.conv(x, "Conv2d_2b_3x3", 64, 3, 1, 1)
        x = run.max_pool(x, "maxpool1", 3, stride=2)
        x = run.conv(x, "Conv2d_3b_1x1", 80, 1)
        x = run.conv(x, "Conv2d_4a_3x3", 192, 3)
        x = run.max_pool(x, "maxpool2", 3, stride=2)
        for name, pooled in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
            x = self._square(run, x, name, pooled)
        x = self._shrink_to_17(run, x, "Mixed_6a")
        for name, width in (
            ("Mixed_6b", 128),
            ("Mixed_6c", 160),
            ("Mixed_6d", 160),
            ("Mixed_6e", 192),
        ):
            x = self._factorised(run, x, name, width)
        x = self._shrink_to_8(run, x, "Mixed_7a")
        for name in ("Mixed_7b", "Mixed_7c"):
            x = self._expanded(run, x, name)
        return run.classify(x, self.num_classes, 0.5)

    def _square(self, run: _Pass, x: jax.Array, name: str, pooled: int) -> jax.Array:
        """Figure 5: 5x5, and two 3x3 in its place."""
        return run.join(
            name,
            run.conv(x, f"{name}.branch1x1", 64, 1),
            run.chain(x, name, ("branch5x5_1", 48, 1, 1, 0), ("branch5x5_2", 64, 5, 1, 2)),
            run.chain(
                x,
                name,
                ("branch3x3dbl_1", 64, 1, 1, 0),
                ("branch3x3dbl_2", 96, 3, 1, 1),
                ("branch3x3dbl_3", 96, 3, 1, 1),
            ),
            run.pooled(x, name, pooled),
        )

    def _shrink_to_17(self, run: _Pass, x: jax.Array, name: str) -> jax.Array:
        """Figure 10: halve the resolution without a bottleneck."""
        return run.join(
            name,
            run.conv(x, f"{name}.branch3x3", 384, 3, 2),
            run.chain(
                x,
                name,
                ("branch3x3dbl_1", 64, 1, 1, 0),
                ("branch3x3dbl_2", 96, 3, 1, 1),
                ("branch3x3dbl_3", 96, 3, 2, 0),
            ),
            run.max_pool(x, f"{name}.max_pool", 3, stride=2),
        )

    def _factorised(self, run: _Pass, x: jax.Array, name: str, width: int) -> jax.Array:
        """Figure 6: 7x7 as 1x7 and 7x1."""
        flat, tall = ((1, 7), 1, (0, 3)), ((7, 1), 1, (3, 0))
        return run.join(
            name,
            run.conv(x, f"{name}.branch1x1", 192, 1),
            run.chain(
                x,
                name,
                ("branch7x7_1", width, 1, 1, 0),
                ("branch7x7_2", width, *flat),
                ("branch7x7_3", 192, *tall),
            ),
            run.chain(
                x,
                name,
                ("branch7x7dbl_1", width, 1, 1, 0),
                ("branch7x7dbl_2", width, *tall),
                ("branch7x7dbl_3", width, *flat),
                ("branch7x7dbl_4", width, *tall),
                ("branch7x7dbl_5", 192, *flat),
            ),
            run.pooled(x, name, 192),
        )

    def _shrink_to_8(self, run: _Pass, x: jax.Array, name: str) -> jax.Array:
        """Figure 10 again, with 7x7 factorised."""
        return run.join(
            name,
            run.chain(x, name, ("branch3x3_1", 192, 1, 1, 0), ("branch3x3_2", 320, 3, 2, 0)),
            run.chain(
                x,
                name,
                ("branch7x7x3_1", 192, 1, 1, 0),
                ("branch7x7x3_2", 192, (1, 7), 1, (0, 3)),
                ("branch7x7x3_3", 192, (7, 1), 1, (3, 0)),
                ("branch7x7x3_4", 192, 3, 2, 0),
            ),
            run.max_pool(x, f"{name}.max_pool", 3, stride=2),
        )

    def _expanded(self, run: _Pass, x: jax.Array, name: str) -> jax.Array:
        """Figure 7: 1x3 and 3x1 side by side."""

        def halves(x: jax.Array, branch: str, first: str, second: str) -> jax.Array:
            return run.join(
                f"{name}.{branch}",
                run.conv(x, f"{name}.{first}", 384, (1, 3), 1, (0, 1)),
                run.conv(x, f"{name}.{second}", 384, (3, 1), 1, (1, 0)),
            )

        plain = run.conv(x, f"{name}.branch1x1", 320, 1)
        single = run.conv(x, f"{name}.branch3x3_1", 384, 1)
        single = halves(single, "branch3x3", "branch3x3_2a", "branch3x3_2b")
        double = run.chain(
            x, name, ("branch3x3dbl_1", 448, 1, 1, 0), ("branch3x3dbl_2", 384, 3, 1, 1)
        )
        double = halves(double, "branch3x3dbl", "branch3x3dbl_3a", "branch3x3dbl_3b")
        return run.join(name, plain, single, double, run.pooled(x, name, 192))


googlenet = as_function("googlenet", GoogLeNet())
inception_v3 = as_function("inception_v3", InceptionV3())
