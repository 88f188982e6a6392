"""Every ported network as a plain function, `vgg16(params, images, gates=..., masks=...)`.

`params` are the variables that `load_model(name, weights).params` holds, or that the module's
`init` makes; gates and masks are those of `jaxplain.models.layers.tap`, and absent ones cost
nothing.

Example:
    >>> import jax, jax.numpy as jnp
    >>> from jaxplain.models import outline
    >>> shapes = outline("alexnet").params
    >>> images, gates = jnp.zeros((2, 224, 224, 3)), {"conv5": jnp.zeros(256)}
    >>> jax.eval_shape(alexnet, shapes, images, gates=gates).shape
    (2, 1000)
"""

from jaxplain.models.alexnet import alexnet, vgg_f
from jaxplain.models.inception import googlenet, inception_v3
from jaxplain.models.resnet import resnet18, resnet34, resnet50, resnet101, resnet152
from jaxplain.models.vgg import (
    vgg11,
    vgg11_bn,
    vgg13,
    vgg13_bn,
    vgg16,
    vgg16_bn,
    vgg19,
    vgg19_bn,
)

__all__ = [
    "alexnet",
    "googlenet",
    "inception_v3",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "vgg11",
    "vgg11_bn",
    "vgg13",
    "vgg13_bn",
    "vgg16",
    "vgg16_bn",
    "vgg19",
    "vgg19_bn",
    "vgg_f",
]
