"""Weights to PyTorch and back, held to the outputs of real torch modules."""

import importlib.util
from collections import OrderedDict
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jnet import layers, models
from jnet.interop import from_torch, to_torch

torch = pytest.importorskip("torch")
nn = torch.nn

IMAGE = (8, 6, 3)  # not square: a transposition of height and width would show


class ChannelNorm(nn.LayerNorm):
    """Layer normalization over the channels of NCHW."""

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Output(nn.Module):
    """The output of a recurrent module, without its last state."""

    def forward(self, x):
        return x[0]


class BasicBlock(nn.Module):
    """The block of a CIFAR ResNet, under the names that torchvision gives it."""

    def __init__(self, inplanes, planes, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = None
        if stride != 1 or inplanes != planes:
            self.downsample = nn.Sequential(nn.Conv2d(inplanes, planes, 1, stride, bias=False), nn.BatchNorm2d(planes))

    def forward(self, x):
        out = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(out + (x if self.downsample is None else self.downsample(x)))


def torch_resnet(widths, blocks):
    stages, channels = OrderedDict(), widths[0]
    stages["conv1"] = nn.Conv2d(IMAGE[2], channels, 3, padding=1, bias=False)
    stages["bn1"], stages["relu"] = nn.BatchNorm2d(channels), nn.ReLU()
    for number, width in enumerate(widths):
        strides = [1 if number == 0 else 2] + [1] * (blocks - 1)
        layer = []
        for stride in strides:
            layer.append(BasicBlock(channels, width, stride))
            channels = width
        stages[f"layer{number + 1}"] = nn.Sequential(*layer)
    stages["pool"], stages["flatten"] = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    stages["fc"] = nn.Linear(channels, 10)
    return nn.Sequential(stages)


def torch_vgg(norm, bias):
    def conv(channels, width):
        return [nn.Conv2d(channels, width, 3, padding=1, bias=bias), *norm(width), nn.ReLU()]

    features = [*conv(3, 8), *conv(8, 16), nn.MaxPool2d(2), *conv(16, 8)]
    return nn.Sequential(*features, nn.Flatten(), nn.Linear(4 * 3 * 8, 10))


def torch_mlp(norm, dropout=()):
    return nn.Sequential(nn.Flatten(), nn.Linear(8 * 6 * 3, 20), *norm(20), nn.ReLU(), *dropout, nn.Linear(20, 10))


# name -> (jnet's, torch's, shape of an input)
PAIRS = {
    "affine": (layers.affine(4), nn.Linear(5, 4), (5,)),
    "affine on images": (layers.affine(4), nn.Sequential(nn.Flatten(), nn.Linear(144, 4)), IMAGE),
    "affine on sequences": (layers.affine(4), nn.Sequential(nn.Flatten(), nn.Linear(15, 4)), (5, 3)),
    "conv2d": (
        layers.conv2d(4, (3, 2), (2, 1), ((1, 1), (0, 0)), dilation=(1, 2)),
        nn.Conv2d(3, 4, (3, 2), (2, 1), (1, 0), (1, 2)),
        IMAGE,
    ),
    "conv2d in groups": (
        layers.conv2d(6, 3, padding=1, groups=3, use_bias=False),
        nn.Conv2d(3, 6, 3, padding=1, groups=3, bias=False),
        IMAGE,
    ),
    "conv2d, same": (layers.conv2d(4, (4, 3)), nn.Conv2d(3, 4, (4, 3), padding="same"), IMAGE),
    "batchnorm": (layers.batchnorm(eps=1e-3), nn.BatchNorm1d(5, eps=1e-3), (5,)),
    "batchnorm on images": (layers.batchnorm(), nn.BatchNorm2d(3), IMAGE),
    "layernorm": (layers.layernorm(), nn.LayerNorm(5), (5,)),
    "groupnorm": (layers.groupnorm(2), nn.GroupNorm(2, 6), (8, 4, 6)),
    "embedding": (layers.embedding(7, 3), nn.Embedding(7, 3), (4,)),
    "rnn": (layers.rnn(4), nn.Sequential(nn.RNN(3, 4, batch_first=True), Output()), (5, 3)),
    "words to classes": (
        layers.serial(layers.embedding(7, 6), layers.lstm(4), layers.affine(3)),
        nn.Sequential(nn.Embedding(7, 6), nn.LSTM(6, 4, batch_first=True), Output(), nn.Flatten(), nn.Linear(20, 3)),
        (5,),
    ),
    "norms of a flattened image": (
        layers.serial(layers.flatten(), layers.batchnorm(), layers.tanh(), layers.layernorm(), layers.affine(3)),
        nn.Sequential(nn.Flatten(), nn.BatchNorm1d(144), nn.Tanh(), nn.LayerNorm(144), nn.Linear(144, 3)),
        IMAGE,
    ),
    "pools and activations": (
        layers.serial(
            layers.conv2d(4, 3, padding=1),
            layers.leaky_relu(0.2),
            layers.max_pool2d(3, 2, 1),
            layers.sigmoid(),
            layers.avg_pool2d((2, 1), 1),
            layers.dropout(0.5),
            layers.affine(3),
        ),
        nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.LeakyReLU(0.2),
            nn.MaxPool2d(3, 2, 1),
            nn.Sigmoid(),
            nn.AvgPool2d((2, 1), 1),
            nn.Dropout(0.5),
            nn.Flatten(),
            nn.Linear(4 * 3 * 3, 3),
        ),
        IMAGE,
    ),
    "fully_connected_net": (models.fully_connected_net([20]), torch_mlp(lambda n: []), IMAGE),
    "fully_connected_net, batchnorm": (
        models.fully_connected_net([20], normalization="batchnorm", dropout_keep_ratio=0.5),
        torch_mlp(lambda n: [nn.BatchNorm1d(n)], [nn.Dropout(0.5)]),
        IMAGE,
    ),
    "fully_connected_net, layernorm": (
        models.fully_connected_net([20], normalization="layernorm"),
        torch_mlp(lambda n: [nn.LayerNorm(n)]),
        IMAGE,
    ),
    "three_layer_conv_net": (
        models.three_layer_conv_net(4, 5, 16),
        nn.Sequential(
            nn.Conv2d(3, 4, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(4 * 3 * 4, 16),
            nn.ReLU(),
            nn.Linear(16, 10),
        ),
        IMAGE,
    ),
    "vgg": (models.vgg((8, 16, 8)), torch_vgg(lambda n: [nn.BatchNorm2d(n)], bias=False), IMAGE),
    "vgg, plain": (models.vgg((8, 16, 8), normalization=None), torch_vgg(lambda n: [], bias=True), IMAGE),
    "vgg, layernorm": (
        models.vgg((8, 16, 8), normalization="layernorm"),
        torch_vgg(lambda n: [ChannelNorm(n)], bias=False),
        IMAGE,
    ),
    "vgg, groupnorm": (
        models.vgg((8, 16, 8), normalization="groupnorm"),
        torch_vgg(lambda n: [nn.GroupNorm(8, n)], bias=False),
        IMAGE,
    ),
    "resnet": (models.resnet((4, 8), 2), torch_resnet((4, 8), 2), IMAGE),
}


def randomize(module, seed):
    """Give every array of `module` its own random values: no scale is 1, no running statistic is fresh."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2.0, generator=generator)
        elif tensor.is_floating_point():
            tensor.normal_(0.0, tensor[0].numel() ** -0.5, generator=generator)
    return module.eval()


def torch_output(module, x):
    images = np.moveaxis(x, -1, 1) if x.ndim == 4 else x
    with torch.no_grad():
        out = module(torch.as_tensor(images)).numpy()
    return np.moveaxis(out, 1, -1) if out.ndim == 4 else out


def inputs(shape, rows=3):
    return np.random.default_rng(0).normal(size=(rows, *shape)).astype(np.float32)


def words(shape, rows=3):
    return np.random.default_rng(0).integers(0, 7, size=(rows, *shape), dtype=np.int32)


def assert_close(got, want):
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= 1e-5 * max(1.0, np.abs(want).max())


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("name", PAIRS)
def test_both_directions(name):
    model, module, shape = PAIRS[name]
    x = words(shape) if name in ("embedding", "words to classes") else inputs(shape)
    apply = jax.jit(model.apply)

    params, state = from_torch(model, randomize(module, seed=1).state_dict(), shape)
    expected = jax.eval_shape(lambda key: model.init(key, shape)[:2], jax.random.key(0))
    assert jax.tree.map(lambda a: (a.shape, a.dtype), (params, state)) == jax.tree.map(
        lambda a: (a.shape, a.dtype), expected
    )
    got = np.asarray(apply(params, state, x)[0])
    assert_close(got, torch_output(module, x))

    weights = to_torch(model, params, state, shape, like=randomize(module, seed=2).state_dict())
    module.load_state_dict({key: torch.as_tensor(value) for key, value in weights.items()})
    assert_close(got, torch_output(module, x))


def test_names_are_those_of_sequential():
    model, module, shape = PAIRS["vgg"]
    params, state = from_torch(model, randomize(module, seed=4).state_dict(), shape)
    weights = to_torch(model, params, state, shape)
    assert list(weights) == list(module.state_dict())
    module.load_state_dict({key: torch.as_tensor(value) for key, value in weights.items()}, strict=True)


def test_a_training_step_of_batchnorm():
    """momentum = 1 - torch's; torch then moves its running variance to the unbiased one, n / (n - 1) times ours."""
    layer, module = layers.batchnorm(momentum=0.8), nn.BatchNorm2d(3, momentum=1 - 0.8)
    x = inputs(IMAGE)
    count = x.size // 3
    params, state = from_torch(layer, randomize(module, seed=3).state_dict(), IMAGE)
    before = state["var"]
    out, state = layer.apply(params, state, x, train=True)
    assert_close(np.asarray(out), torch_output(module.train(), x))
    np.testing.assert_allclose(state["mean"], module.running_mean.numpy(), rtol=1e-5, atol=1e-6)
    batch_var = (np.asarray(state["var"]) - 0.8 * np.asarray(before)) * count / (count - 1)
    np.testing.assert_allclose(0.8 * np.asarray(before) + batch_var, module.running_var.numpy(), rtol=1e-5)


def test_half_precision_and_transposed_tensors():
    module = nn.Linear(5, 4).bfloat16()
    params, _ = from_torch(layers.affine(4), module.state_dict(), (5,))
    assert params["w"].dtype == jnp.float32
    np.testing.assert_array_equal(params["w"], module.weight.detach().float().numpy().T)


def test_the_example_learns():
    pytest.importorskip("sklearn")
    path = Path(__file__).parents[2] / "examples" / "pytorch_weights.py"
    spec = importlib.util.spec_from_file_location("pytorch_weights", path)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    assert example.main(epochs=2) > 0.85
