"""The course's training loops: `Loop` is what they share, `Solver` trains classifiers."""

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np

from jnet.compat.cs231n import optim

__all__ = ["Loop", "Solver"]


class Loop:
    """Steps over minibatches, and their records; a subclass draws the minibatch."""

    def __init__(self, model: Any, **kwargs: Any):
        """Take the model and the keywords that all loops have."""
        self.model = model
        self.optim_config = kwargs.pop("optim_config", {})
        self.lr_decay = kwargs.pop("lr_decay", 1.0)
        self.batch_size = kwargs.pop("batch_size", 100)
        self.num_epochs = kwargs.pop("num_epochs", 10)
        self.print_every = kwargs.pop("print_every", 10)
        self.verbose = kwargs.pop("verbose", True)
        self.update_rule = _find_update_rule(kwargs.pop("update_rule", "sgd"), kwargs)
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

    def _minibatch(self) -> tuple[Any, Any]:
        """Return the arguments of the model's loss, drawn with replacement."""
        raise NotImplementedError("a subclass says what a minibatch is")

    def _step(self) -> None:
        """Make one update from a minibatch, in the model's own parameters."""
        loss, grads = self.model.loss(*self._minibatch())
        self.loss_history.append(loss)
        params, configs = self.model.params, self.optim_configs
        for name, w in params.items():
            params[name], configs[name] = self.update_rule(w, grads[name], configs[name])

    def _run(self, size: int, validate: Callable[[], None] | None = None) -> None:
        """Run all epochs over `size` examples; `validate` after each of them and after the first step."""
        iterations_per_epoch = max(size // self.batch_size, 1)
        num_iterations = self.num_epochs * iterations_per_epoch
        for t in range(num_iterations):
            self._step()
            if self.verbose and t % self.print_every == 0:
                print(f"(Iteration {t + 1} / {num_iterations}) loss: {self.loss_history[-1]:f}")
            epoch_ends = (t + 1) % iterations_per_epoch == 0
            if epoch_ends:
                self.epoch += 1
                for config in self.optim_configs.values():
                    config["learning_rate"] *= self.lr_decay
            if validate and (epoch_ends or t == 0):
                validate()


class Solver(Loop):
    """Train a model with `.params` (a dictionary of arrays) and `.loss`: scores of `X`, or loss and gradients of `X,
    y`.

    `data` holds `X_train, y_train, X_val, y_val`. Keywords: `update_rule` ("sgd"; a name in `optim`), `optim_config`
    ({}), `lr_decay` (1.0, after each epoch), `batch_size` (100), `num_epochs` (10), `num_train_samples` (1000) and
    `num_val_samples` (None: all) for the accuracies, `checkpoint_name` (None), `print_every` (10), `verbose` (True).

    After `train()`: `loss_history` (one a step), `train_acc_history` and `val_acc_history` (at the first step, after
    each epoch), `best_val_acc`, `best_params`, which the model then has.
    """

    def __init__(self, model: Any, data: dict[str, np.ndarray], **kwargs: Any):
        """Take the model, its data and the keywords above."""
        self.X_train, self.y_train = data["X_train"], data["y_train"]
        self.X_val, self.y_val = data["X_val"], data["y_val"]
        self.num_train_samples = kwargs.pop("num_train_samples", 1000)
        self.num_val_samples = kwargs.pop("num_val_samples", None)
        self.checkpoint_name = kwargs.pop("checkpoint_name", None)
        super().__init__(model, **kwargs)

    def _minibatch(self) -> tuple[np.ndarray, np.ndarray]:
        rows = np.random.choice(len(self.X_train), self.batch_size)
        return self.X_train[rows], self.y_train[rows]

    def _save_checkpoint(self) -> None:
        """Pickle the model and the records to `NAME_epoch_N.pkl`, where there is a name."""
        if self.checkpoint_name is None:
            return
        names = "model update_rule lr_decay optim_config batch_size num_train_samples num_val_samples epoch"
        names += " loss_history train_acc_history val_acc_history"
        filename = f"{self.checkpoint_name}_epoch_{self.epoch}.pkl"
        if self.verbose:
            print(f'Saving checkpoint to "{filename}"')
        with open(filename, "wb") as file:
            pickle.dump({name: getattr(self, name) for name in names.split()}, file)

    def check_accuracy(
        self, X: np.ndarray, y: np.ndarray, num_samples: int | None = None, batch_size: int = 100
    ) -> float:
        """Return the share of right predictions, on `num_samples` rows drawn at random where there are more."""
        if num_samples is not None and len(X) > num_samples:
            rows = np.random.choice(len(X), num_samples)
            X, y = X[rows], y[rows]
        batches = [X[start : start + batch_size] for start in range(0, len(X), batch_size)]
        predictions = np.concatenate([np.argmax(self.model.loss(batch), axis=1) for batch in batches])
        return np.mean(predictions == y)

    def train(self) -> None:
        """Run all epochs; then give the model the parameters of the best validation accuracy."""
        self._run(len(self.X_train), self._validate)
        self.model.params = self.best_params

    def _validate(self) -> None:
        """Record and print both accuracies; keep the parameters where they are the best so far."""
        train_acc = self.check_accuracy(self.X_train, self.y_train, num_samples=self.num_train_samples)
        val_acc = self.check_accuracy(self.X_val, self.y_val, num_samples=self.num_val_samples)
        self.train_acc_history.append(train_acc)
        self.val_acc_history.append(val_acc)
        self._save_checkpoint()
        if self.verbose:
            print(f"(Epoch {self.epoch} / {self.num_epochs}) train acc: {train_acc:f}; val_acc: {val_acc:f}")
        if val_acc > self.best_val_acc:
            self.best_val_acc = val_acc
            self.best_params = {name: value.copy() for name, value in self.model.params.items()}


def _find_update_rule(name: str, unknown: dict[str, Any]) -> Any:
    """Return the rule in `optim`; raise ValueError for unknown arguments and for a rule that is not there."""
    if unknown:
        raise ValueError("Unrecognized arguments " + ", ".join(f'"{keyword}"' for keyword in unknown))
    if not hasattr(optim, name):
        raise ValueError(f'Invalid update_rule "{name}"')
    return getattr(optim, name)
