"""The examples do what their headers say, at small size."""

import importlib.util
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_spiral():
    assert load("spiral").main(steps=200, picture=False) > 0.98


def test_train_mnist(capsys, monkeypatch):
    example = load("train_mnist")
    monkeypatch.setattr(example, "network", lambda: example.models.vgg((8, 8), num_classes=10))
    accuracy = example.main(epochs=2, images=500)
    assert accuracy > 0.7
    assert capsys.readouterr().out.splitlines()[-1] == f"test accuracy {accuracy:.4f}"
