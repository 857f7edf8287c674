"""Each augmented image must be one of those that its definition allows, and each of those must occur.

The oracle lists all allowed outcomes of one image in NumPy and shares no draws with the code.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jnet import augment

ROWS, HEIGHT, WIDTH = 2000, 5, 4


def crops(image, padding):
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    places = [(i, j) for i in range(2 * padding + 1) for j in range(2 * padding + 1)]
    return [padded[i : i + HEIGHT, j : j + WIDTH] for i, j in places]


def flips(image):
    return [image, np.fliplr(image)]


def holes(image, size):
    outcomes = []
    for i in range(HEIGHT):
        for j in range(WIDTH):
            cut = image.copy()
            top, left = i - size // 2, j - size // 2
            cut[max(top, 0) : top + size, max(left, 0) : left + size] = 0
            outcomes.append(cut)
    return outcomes


CASES = {
    "crop1": (partial(augment.random_crop, padding=1), partial(crops, padding=1)),
    "crop2": (partial(augment.random_crop, padding=2), partial(crops, padding=2)),
    "flip": (augment.random_flip, flips),
    "cutout1": (partial(augment.cutout, size=1), partial(holes, size=1)),
    "cutout2": (partial(augment.cutout, size=2), partial(holes, size=2)),
    "cutout3": (partial(augment.cutout, size=3), partial(holes, size=3)),
}


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).uniform(1, 2, size=(HEIGHT, WIDTH, 3)).astype(np.float32)


@pytest.mark.parametrize("function, oracle", CASES.values(), ids=CASES)
def test_outcomes_are_the_allowed_ones_equally_often(image, function, oracle):
    batch = jnp.asarray(np.broadcast_to(image, (ROWS, *image.shape)))
    out = np.asarray(jax.jit(function)(batch, jax.random.key(0)))
    allowed = {outcome.tobytes(): 0 for outcome in oracle(image)}
    expected = len(oracle(image))
    assert len(allowed) == expected  # the image tells all outcomes apart
    for row in out:
        allowed[row.tobytes()] += 1  # KeyError: an outcome that the definition does not allow
    mean = ROWS / expected
    assert all(abs(count - mean) < 5 * np.sqrt(mean) for count in allowed.values())


@pytest.mark.parametrize("function", [case[0] for case in CASES.values()], ids=CASES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64", "uint8"])
def test_shape_and_dtype(function, dtype):
    batch = jax.ShapeDtypeStruct((6, HEIGHT, WIDTH, 3), dtype)
    out = jax.eval_shape(function, batch, jax.random.key(1))
    assert out.shape == batch.shape and out.dtype == batch.dtype


@pytest.mark.parametrize("function", [case[0] for case in CASES.values()], ids=CASES)
def test_the_key_decides(image, function):
    batch = jnp.asarray(np.stack([image] * 20))
    first, again, other = (jax.jit(function)(batch, jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_chain_applies_all_with_independent_keys(image):
    batch = jnp.asarray(np.broadcast_to(image, (ROWS, *image.shape)))
    out = np.asarray(jax.jit(augment.chain(augment.random_flip, augment.random_flip))(batch, jax.random.key(0)))
    same = sum(np.array_equal(row, image) for row in out)
    assert abs(same - ROWS / 2) < 5 * np.sqrt(ROWS / 4)  # with one key for both, each image would come back
    both = augment.chain(partial(augment.random_crop, padding=1), augment.random_flip)
    outcomes = {flip.tobytes() for crop in crops(image, 1) for flip in flips(crop)}
    assert {row.tobytes() for row in np.asarray(jax.jit(both)(batch, jax.random.key(0)))} == outcomes


@pytest.mark.parametrize("function", [case[0] for case in CASES.values()], ids=CASES)
def test_empty_batch(function):
    assert jax.jit(function)(jnp.zeros((0, HEIGHT, WIDTH, 3)), jax.random.key(0)).shape == (0, HEIGHT, WIDTH, 3)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda x, k: augment.random_crop(x, k, padding=0), "random_crop: padding is 0; must be 1 or more"),
        (lambda x, k: augment.cutout(x, k, size=0), "cutout: size is 0; must be from 1 to 4"),
        (lambda x, k: augment.cutout(x, k, size=5), "cutout: size is 5; must be from 1 to 4"),
        (lambda x, k: augment.random_flip(x[0], k), r"random_flip: images have shape \(5, 4, 3\); must be"),
    ],
)
def test_bad_arguments(image, call, words):
    with pytest.raises(ValueError, match=words):
        call(jnp.asarray(image[None]), jax.random.key(0))
