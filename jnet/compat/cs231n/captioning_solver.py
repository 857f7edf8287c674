"""The course's training loop for captioning models."""

from typing import Any

from jnet.compat.cs231n.coco_utils import sample_coco_minibatch
from jnet.compat.cs231n.solver import find_update_rule, update

__all__ = ["CaptioningSolver"]


class CaptioningSolver:
    """Train a model with `.params` and `.loss(features, captions)` on `data` as `load_coco_data` returns it.

    Keywords: `update_rule` ("sgd"), `optim_config` ({}), `lr_decay` (1.0), `batch_size` (100), `num_epochs` (10),
    `print_every` (10), `verbose` (True). After `train()`, `loss_history` has one loss a step.
    """

    def __init__(self, model: Any, data: dict[str, Any], **kwargs: Any):
        """Take the model, its data and the keywords above."""
        self.model = model
        self.data = data
        self.update_rule = kwargs.pop("update_rule", "sgd")
        self.optim_config = kwargs.pop("optim_config", {})
        self.lr_decay = kwargs.pop("lr_decay", 1.0)
        self.batch_size = kwargs.pop("batch_size", 100)
        self.num_epochs = kwargs.pop("num_epochs", 10)
        self.print_every = kwargs.pop("print_every", 10)
        self.verbose = kwargs.pop("verbose", True)
        self.update_rule = find_update_rule(self.update_rule, kwargs)
        self._reset()

    def _reset(self) -> None:
        """Start all records and optimizer states afresh."""
        self.epoch = 0
        self.best_val_acc = 0
        self.best_params = {}
        self.loss_history = []
        self.train_acc_history = []
        self.val_acc_history = []
        self.optim_configs = {name: dict(self.optim_config) for name in self.model.params}

    def _step(self) -> None:
        """Make one update from a minibatch of captions drawn with replacement."""
        captions, features, _ = sample_coco_minibatch(self.data, batch_size=self.batch_size, split="train")
        loss, grads = self.model.loss(features, captions)
        self.loss_history.append(loss)
        update(self.model.params, grads, self.update_rule, self.optim_configs)

    def train(self) -> None:
        """Run all epochs."""
        iterations_per_epoch = max(len(self.data["train_captions"]) // self.batch_size, 1)
        num_iterations = self.num_epochs * iterations_per_epoch
        for t in range(num_iterations):
            self._step()
            if self.verbose and t % self.print_every == 0:
                print(f"(Iteration {t + 1} / {num_iterations}) loss: {self.loss_history[-1]:f}")
            if (t + 1) % iterations_per_epoch == 0:
                self.epoch += 1
                for config in self.optim_configs.values():
                    config["learning_rate"] *= self.lr_decay
