"""ResNet-18, 34, 50, 101 and 152.

He et al. 2015, "Deep residual learning for image recognition", https://arxiv.org/abs/1512.03385,
with torchvision's details: the stride of a bottleneck is at its 3x3 convolution ("v1.5"). Layers
have torchvision's module names and are what those modules return: conv1, bn1, relu, maxpool,
layer1.0.conv1 (before batch norm), layer1.0.bn1, ..., layer1.0 (a block), layer1 (a stage),
avgpool, fc (the logits). A block calls its one `relu` several times: layer1.0.relu#0,
layer1.0.relu#1, ...

Example:
    >>> network = ResNet(depth=18, num_classes=5)
    >>> images = jax.ShapeDtypeStruct((1, 64, 64, 3), "float32")
    >>> shapes = jax.eval_shape(network.init, jax.random.key(0), images)
    >>> shapes["params"]["layer4.1.conv2"]["kernel"].shape
    (3, 3, 512, 512)
"""

import flax.linen as nn
import jax

from jaxplain.models.network import Network, Taps, as_function, batch_norm, conv
from jaxplain.models.pooling import adaptive_average_pool, max_pool

BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
WIDTHS = (64, 128, 256, 512)
BOTTLENECK_FROM = 50


class ResNet(Network):
    """A stem and four stages of residual blocks.

    Attributes:
        depth: 18, 34 (two 3x3 convolutions a block), 50, 101 or 152 (bottlenecks).
    """

    depth: int = 50

    def forward(self, x: jax.Array, tap: Taps, train: bool) -> jax.Array:
        """Run the layers."""
        if self.depth not in BLOCKS:
            raise ValueError(f"depth is {self.depth}; expected one of {list(BLOCKS)}")
        x = tap(conv(x, "conv1", 64, 7, stride=2, padding=3, bias=False), "conv1")
        x = tap(batch_norm(x, "bn1", train), "bn1")
        x = tap(nn.relu(x), "relu")
        x = tap(max_pool(x, "maxpool", 3, stride=2, padding=1), "maxpool")
        for stage, (blocks, width) in enumerate(
            zip(BLOCKS[self.depth], WIDTHS, strict=True), start=1
        ):
            for number in range(blocks):
                stride = 2 if stage > 1 and number == 0 else 1
                x = self._block(x, f"layer{stage}.{number}", width, stride, tap, train)
            x = tap(x, f"layer{stage}")
        x = tap(adaptive_average_pool(x, (1, 1)), "avgpool")
        x = x.reshape(x.shape[0], -1)
        return tap(nn.Dense(self.num_classes, name="fc")(x), "fc")

    def _block(
        self, x: jax.Array, name: str, width: int, stride: int, tap: Taps, train: bool
    ) -> jax.Array:
        """Run one residual block: (features, window, stride) of its convolutions, then the sum."""
        if self.depth >= BOTTLENECK_FROM:
            plan = ((width, 1, 1), (width, 3, stride), (4 * width, 1, 1))
        else:
            plan = ((width, 3, stride), (width, 3, 1))

        def conv_norm(
            x: jax.Array, conv_name: str, norm_name: str, features: int, size: int, step: int
        ):
            x = conv(x, conv_name, features, size, stride=step, padding=size // 2, bias=False)
            return tap(batch_norm(tap(x, conv_name), norm_name, train), norm_name)

        y = x
        for index, (features, size, step) in enumerate(plan, start=1):
            y = conv_norm(y, f"{name}.conv{index}", f"{name}.bn{index}", features, size, step)
            if index < len(plan):
                y = tap(nn.relu(y), f"{name}.relu#{index - 1}")
        if stride != 1 or x.shape[-1] != y.shape[-1]:
            down = f"{name}.downsample"
            x = conv_norm(x, f"{down}.0", f"{down}.1", y.shape[-1], 1, stride)
            x = tap(x, down)
        return tap(tap(nn.relu(x + y), f"{name}.relu#{len(plan) - 1}"), name)


resnet18 = as_function("resnet18", ResNet(depth=18))
resnet34 = as_function("resnet34", ResNet(depth=34))
resnet50 = as_function("resnet50", ResNet(depth=50))
resnet101 = as_function("resnet101", ResNet(depth=101))
resnet152 = as_function("resnet152", ResNet(depth=152))
