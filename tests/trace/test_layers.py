"""Names, shapes, receptive fields; what capture, split and edit refuse."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from jaxplain.model import Model
from jaxplain.trace import backpropagate, capture, edit, split
from jaxplain.trace import rules as R


def array(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


IMAGES = array(0, 2, 6, 6, 2)
KERNEL = array(1, 3, 3, 2, 2)


def conv(x, w=KERNEL, strides=(1, 1), padding="SAME", **more):
    return lax.conv_general_dilated(
        x, w, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), **more
    )


def of(apply, params=(), **described):
    return Model.from_function(apply, params, input_shape=(6, 6, 2), **described)


# -- names -----------------------------------------------------------------------------------------


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.relu(nn.Conv(2, (3, 3), name="conv")(x))


class Nested(nn.Module):
    @nn.compact
    def __call__(self, x):
        block = Block(name="block")
        x = checkpoint_name(block(block(x)), "tagged")
        x = nn.remat(Block)(name="saved")(x)
        return nn.Dense(3, name="head")(x.mean((1, 2)))


def test_names_are_tags_and_paths_in_evaluation_order():
    model = Model.from_linen(Nested(), Nested().init(jax.random.key(0), IMAGES))
    assert [layer.name for layer in model.layers((6, 6, 2))] == [
        "block.conv#0", "block#0", "block.conv#1", "block#1", "tagged", "saved.conv", "saved",
        "head",
    ]  # fmt: skip
    found = capture(model, IMAGES, ["block#1", "tagged", "head", "logits"])
    np.testing.assert_array_equal(found["block#1"], found["tagged"])
    np.testing.assert_array_equal(found["head"], found["logits"])


def test_a_scanned_module_is_captured_where_it_ends():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            def body(block, x, _):
                return block(x), None

            scan = nn.scan(body, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
            x, _ = scan(Block(name="blocks"), x, None)
            return nn.Dense(3, name="head")(checkpoint_name(x, "end").mean((1, 2)))

    model = Model.from_linen(Net(), Net().init(jax.random.key(0), IMAGES))
    names = [layer.name for layer in model.layers((6, 6, 2))]
    assert names[-2:] == ["end", "head"]
    found = backpropagate(model, IMAGES, jnp.array([0, 1]), R.GUIDED_BACKPROP, layers=("end",))
    assert found.layers["end"].shape == (2, 6, 6, 2)
    assert "relu" in [s.kind for s in found.audit.sites]


def test_a_name_that_several_tensors_have_is_refused():
    def apply(p, x):
        x = checkpoint_name(conv(x), "same")
        return checkpoint_name(conv(x), "same").mean((1, 2))

    model = of(apply)
    assert [layer.name for layer in model.layers()] == ["same#0", "same#1"]
    for use in (
        lambda: capture(model, IMAGES, ["same"]),
        lambda: split(model, "same"),
        lambda: edit(model, gates={"same": jnp.ones(2)})(IMAGES),
        lambda: backpropagate(model, IMAGES, jnp.array([0, 1]), R.lrp_epsilon(), layers=("same",)),
    ):
        with pytest.raises(ValueError, match="2 tensors; say which: same#0, same#1"):
            use()
    assert not jnp.allclose(*capture(model, IMAGES, ["same#0", "same#1"]).values())


def test_the_same_tag_laid_twice_is_one_name():
    model = of(lambda p, x: checkpoint_name(checkpoint_name(x * 2, "a"), "a").mean((1, 2)))
    assert [layer.name for layer in model.layers()] == ["a"]


def test_a_tag_whose_result_nobody_reads_names_the_tensor():
    """Otherwise edits would do nothing and attributions be zero."""

    def apply(p, x):
        x = jax.nn.relu(conv(x))
        checkpoint_name(x, "seen")
        return x.mean((1, 2)) @ p

    model = of(apply, array(2, 2, 3))
    assert float(abs(edit(model, gates={"seen": jnp.zeros(2)})(IMAGES)).max()) == 0
    found = backpropagate(model, IMAGES, jnp.array([0, 1]), R.GUIDED_BACKPROP, layers=("seen",))
    assert float(abs(found.layers["seen"]).max()) > 0
    assert next(s.layer for s in found.audit.sites) == "seen"


def test_names_inside_a_loop_are_refused_with_the_reason():
    def apply(p, x):
        x, _ = lax.scan(lambda x, _: (checkpoint_name(conv(x), "step"), None), x, None, length=2)
        return x.mean((1, 2))

    with pytest.raises(ValueError, match="'step' lies inside a scan or cond"):
        capture(of(apply), IMAGES, ["step"])


@pytest.mark.parametrize("use", [
    lambda m: capture(m, IMAGES, ["stemm"]),
    lambda m: split(m, "stemm"),
    lambda m: edit(m, masks={"stemm": jnp.ones((6, 6))})(IMAGES),
    lambda m: backpropagate(m, IMAGES, jnp.array([0, 1]), R.lrp_epsilon(), layers=("stemm",)),
])  # fmt: skip
def test_an_unknown_name_is_refused_with_the_nearest(use):
    model = of(lambda p, x: checkpoint_name(conv(x), "stem").mean((1, 2)))
    with pytest.raises(ValueError, match="unknown layer 'stemm'; nearest: stem"):
        use(model)


def test_a_layer_that_does_not_lead_to_the_logits_is_refused():
    def apply(p, x):
        checkpoint_name(conv(x) * 2, "aside")
        checkpoint_name(p * 2, "constant")
        return conv(x).mean((1, 2)) + checkpoint_name(p, "bias")

    model = of(apply, array(3, 1, 2))
    for name in ("aside", "bias"):
        with pytest.raises(ValueError, match=f"no path leads from layer '{name}'"):
            backpropagate(model, IMAGES, jnp.array([0, 1]), R.lrp_epsilon(), layers=(name,))
    assert capture(model, IMAGES, ["aside"])["aside"].shape == IMAGES.shape


# -- split and edit --------------------------------------------------------------------------------


def test_a_skip_path_round_the_cut_is_refused():
    def apply(p, x):
        x = checkpoint_name(jax.nn.relu(conv(x)), "stem")
        x = checkpoint_name(x + checkpoint_name(conv(x), "branch"), "sum")
        return x.mean((1, 2))

    model = of(apply)
    with pytest.raises(ValueError, match="'branch' does not separate"):
        split(model, "branch")
    for name in ("stem", "sum", "input"):
        prefix, suffix = split(model, name)
        np.testing.assert_allclose(suffix(prefix(IMAGES)), model(IMAGES), rtol=1e-5)


def test_a_suffix_refuses_another_tensor():
    suffix = split(of(lambda p, x: checkpoint_name(conv(x), "a").mean((1, 2))), "a")[1]
    with pytest.raises(ValueError, match="shape"):
        suffix(jnp.ones((2, 5, 6, 2)))
    with pytest.raises(ValueError, match="int32"):
        suffix(jnp.ones((2, 6, 6, 2), jnp.int32))


def test_split_needs_the_image_shape():
    model = Model.from_function(lambda p, x: checkpoint_name(x, "a").mean((1, 2)))
    with pytest.raises(ValueError, match="image_shape is needed"):
        split(model, "a")
    assert split(model, "a", image_shape=(4, 4, 1))[1].input_shape == (4, 4, 1)


def test_parts_keep_their_layers():
    def apply(p, x):
        x = checkpoint_name(conv(x), "a")
        return checkpoint_name(jax.nn.relu(x), "b").mean((1, 2))

    prefix, suffix = split(of(apply), "a")
    assert [layer.name for layer in suffix.layers()] == ["b"]
    assert capture(prefix, IMAGES, ["a"])["a"].shape == (2, 6, 6, 2)


def two(p, x):
    x = checkpoint_name(conv(x), "a")
    return checkpoint_name(jax.nn.relu(x), "b").mean((1, 2))


def test_edits_apply_in_order_and_can_be_edited_again():
    gates, mask, shift = jnp.array([2.0, 0.5]), array(4, 6, 6), array(5, 2, 6, 6, 2)
    value = array(6, 2, 6, 6, 2)
    model = edit(
        of(two), replace={"a": value}, gates={"a": gates}, masks={"a": mask}, add={"a": shift}
    )
    expected = value * gates[None, None, None] * mask[None, ..., None] + shift
    np.testing.assert_allclose(capture(model, IMAGES, ["a"])["a"], expected, rtol=1e-6)
    assert [layer.name for layer in model.layers()] == ["a", "b"]
    again = edit(model, gates={"b": jnp.array([1.0, 0.0])})
    expected = jax.nn.relu(expected).mean((1, 2)) * jnp.array([[1.0, 0.0]])
    np.testing.assert_allclose(again(IMAGES), expected, rtol=1e-5, atol=1e-6)


def test_a_tensor_with_two_names_is_edited_by_either():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            tag = Tagged(name="module")
            return tag(x).mean((1, 2))

    class Tagged(nn.Module):
        @nn.compact
        def __call__(self, x):
            return checkpoint_name(x * 2, "tag")

    model = Model.from_linen(Net(), {})
    half, quarter = jnp.array([0.5, 1.0]), jnp.array([0.25, 1.0])
    for gates in ({"module": half}, {"tag": half}):
        np.testing.assert_allclose(
            edit(model, gates=gates)(IMAGES), model(IMAGES) * half[None], rtol=1e-5
        )
    both = edit(model, gates={"module": half, "tag": quarter})
    np.testing.assert_allclose(both(IMAGES), model(IMAGES) * (half * quarter)[None], rtol=1e-5)


def test_masks_on_the_input():
    mask = jnp.zeros((6, 6)).at[2, 3].set(1.0)
    found = edit(of(two), masks={"input": mask})(IMAGES)
    np.testing.assert_allclose(found, two((), IMAGES * mask[None, ..., None]), rtol=1e-6)


@pytest.mark.parametrize(("changes", "message"), [
    ({"gates": {"a": jnp.ones(3)}}, r"gates\['a'\].*\(3,\)"),
    ({"masks": {"a": jnp.ones((5, 6))}}, r"masks\['a'\].*\(5, 6\)"),
    ({"replace": {"a": jnp.ones((2, 6, 6, 3))}}, r"replace\['a'\].*\(2, 6, 6, 3\)"),
    ({"add": {"a": jnp.ones((3, 6, 6, 2))}}, r"add\['a'\].*\(3, 6, 6, 2\)"),
])  # fmt: skip
def test_changes_of_the_wrong_shape_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        edit(of(two), **changes)(IMAGES)


def test_derivatives_by_the_gates():
    model = edit(of(two), gates={"b": jnp.ones(2)})

    def total(model):
        return (model(IMAGES) ** 2).sum()

    gradient = jax.grad(total)(model).params[1]["gates"]["b"]
    expected = (2 * two((), IMAGES) ** 2).sum(0)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)


# -- receptive fields ------------------------------------------------------------------------------


def tagged(function):
    return lambda p, x: (lambda y: y.reshape(y.shape[0], -1)[:, :2] + 0 * x.mean((1, 2)))(
        checkpoint_name(function(x), "layer")
    )


def pool(x, size, stride, padding):
    return lax.reduce_window(
        x, -jnp.inf, lax.max, (1, size, size, 1), (1, stride, stride, 1),
        ((0, 0), padding, padding, (0, 0)),
    )  # fmt: skip


def inception(x):
    left = conv(x, array(7, 1, 1, 2, 2))
    right = conv(conv(x, array(8, 3, 3, 2, 2)), array(9, 5, 1, 2, 2))
    return jnp.concatenate([left, right, pool(x, 3, 1, (1, 1))], -1)


WINDOWED = {
    "conv": conv,
    "valid": lambda x: conv(x, padding="VALID"),
    "stride 2": lambda x: conv(x, strides=(2, 1)),
    "asymmetric": lambda x: conv(x, padding=((2, 0), (0, 3))),
    "dilated": lambda x: conv(x, rhs_dilation=(2, 3), padding=((2, 2), (3, 3))),
    "even": lambda x: conv(x, array(10, 2, 4, 2, 2), (1, 2), "VALID"),
    "chain": lambda x: conv(pool(conv(x), 2, 2, (0, 0)), strides=(2, 2)),
    "pool 3/2": lambda x: pool(jax.nn.relu(conv(x)), 3, 2, (0, 1)),
    "average": lambda x: nn.avg_pool(conv(x), (2, 2), (2, 2)),
    "residual": lambda x: conv(conv(x)) + x,
    "strided residual": lambda x: (
        conv(conv(x, strides=(2, 2))) + conv(x, array(11, 1, 1, 2, 2), (2, 2))
    ),
    "inception": inception,
    "channels first": lambda x: lax.conv_general_dilated(
        x.transpose(0, 3, 1, 2), KERNEL.transpose(3, 2, 0, 1), (2, 2), "SAME"
    ),
    "1x1 as dense": lambda x: conv(x) @ array(12, 2, 3),
    "padded": lambda x: conv(jnp.pad(x, ((0, 0), (3, 1), (0, 2), (0, 0))), padding="VALID"),
    "cropped": lambda x: conv(x)[:, 1:, 2:-1],
    "every second": lambda x: conv(x)[:, ::2, 1::2],
    "batch norm": lambda x: nn.BatchNorm(use_running_average=True).apply(
        {"params": {"scale": jnp.ones(2), "bias": jnp.ones(2)},
         "batch_stats": {"mean": jnp.ones(2), "var": jnp.ones(2)}}, conv(x)
    ),
}  # fmt: skip
UNWINDOWED = {
    "global": lambda x: conv(x) - x.mean((1, 2), keepdims=True),
    "flipped": lambda x: conv(x)[:, ::-1],
    "transposed convolution": lambda x: conv(x, lhs_dilation=(2, 2), padding=((1, 1), (1, 1))),
    "cumulated": lambda x: jnp.cumsum(x, 1),
    "rolled": lambda x: jnp.roll(x, 1, 2),
    "resized": lambda x: jax.image.resize(x, (2, 4, 4, 2), "bilinear"),
    "mixed strides": lambda x: conv(x, strides=(2, 2)) + conv(x)[:, :3, :3],
    "stacked along a side": lambda x: jnp.concatenate([x, x], 1),
    "sorted": lambda x: jnp.sort(x, 1),
    "gathered": lambda x: x[:, jnp.array([3, 0, 1])],
    "swapped sides": lambda x: conv(x) + conv(x).transpose(0, 2, 1, 3),
    "attention": lambda x: jnp.einsum("bhwc,bijc->bhij", x, x),
}


@pytest.mark.parametrize("name", WINDOWED)
def test_receptive_fields_are_what_perturbation_finds(name):
    shape = (9, 8)
    model = Model.from_function(tagged(WINDOWED[name]), input_shape=(*shape, 2))
    (layer,) = model.layers()
    field, first = layer.receptive_field, name == "channels first"
    spatial = layer.shape[1:] if first else layer.shape[:2]
    rows, columns = seen(jax.jit(WINDOWED[name]), shape, first=first)
    assert field is not None
    for unit in np.ndindex(*spatial):
        for axis, found in enumerate((rows, columns)):
            start = field.offset[axis] + unit[axis] * field.stride[axis]
            expected = set(range(max(start, 0), min(start + field.size[axis], shape[axis])))
            assert found.get(unit, set()) <= expected
            inside = start >= 0 and start + field.size[axis] <= shape[axis]
            if inside and found.get(unit):  # the extremes are really seen
                assert {min(expected), max(expected)} <= found[unit]


def seen(function, shape, *, first):
    x = array(13, 1, *shape, 2)
    pixels = jnp.stack([x[0].at[i, j].add(1e3) for i, j in np.ndindex(*shape)])
    changed = np.asarray(abs(function(pixels) - function(x)) > 1).any(1 if first else -1)
    rows, columns = {}, {}
    for (i, j), units in zip(np.ndindex(*shape), changed, strict=True):
        for unit in map(tuple, np.argwhere(units)):
            rows.setdefault(unit, set()).add(i)
            columns.setdefault(unit, set()).add(j)
    return rows, columns


@pytest.mark.parametrize("name", UNWINDOWED)
def test_what_is_no_window_has_no_receptive_field(name):
    model = Model.from_function(tagged(UNWINDOWED[name]), input_shape=(6, 6, 2))
    layer = next(layer for layer in model.layers() if layer.name == "layer")
    assert layer.receptive_field is None


def test_flat_layers_have_no_receptive_field():
    def apply(p, x):
        x = checkpoint_name(conv(x), "map")
        x = checkpoint_name(x.mean((1, 2)), "average")
        return checkpoint_name(x @ jnp.ones((2, 3)), "dense")

    fields = {layer.name: layer.receptive_field for layer in of(apply).layers()}
    assert fields["map"] is not None
    assert fields["average"] is None
    assert fields["dense"] is None


def test_layers_of_an_image_of_another_size():
    model = of(lambda p, x: checkpoint_name(conv(x), "a").mean((1, 2)))
    assert model.layers()[0].shape == (6, 6, 2)
    assert model.layers((9, 7, 2))[0].shape == (9, 7, 2)


def test_nnx_names():
    class Net(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            self.blocks = nnx.List([nnx.Conv(2, 2, (3, 3), rngs=rngs) for _ in range(2)])
            self.norm = nnx.BatchNorm(2, rngs=rngs)
            self.head = nnx.Linear(2, 3, rngs=rngs)

        def __call__(self, x):
            for block in self.blocks:
                x = nnx.relu(self.norm(block(x)))
            return self.head(x.mean((1, 2)))

    model = Model.from_nnx(Net(), input_shape=(6, 6, 2))
    assert [layer.name for layer in model.layers()] == [
        "blocks.0", "norm#0", "blocks.1", "norm#1", "head",
    ]  # fmt: skip


RECTIFIERS = [
    jax.nn.relu,
    lambda x: x * (x > 0),
    lambda x: jnp.where(x > 0, x, 0),
    lambda x: jnp.where(x > 0, x, 0.1 * x),
    lambda x: jnp.clip(x, 0, 6),
]


@pytest.mark.parametrize("relu", RECTIFIERS)
def test_sites_are_called_like_the_tensor_behind_them(relu):
    def apply(p, x):
        x = checkpoint_name(relu(conv(x) + 1), "one")
        left = relu(conv(x))
        x = checkpoint_name(relu(conv(x) + left), "two")
        x = checkpoint_name(nn.max_pool(x, (2, 2), (2, 2)), "pool")
        return relu(x.mean((1, 2)) @ p) @ jnp.ones((3, 3))

    model = of(apply, array(2, 2, 3))
    run = jax.eval_shape(
        lambda x: backpropagate(model, x, jnp.array([0, 1]), R.lrp_epsilon()), IMAGES
    )
    kind = next(s.kind for s in run.audit.sites if s.kind not in ("conv", "dense"))
    assert [(s.layer, s.kind) for s in run.audit.sites] == [
        ("one", "conv"), ("one", kind),
        ("conv after one", "conv"), (f"{kind} after one", kind),
        ("conv after one", "conv"), ("two", kind), ("pool", "max_pool"),
        ("dense after pool", "dense"), (f"{kind} after pool", kind), ("dense after pool", "dense"),
    ]  # fmt: skip
