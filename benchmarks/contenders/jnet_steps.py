"""jnet, through its public names only."""

import jax

import jnet.reference
from benchmarks.contenders import jax_steps
from benchmarks.workloads import CLASSES, KEEP, LEARNING_RATE, Workload
from jnet import layers, models, optim, train


def network(workload: Workload) -> layers.Layer:
    """The workload's layers."""
    if workload.network == "fc":
        return models.fully_connected_net(workload.widths, CLASSES, KEEP, "batchnorm")
    if workload.network == "three_layer":
        filters, hidden = workload.widths
        return models.three_layer_conv_net(filters, 7, hidden, CLASSES)
    if workload.network == "vgg":
        return models.vgg(workload.widths, CLASSES)
    return models.resnet(workload.widths, workload.depth, CLASSES)


def build(workload: Workload, variants: frozenset[str], precision: str) -> jax_steps.JaxContender:
    """The contender: `reference` is the same network with autodiff in place of the hand-derived rules."""
    dtype = jax_steps.set_precision(precision)
    model = network(workload)
    if "reference" in variants:
        model = layers.with_ops(model, jnet.reference)
    optimizer = optim.adam(LEARNING_RATE)
    state = train.create_state(model, optimizer, jax.random.key(0), workload.input_shape)
    data = jax_steps.device_batch(workload, dtype)
    scanned = "scan" in variants
    make = train.make_train_epoch if scanned else train.make_train_step
    return jax_steps.JaxContender(make(model, optimizer), state, data, state.params, scanned)
