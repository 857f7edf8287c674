"""Take the weights of a PyTorch network into jnet, train on there, and give them back.

    pip install 'jnet[train,peers]'
    python examples/pytorch_weights.py

About 10 seconds on two cores. Prints the largest difference between the two networks' scores, about 1e-7 before
training and 3e-6 after it, and `test accuracy 0.98..`, which PyTorch computes with the weights that jnet trained.
"""

import jax
import numpy as np
import torch
from torch import nn

from jnet import data, models, optim, train
from jnet.interop import from_torch, to_torch

SHAPE = (8, 8, 1)


def torch_network() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(4 * 4 * 32, 10)),
    ).eval()


def torch_scores(network: nn.Module, images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return network(torch.as_tensor(images).permute(0, 3, 1, 2)).numpy()


def main(epochs: int = 5) -> float:
    torch.manual_seed(0)
    dataset = data.load("digits")
    images, labels = dataset.test
    network, model = torch_network(), models.vgg((16, 32))

    params, model_state = from_torch(model, network.state_dict(), SHAPE)
    difference = torch_scores(network, images) - model.apply(params, model_state, images)[0]
    print(f"largest difference {abs(difference).max():.1e}")

    optimizer = optim.adam(2e-3)
    state = train.create_state(model, optimizer, jax.random.key(0), SHAPE)
    state = state._replace(params=params, model_state=model_state, opt_state=optimizer.init(params))
    step = train.make_train_step(model, optimizer)
    for epoch in range(epochs):
        for batch in data.minibatches(dataset.train, 50, epoch=epoch):
            state, _ = step(state, batch)

    weights = to_torch(model, state.params, state.model_state, SHAPE)
    network.load_state_dict({name: torch.as_tensor(array) for name, array in weights.items()})
    scores = torch_scores(network, images)
    difference = scores - model.apply(state.params, state.model_state, images)[0]
    print(f"largest difference {abs(difference).max():.1e}")
    return float((scores.argmax(1) == labels).mean())


if __name__ == "__main__":
    print(f"test accuracy {main():.4f}")
