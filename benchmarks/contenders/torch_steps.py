"""PyTorch: eager or `torch.compile`d, channels first or last, its fused Adam."""

import copy
import time
from statistics import fmean
from typing import Any

import torch
from torch import nn

from benchmarks.measure import repeat
from benchmarks.workloads import CLASSES, KEEP, LEARNING_RATE, MOMENTUM, Workload, batch


class Block(nn.Module):
    """A basic residual block: two 3x3 convolutions, a projection where the shape changes."""

    def __init__(self, features_in: int, features: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(features_in, features, 3, stride, padding=1, bias=False),
            norm2d(features),
            nn.ReLU(inplace=True),
            nn.Conv2d(features, features, 3, padding=1, bias=False),
            norm2d(features),
        )
        self.shortcut = nn.Identity()
        if stride != 1 or features_in != features:
            self.shortcut = nn.Sequential(nn.Conv2d(features_in, features, 1, stride, bias=False), norm2d(features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu_(self.body(x) + self.shortcut(x))


class Mean(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))


def norm2d(features: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(features, momentum=1 - MOMENTUM)


def network(workload: Workload) -> nn.Sequential:
    """The workload's layers."""
    widths, shape = workload.widths, workload.input_shape
    row: list[nn.Module] = []
    if workload.network == "fc":
        for a, b in zip((shape[0], *widths), widths, strict=False):
            row += [nn.Linear(a, b), nn.BatchNorm1d(b, momentum=1 - MOMENTUM), nn.ReLU(inplace=True)]
            row += [nn.Dropout(1 - KEEP)]
        features = widths[-1]
    elif workload.network == "three_layer":
        filters, hidden = widths
        size = filters * (shape[0] // 2) * (shape[1] // 2)
        row += [nn.Conv2d(shape[2], filters, 7, padding=3), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten()]
        row += [nn.Linear(size, hidden), nn.ReLU(inplace=True)]
        features = hidden
    elif workload.network == "vgg":
        for i, (a, b) in enumerate(zip((shape[2], *widths), widths, strict=False)):
            row += [nn.Conv2d(a, b, 3, padding=1, bias=False), norm2d(b), nn.ReLU(inplace=True)]
            row += [nn.MaxPool2d(2)] if i % 2 else []
        row += [nn.Flatten()]
        shrink = 2 ** (len(widths) // 2)
        features = widths[-1] * (shape[0] // shrink) * (shape[1] // shrink)
    else:
        row += [nn.Conv2d(shape[2], widths[0], 3, padding=1, bias=False), norm2d(widths[0]), nn.ReLU(inplace=True)]
        for stage, (a, b) in enumerate(zip((widths[0], *widths), widths, strict=False)):
            row += [Block(a, b, 2 if stage else 1)]
            row += [Block(b, b, 1) for _ in range(workload.depth - 1)]
        row += [Mean()]
        features = widths[-1]
    return nn.Sequential(*row, nn.Linear(features, CLASSES))


class TorchContender:
    """Times a training step of `model`."""

    def __init__(self, model: nn.Module, images: torch.Tensor, labels: torch.Tensor, compiled: bool, precision: str):
        self._device = images.device
        self._model, self._images, self._labels = model, images, labels
        self._optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE, fused=True)
        self._half = precision == "bfloat16"
        self._forward = torch.compile(self._loss) if compiled else self._loss
        self._initial = copy.deepcopy(model.state_dict())
        start = time.perf_counter()
        self._first_loss = self._call()
        self._first_seconds = time.perf_counter() - start
        self._compiled = compiled

    def describe(self, checked: int) -> dict[str, Any]:
        """Parameters, the mean losses that show that it trains; torch states no temporaries."""
        losses = [loss.item() for loss in (self._first_loss, *(self._call() for _ in range(checked - 1)))]
        return {
            "parameters": sum(parameter.numel() for parameter in self._model.parameters()),
            "first_loss": fmean(losses[: checked // 2]),
            "last_loss": fmean(losses[checked // 2 :]),
            "temporaries": None,
        }

    def compile(self) -> float:
        """Seconds of the first step where it was compiled in it; a second time torch reads its cache."""
        return self._first_seconds if self._compiled else 0.0

    def run(self, seconds: float) -> list[float]:
        """Seconds a step, from the initial state each time: a long run would reach subnormal numbers."""
        self._model.load_state_dict(self._initial)
        self._optimizer.state.clear()
        return repeat(self._call, seconds)

    def _loss(self) -> torch.Tensor:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._half):
            return nn.functional.cross_entropy(self._model(self._images), self._labels)

    def _call(self) -> torch.Tensor:
        self._optimizer.zero_grad(set_to_none=True)
        loss = self._forward()
        loss.backward()
        self._optimizer.step()
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        return loss.detach()


def build(workload: Workload, variants: frozenset[str], precision: str) -> TorchContender:
    """The contender."""
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.benchmark = True
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images, labels = (torch.from_numpy(array).to(device) for array in batch(workload))
    if images.ndim == 4:
        images = images.permute(0, 3, 1, 2)  # channels last in memory as it stands
    model = network(workload).to(device)
    if "channels_last" in variants:
        model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    else:
        images = images.contiguous()
    return TorchContender(model, images, labels.long(), "compile" in variants, precision)
