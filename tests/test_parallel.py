"""Training on several devices and in several processes is training on one, but for rounding."""

import json
import math
import os
import re
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jnet import models, optim, parallel, train
from jnet.data import Dataset, Split
from jnet.formulas.convolution import rule
from jnet.parallel import Placement, data_mesh

DEVICES = 8

if len(jax.devices()) < DEVICES:  # the backend is made once a process, so the tests run in one with eight devices

    @pytest.mark.parametrize("marker", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
    def test_on_eight_devices(marker):
        environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(DEVICES)}
        command = [sys.executable, "-m", "pytest", "-q", "-n0", "-m", marker, __file__]
        run = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert run.returncode == 0, run.stdout

else:

    def noise(rows, seed):
        rng = np.random.default_rng(seed)
        images = rng.standard_normal((rows, 8, 8, 2), np.float32)
        return Split(images, (np.arange(rows) % 5).astype(np.int32))

    # 21 rows to validate on: no multiple of any number of devices but one
    DATA = Dataset(noise(48, 0), noise(21, 1), noise(21, 2), "noise", 5)
    MODEL = models.vgg((4, 4), 5)

    def run_fit(placement, **options):
        arguments = {"epochs": 2, "batch_size": 16, "placement": placement} | options
        return train.fit(MODEL, DATA, optim.adam(1e-2), **arguments)

    def assert_same(got, expected, rtol=2e-4):
        for row, want in zip(got.history, expected.history, strict=True):
            np.testing.assert_allclose(list(row.values()), list(want.values()), rtol=rtol)
        for leaf, want in zip(jax.tree.leaves(got.state.params), jax.tree.leaves(expected.state.params), strict=True):
            np.testing.assert_allclose(leaf, want, rtol=rtol, atol=2e-5)

    @pytest.fixture(scope="module")
    def on_one():
        return run_fit(Placement())

    @pytest.mark.parametrize("devices", [1, 2, 4, 8])
    def test_devices_give_the_same_losses_and_parameters(devices, on_one):
        assert_same(run_fit(Placement(data_mesh(devices))), on_one)

    def test_cut_parameters_give_the_same_and_stay_cut(on_one):
        placement = Placement(data_mesh(2), shard_params=True)
        result = run_fit(placement)
        assert_same(result, on_one)
        expected = jax.tree.leaves(placement.state_sharding(result.state.params))
        for leaf, sharding in zip(jax.tree.leaves(result.state.params), expected, strict=True):
            assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
        assert any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(result.state.opt_state))

    @pytest.mark.parametrize("devices", [1, 4])
    def test_a_checkpoint_of_two_devices_goes_on_with_others(devices, on_one, tmp_path):
        run_fit(Placement(data_mesh(2)), epochs=1, checkpoint_dir=tmp_path)
        assert_same(run_fit(Placement(data_mesh(devices)), checkpoint_dir=tmp_path), on_one)

    def compiled_step(model, devices):
        placement = Placement(data_mesh(devices))
        optimizer = optim.adam(1e-3)
        state = placement.state(train.create_state(model, optimizer, jax.random.key(0), (8, 8, 2)))
        batch = placement.batch((DATA.train.images[:16], DATA.train.labels[:16]))
        step = train.make_train_step(model, optimizer, placement=placement)
        return step.lower(state, batch).compile().as_text()

    @pytest.mark.parametrize(
        ("model", "batchnorms", "others"),
        [
            (models.fully_connected_net([16, 16], 5, 0.5), 0, 3),
            (models.fully_connected_net([16, 16], 5, 0.5, "batchnorm"), 2, 3),
            (models.three_layer_conv_net(4, 3, 8, 5), 0, 3),
            (models.vgg((4, 4, 8), 5), 3, 4),
            (models.vgg((32, 32), 5), 2, 3),  # Winograd's, of which the filters' gradient is transformed, then summed
            (models.vgg((16, 16), 5), 2, 3),  # split windows
            (models.resnet((4, 8), 1, 5), 6, 7),  # strides, and shortcuts
        ],
        ids=["fully_connected", "with_batchnorm", "three_layer_conv_net", "vgg", "winograd", "split", "resnet"],
    )
    def test_what_travels(model, batchnorms, others, monkeypatch):
        """Each gradient once, in an all-reduce for each backward pass that is compiled apart and one for the rest.

        A batchnorm has two sums more forward and one backward, a few numbers a channel each.
        """
        monkeypatch.setattr(rule, "WORTH_IT", 0)
        program = compiled_step(model, 4)
        reduced = re.findall(r"= (.*) all-reduce\(", program)
        assert len(reduced) == 3 * batchnorms + others + 1
        assert not re.findall(r"\b(all-gather|all-to-all|collective-permute|reduce-scatter)\(", program)
        dims = re.findall(r"f32\[([\d,]*)\]", " ".join(reduced))
        numbers = sum(math.prod(int(d) for d in shape.split(",") if d) for shape in dims)
        params, _, _ = jax.eval_shape(lambda: model.init(jax.random.key(0), (8, 8, 2)))
        gammas_and_means = sum(leaf.size for leaf in jax.tree.leaves(params) if leaf.ndim == 1)
        assert numbers <= sum(leaf.size for leaf in jax.tree.leaves(params)) + 4 * gammas_and_means

    def test_dropout_draws_one_mask_on_any_number_of_devices():
        x = np.ones((16, 50), np.float32)
        drop = jax.jit(lambda x, key: models.dropout(0.5).apply({}, {}, x, train=True, key=key)[0])
        masks = [drop(Placement(data_mesh(n)).batch(x), jax.random.key(3)) for n in (1, 2, 8)]
        assert 300 < int((np.asarray(masks[0]) > 0).sum()) < 500
        for mask in masks[1:]:
            np.testing.assert_array_equal(mask, masks[0])

    def test_a_state_needs_no_more_room_a_device_when_it_is_cut():
        params = {"w": jnp.ones((6, 16)), "b": jnp.ones(3), "empty": jnp.ones((0, 8))}
        cut = Placement(data_mesh(8), shard_params=True).state(params)
        assert cut["w"].addressable_shards[0].data.shape == (6, 2)
        assert cut["b"].addressable_shards[0].data.shape == (3,)

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: data_mesh(9), "devices: 9; must be from 1 to 8"),
            (lambda: run_fit(Placement(data_mesh(8)), batch_size=12), "batch_size: 12; must be a multiple of the 8"),
            (lambda: parallel.start(devices=0), "devices: 0; must be 1 or more"),
            (lambda: parallel.start(num_processes=2), "coordinator: None; must be HOST:PORT"),
            (lambda: parallel.start(coordinator="a:1", num_processes=2, process_id=2), "process_id: 2; must be from 0"),
        ],
    )
    def test_errors_are_one_line(call, message):
        with pytest.raises(ValueError) as error:
            call()
        assert message in str(error.value) and "\n" not in str(error.value)

    @pytest.mark.slow
    def test_two_processes_train_as_one(tmp_path):
        options = ["--data", "digits", "--widths", "8", "8", "--epochs", "1", "--batch-size", "48"]
        environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "1"}

        def begin(out, *more):
            command = [sys.executable, "-m", "jnet", "train", *options, "--out", str(tmp_path / out), *more]
            return subprocess.Popen(
                command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )

        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        together = ["--coordinator", address, "--num-processes", "2", "--process-id"]
        processes = [begin("two", *together, "0"), begin("two", *together, "1"), begin("one")]
        for process in processes:
            output, _ = process.communicate(timeout=300)
            assert process.returncode == 0, output
        accuracy = {out: json.loads((tmp_path / out / "result.json").read_text()) for out in ("one", "two")}
        np.testing.assert_allclose(accuracy["two"]["test_loss"], accuracy["one"]["test_loss"], rtol=1e-4)
        rows = {out: (tmp_path / out / "metrics.csv").read_text().splitlines()[1] for out in ("one", "two")}
        np.testing.assert_allclose(*(np.array(row.split(","), float) for row in rows.values()), rtol=1e-4)
