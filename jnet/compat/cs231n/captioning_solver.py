"""The course's training loop for captioning models."""

from typing import Any

import numpy as np

from jnet.compat.cs231n.coco_utils import sample_coco_minibatch
from jnet.compat.cs231n.solver import Loop

__all__ = ["CaptioningSolver"]


class CaptioningSolver(Loop):
    """Train a model with `.params` and `.loss(features, captions)` on `data` as `load_coco_data` returns it.

    Keywords: `update_rule` ("sgd"), `optim_config` ({}), `lr_decay` (1.0), `batch_size` (100), `num_epochs` (10),
    `print_every` (10), `verbose` (True). After `train()`, `loss_history` has one loss a step.
    """

    def __init__(self, model: Any, data: dict[str, Any], **kwargs: Any):
        """Take the model, its data and the keywords above."""
        self.data = data
        super().__init__(model, **kwargs)

    def _minibatch(self) -> tuple[np.ndarray, np.ndarray]:
        captions, features, _ = sample_coco_minibatch(self.data, batch_size=self.batch_size, split="train")
        return features, captions

    def train(self) -> None:
        """Run all epochs."""
        self._run(len(self.data["train_captions"]))
