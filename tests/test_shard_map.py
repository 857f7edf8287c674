"""Every op, and batch normalization over devices, inside `shard_map` with its default check of what varies."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jnet import layers
from jnet.custom_vjp import CATALOGUE, batchnorm

DEVICES = 2

if len(jax.devices()) < DEVICES:  # the backend is made once a process, so the tests run in one with two devices

    def test_on_two_devices():
        environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(DEVICES)}
        command = [sys.executable, "-m", "pytest", "-q", "-n0", __file__]
        run = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert run.returncode == 0, run.stdout

else:

    def shard(function, in_specs, out_specs):
        mesh = jax.make_mesh((DEVICES,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
        return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs))

    @pytest.mark.parametrize("entry", CATALOGUE, ids=lambda e: e.name)
    def test_gradients_of_shared_arguments_are_summed_over_the_devices(entry):
        """Each device has its own first argument, all share the others."""
        sample = entry.samples[0]
        arrays = entry.inputs(sample, dtype="float64")
        own, *shared = (name for name in entry.diff if arrays[name] is not None)
        rest = {n: a for n, a in arrays.items() if n not in (own, *shared)}
        both = jnp.stack([arrays[own], 2.0 * arrays[own]])

        def value(x, others):
            out = entry.op(**{own: x}, **others, **rest, **sample.static)
            return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(out))

        def on_device(x, others):
            dx, dothers = jax.grad(lambda x, others: value(x[0], others), argnums=(0, 1))(x, others)
            return dx, dothers

        others = {name: arrays[name] for name in shared}
        dx, dothers = shard(on_device, (P("data"), P()), (P("data"), P()))(both, others)
        expected = [jax.jit(jax.grad(value, argnums=(0, 1)))(x, others) for x in both]
        np.testing.assert_allclose(dx, jnp.stack([dx for dx, _ in expected]), rtol=1e-10, atol=1e-12)
        for name in shared:
            np.testing.assert_allclose(dothers[name], sum(d[name] for _, d in expected), rtol=1e-10, atol=1e-12)

    def draw(*shape):
        return jnp.asarray(np.random.default_rng(0).standard_normal(shape))

    def test_batchnorm_over_devices_is_batchnorm_of_the_whole_batch():
        x, gamma, beta, dout = draw(6, 3, 4), draw(4) + 2.0, draw(4), draw(6, 3, 4) ** 2
        dmean, dvar = draw(4), draw(4) ** 2

        def value(axis_name, x, gamma, beta, dout):
            out, mean, var = batchnorm(x, gamma, beta, axis_name=axis_name)
            here = jnp.sum(out * dout)
            total = here if axis_name is None else jax.lax.psum(here, axis_name)
            return total + jnp.sum(mean * dmean) + jnp.sum(var * dvar)

        def gradients(axis_name):
            return jax.value_and_grad(lambda *args: value(axis_name, *args), argnums=(0, 1, 2))

        specs = (P("data"), P(), P(), P("data"))
        got = shard(gradients("data"), specs, (P(), (P("data"), P(), P())))(x, gamma, beta, dout)
        expected = jax.jit(gradients(None))(x, gamma, beta, dout)
        for g, e in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(g, e, rtol=1e-10, atol=1e-12)

    def test_batchnorm_over_a_vmapped_axis():
        x, gamma, beta = draw(6, 3, 4), draw(4), draw(4)
        parts = x.reshape(2, 3, 3, 4)
        spread = jax.vmap(lambda x: batchnorm(x, gamma, beta, axis_name="data"), axis_name="data")
        out, mean, _ = spread(parts)
        whole, whole_mean, _ = batchnorm(x, gamma, beta)
        np.testing.assert_allclose(out.reshape(x.shape), whole, rtol=1e-12)
        np.testing.assert_allclose(mean[0], whole_mean, rtol=1e-12)

    def test_ghost_batchnorm_normalises_each_group_by_itself():
        layer, plain = layers.batchnorm(groups=2), layers.batchnorm()
        params, state, _ = layer.init(jax.random.key(0), (4,))
        x = draw(6, 4) * 3.0
        out, new_state = layer.apply(params, state, x, train=True)
        halves = [plain.apply(params, state, half, train=True) for half in (x[:3], x[3:])]
        np.testing.assert_allclose(out, jnp.concatenate([h for h, _ in halves]), rtol=1e-12)
        np.testing.assert_allclose(new_state["mean"], sum(s["mean"] for _, s in halves) / 2, rtol=1e-6)
        with pytest.raises(ValueError, match="groups is 2; it must divide the 5 rows"):
            layer.apply(params, state, x[:5], train=True)
