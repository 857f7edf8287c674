"""The ops in PyTorch, eager, images channels last or first in memory."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.func import functional_call

from benchmarks.measure import repeat
from benchmarks.ops.cases import CASES

Tensors = dict[str, Any]


def affine(x, w, b):
    return F.linear(x.flatten(1), w, b)


def batchnorm(x, gamma, beta):
    return F.batch_norm(x, torch.zeros_like(gamma), torch.ones_like(gamma), gamma, beta, training=True)


def batchnorm_inference(x, gamma, beta, mean, var):
    shape = (1, -1) + (1,) * (x.ndim - 2)
    scale = (gamma * torch.rsqrt(var + 1e-5)).view(shape)
    return (x - mean.view(shape)) * scale + beta.view(shape)


def layernorm(x, gamma, beta):
    return F.layer_norm(x, gamma.shape, gamma, beta)


def groupnorm(x, gamma, beta, groups):
    return F.group_norm(x, groups, gamma, beta)


def dropout(x, keep_prob):
    return F.dropout(x, 1 - keep_prob)


def conv2d(x, w, b=None, **static):
    return F.conv2d(x, w, b, **static)


def max_pool2d(x, window, stride, **static):
    return F.max_pool2d(x, window, stride, **static)


def avg_pool2d(x, window, stride, **static):
    return F.avg_pool2d(x, window, stride, **static)


def affine_relu(x, w, b):
    return F.relu(affine(x, w, b), inplace=True)


def bias_relu(x, b):
    return F.relu(x + b.view(1, -1, 1, 1), inplace=True)


def bias_relu_max_pool2d(x, b, **static):
    return max_pool2d(bias_relu(x, b), **static)


def batchnorm_relu(x, gamma, beta):
    return F.relu(batchnorm(x, gamma, beta), inplace=True)


def batchnorm_add_relu(x, gamma, beta, shortcut):
    return F.relu(batchnorm(x, gamma, beta) + shortcut, inplace=True)


def batchnorm_relu_max_pool2d(x, gamma, beta, **static):
    return max_pool2d(batchnorm_relu(x, gamma, beta), **static)


def batchnorm_relu_conv2d(x, gamma, beta, w, **static):
    return conv2d(batchnorm_relu(x, gamma, beta), w, **static)


def softmax_cross_entropy(logits, labels):
    return F.cross_entropy(logits, labels)


def svm_loss(scores, labels):
    return F.multi_margin_loss(scores, labels) * scores.shape[1]  # torch takes the mean over the classes


def rnn_step(x, h, wx, wh, b):
    return torch.tanh(torch.addmm(x @ wx + b, h, wh))


def rnn(x, h0, wx, wh, b):
    return _recurrent(torch.nn.RNN, x, h0.unsqueeze(0), wx, wh, b)[0]


def lstm_step(x, h, c, wx, wh, b):
    i, f, o, g = torch.addmm(x @ wx + b, h, wh).chunk(4, 1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def lstm(x, h0, c0, wx, wh, b):
    out, (_, c) = _recurrent(torch.nn.LSTM, x, (h0.unsqueeze(0), c0.unsqueeze(0)), wx, wh, b)
    return out, c[0]


def word_embedding(ids, w):
    return F.embedding(ids, w)


def temporal_affine(x, w, b):
    return F.linear(x, w, b)


def temporal_softmax_loss(logits, labels, mask):
    losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    return (losses * mask.flatten()).sum() / len(logits)


def _recurrent(kind: Any, x, state, wx, wh, b):
    """torch's own recurrent kernel. Its LSTM has the gates in the order i, f, g, o: the same work, another order."""
    with torch.device("meta"):
        module = kind(wx.shape[0], wh.shape[0], batch_first=True)
    weights = {"weight_ih_l0": wx.T, "weight_hh_l0": wh.T, "bias_ih_l0": b, "bias_hh_l0": torch.zeros_like(b)}
    return functional_call(module, weights, (x, state))


OPS: dict[str, Callable[..., Any]] = {
    **{name: value for name, value in globals().items() if name in CASES},
    **{"relu": torch.relu, "leaky_relu": lambda x: F.leaky_relu(x), "sigmoid": torch.sigmoid, "tanh": torch.tanh},
}


class TorchSide:
    """Runs a case of an op; lives in a process of its own."""

    def __init__(self, precision: str, channels_last: bool):
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        torch.backends.cudnn.allow_tf32 = precision == "tf32"
        torch.backends.cudnn.benchmark = True
        torch.manual_seed(0)

    def prepare(self, op: str, index: int, mode: str, side: str) -> dict[str, Any]:
        """Place the case's tensors and make the call that is timed."""
        del side
        if mode == "scan":
            raise ValueError("torch has no scan")
        case = CASES[op][index]
        tensors = {name: self._tensor(op, name, value) for name, value in case.draw().items() if name != "key"}
        leaves = [t for t in tensors.values() if t is not None and t.is_floating_point()]
        function = OPS[op]

        def forward() -> tuple[torch.Tensor, ...]:
            out = function(**tensors, **case.static)
            return out if isinstance(out, tuple) else (out,)

        with torch.no_grad():
            first = forward()
        douts = [torch.randn_like(out) for out in first]
        if mode == "both":
            for leaf in leaves:
                leaf.requires_grad_()

        def call() -> None:
            if mode == "both":
                torch.autograd.grad(forward(), leaves, douts)
            else:
                with torch.no_grad():
                    forward()
            if self._device.type == "cuda":
                torch.cuda.synchronize()

        call()  # on a GPU it tries its algorithms at the first call
        self._call = call
        if mode != "forward":
            return {"out": None}
        out = first[0].float()
        return {"out": (out.permute(0, 2, 3, 1) if out.ndim == 4 else out).cpu().numpy()}

    def run(self, side: str, seconds: float) -> list[float]:
        """Seconds a call."""
        del side
        return repeat(self._call, seconds)

    def _tensor(self, op: str, name: str, value: Any) -> torch.Tensor | None:
        """As torch wants it: images NCHW and filters OIHW, in memory as the layout says; affine weights (out, in)."""
        if value is None:
            return None
        tensor = torch.from_numpy(np.ascontiguousarray(value)).to(self._device)
        if not tensor.is_floating_point():
            return tensor if tensor.dtype is torch.bool else tensor.long()
        tensor = tensor.to(self._dtype)
        if name == "w" and tensor.ndim == 4:
            return tensor.permute(3, 2, 0, 1).contiguous(memory_format=self._layout)
        if tensor.ndim == 4 and "affine" not in op:
            return tensor.permute(0, 3, 1, 2).contiguous(memory_format=self._layout)
        if name == "w" and "affine" in op:
            return tensor.T.contiguous()
        return tensor
