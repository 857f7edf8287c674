"""What a training step keeps between its two passes: bytes of compiled temporaries an element and block.

XLA undoes recomputation where it likes to, so nothing but the compiled program proves that a backward pass rebuilds
what it says. A network of more blocks needs more temporaries by what each block keeps; the rest does not grow. (With
fewer than four blocks XLA may lay what they keep into the buffers of the network's ends.)
"""

import math

import jax
import jax.numpy as jnp
import pytest

from jnet import layers, reference
from jnet.compiling import compiler_options

ROWS, IMAGES = (512, 16), (8, 16, 16, 8)


def kept(block, shape, model_ops=None):
    """Bytes an element of the input and a block, from networks of 4 and 6 blocks."""
    four, six = (temporaries(block, depth, shape, model_ops) for depth in (4, 6))
    return (six - four) / 2 / math.prod(shape)


def temporaries(block, depth, shape, model_ops):
    model = layers.serial(*[layer for _ in range(depth) for layer in block()])
    model = model if model_ops is None else layers.with_ops(model, model_ops)

    def loss(params, state, x, key):
        return jnp.sum(jnp.square(model.apply(params, state, x, train=True, key=key)[0]))

    key = jax.random.key(0)
    params, state = jax.eval_shape(lambda key: model.init(key, shape[1:])[:2], key)
    args = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32), (params, state))
    gradient = jax.jit(jax.grad(loss, argnums=(0, 2)), compiler_options=compiler_options())
    return (
        gradient.lower(*args, jax.ShapeDtypeStruct(shape, jnp.float32), key)
        .compile()
        .memory_analysis()
        .temp_size_in_bytes
    )


@pytest.mark.parametrize(
    ("block", "shape", "expected"),
    [
        # one activation of four bytes, which the next layer keeps anyway
        (lambda: [layers.affine(16), layers.relu()], ROWS, 4.1),
        (lambda: [layers.affine(16), layers.sigmoid()], ROWS, 4.1),
        (lambda: [layers.affine(16), layers.dropout(0.5)], ROWS, 4.1),
        (lambda: [layers.groupnorm(2), layers.sigmoid()], IMAGES, 4.1),
        (lambda: [layers.batchnorm(), layers.relu()], IMAGES, 4.1),
        # two numbers a row beside it
        (lambda: [layers.layernorm(), layers.relu()], ROWS, 4 + 8 / 16 + 0.1),
        # the convolution's output; its input is rebuilt from the one before
        (lambda: [layers.conv2d(8, 3), layers.batchnorm(), layers.relu()], IMAGES, 4.1),
        # the pool's output, and its winners in a byte
        (
            lambda: [layers.conv2d(8, 3), layers.batchnorm(), layers.relu(), layers.max_pool2d(3, 1, 1)],
            IMAGES,
            9.1,
        ),
    ],
    ids=["affine_relu", "affine_sigmoid", "dropout", "groupnorm", "batchnorm_relu", "layernorm", "conv_block", "pool"],
)
def test_a_block_keeps_no_more_than_its_formula_says(block, shape, expected):
    assert kept(block, shape) <= expected


def test_autodiff_keeps_four_times_as_much():
    def block():
        return [layers.conv2d(8, 3), layers.batchnorm(), layers.relu()]

    assert kept(block, IMAGES, reference) / kept(block, IMAGES) > 3
