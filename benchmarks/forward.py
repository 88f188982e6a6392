"""How fast the large networks run here: pictures a second, share of the processor's peak, torch.

Run `python benchmarks/forward.py`; where torch and torchvision are installed (`pip install
jaxplain[bench]`), each network also runs there with the same weights, in the same run. XLA gets the
flags that the command line gives it (docs/performance.md); `XLA_FLAGS` overrides them.
"""

import importlib.util
import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from figures import Figures, run, seconds, time_ratio

import jaxplain as jxp
from jaxplain.adapters import LinenApply
from jaxplain.cli.compilation import tune
from jaxplain.models.weights.sources import Loader
from jaxplain.models.zoo import ARCHITECTURES

NETWORKS = ("vgg16", "resnet50", "inception_v3")
WITH_TORCH = all(importlib.util.find_spec(name) for name in ("torch", "torchvision"))


def main(figures: Figures) -> None:
    """Forward, and forward and backward to the pictures, of VGG-16, ResNet-50 and Inception-V3.

    Backward twice: by `jax.grad`, and by `jaxplain.gradient`, which has ways of its own for
    poolings, for convolutions of few channels, and for large dense layers.
    """
    tune()
    peak = matmul_peak()
    figures.add("forward/matmul_peak_gflops", peak / 1e9)
    pairs = 3 if figures.quick else 9
    for name in NETWORKS[:2] if figures.quick else NETWORKS:
        for batch in (1,) if figures.quick else (1, 8):
            measure(figures, name, batch, peak, pairs)


def measure(figures: Figures, name: str, batch: int, peak: float, pairs: int) -> None:
    """Time one network at one batch size."""
    architecture = next(a for a in ARCHITECTURES if a.name == name)
    network = architecture.build(1000)
    theirs = torch_network(name) if WITH_TORCH else None
    if theirs is None:
        variables = jax.jit(network.init)(
            jax.random.key(0), jnp.zeros((1, *architecture.input_shape))
        )
    else:
        variables = Loader(name, network)(theirs.state_dict(), 1000).variables
    images = jax.random.normal(jax.random.key(1), (batch, *architecture.input_shape))

    def total(images: jax.Array, variables: Any) -> jax.Array:
        return network.apply(variables, images)[:, 0].sum()

    forward, backward = jax.jit(network.apply), jax.jit(jax.grad(total))
    model = jxp.Model.from_function(
        LinenApply(network), variables, input_shape=architecture.input_shape, name=name
    )
    targets = jnp.zeros(batch, int)
    work = flops(network.apply, variables, images)
    # Backward to the pictures is one more product for each: those with the transposed kernels.
    for kind, ours, times in (
        ("forward", lambda: forward(variables, images), 1),
        ("forward_backward", lambda: backward(images, variables), 2),
        ("gradient", lambda: jxp.gradient(model, images, targets), 2),
    ):
        label = f"forward/{name}/batch{batch}/{kind}"
        seconds(ours)
        taken = statistics.median(seconds(ours) for _ in range(pairs))
        figures.add(f"{label}/images_per_second", batch / taken)
        figures.add(f"{label}/share_of_matmul_peak", times * work / taken / peak)
        if theirs is not None:
            peer = torch_call(theirs, images, backward=times == 2)
            if times == 1:
                difference = np.abs(np.asarray(ours()) - peer().numpy()).max()
                assert difference < 1e-3 * np.abs(peer().numpy()).max(), difference
            figures.add(f"{label}/over_torch", time_ratio(ours, peer, pairs=pairs), at_most=1.1)


def matmul_peak() -> float:
    """Floating-point operations a second of a large product of float32 matrices."""
    size = 2048
    left, right = jax.random.normal(jax.random.key(0), (2, size, size))
    multiply = jax.jit(jnp.matmul)
    seconds(lambda: multiply(left, right))
    return 2 * size**3 / min(seconds(lambda: multiply(left, right)) for _ in range(10))


def flops(function: Callable[..., Any], *arguments: Any) -> float:
    """Operations of the convolutions and matrix products of a call, counted off its program."""
    count = 0
    for equation in jax.make_jaxpr(function)(*arguments).jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            kernel, output = equation.invars[1].aval.shape, equation.outvars[0].aval.shape
            count += 2 * np.prod(kernel[:3], dtype=float) * np.prod(output, dtype=float)
        elif equation.primitive.name == "dot_general":
            left, output = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
            contracted = equation.params["dimension_numbers"][0][0]
            count += 2 * np.prod([left[i] for i in contracted]) * np.prod(output, dtype=float)
    return float(count)


def torch_network(name: str) -> Any:
    """The network of torchvision with random weights, ready to predict."""
    import torch
    from torchvision import models

    torch.manual_seed(0)
    heads = {"init_weights": True, "aux_logits": False} if name == "inception_v3" else {}
    return getattr(models, name)(weights=None, **heads).eval()


def torch_call(network: Any, images: jax.Array, *, backward: bool) -> Callable[[], Any]:
    """What torch does for the same answer."""
    import torch

    for parameter in network.parameters():
        parameter.requires_grad_(False)
    pictures = torch.from_numpy(np.array(images).transpose(0, 3, 1, 2).copy())

    def forward() -> Any:
        with torch.inference_mode():
            return network(pictures)

    def forward_backward() -> Any:
        leaf = pictures.clone().requires_grad_(True)
        network(leaf)[:, 0].sum().backward()
        return leaf.grad

    return forward_backward if backward else forward


if __name__ == "__main__":
    run(main)
