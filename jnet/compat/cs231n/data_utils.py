"""The course's data files. Nothing in a file is ever run: pickles are read by name of what they may hold."""

import importlib
import pickle
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jnet.compat.cs231n.image_utils import read_image
from jnet.data import read_cifar10_batch

__all__ = [
    "get_CIFAR10_data",
    "load_CIFAR10",
    "load_CIFAR_batch",
    "load_imagenet_val",
    "load_models",
    "load_pickle",
    "load_tiny_imagenet",
]

_HERE = Path(__file__).parent
_NUMPY = {"numpy", *(f"numpy.{core}.{part}" for core in ("core", "_core") for part in ("multiarray", "numeric"))}
_ARRAYS = {"_reconstruct", "scalar", "_frombuffer", "ndarray", "dtype"}
_ARRAYS |= {kind.__name__ for kind in np.sctypeDict.values()}


def load_pickle(f: BinaryIO) -> Any:
    """Read a pickle of arrays, numbers, strings, containers and this package's models; anything else is refused.

    Raises pickle.UnpicklingError where the file asks for something else.
    """
    return _PlainUnpickler(f, encoding="latin1").load()


def load_CIFAR_batch(filename: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Read one of CIFAR-10's six files: images `(10000, 32, 32, 3)` float64 and labels `(10000,)` integers."""
    images, labels = read_cifar10_batch(filename)
    return images.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1).astype(np.float64), labels.astype(np.int64)


def load_CIFAR10(ROOT: str | Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Read CIFAR-10 from its folder: `X_train (50000, 32, 32, 3)` float64, `y_train`, `X_test`, `y_test`."""
    batches = [load_CIFAR_batch(Path(ROOT) / f"data_batch_{number}") for number in range(1, 6)]
    images, labels = map(np.concatenate, zip(*batches, strict=True))
    return images, labels, *load_CIFAR_batch(Path(ROOT) / "test_batch")


def get_CIFAR10_data(
    num_training: int = 49000, num_validation: int = 1000, num_test: int = 1000, subtract_mean: bool = True
) -> dict[str, np.ndarray]:
    """Read CIFAR-10 as the networks take it: images `(N, 3, 32, 32)` float64, less the training images' mean.

    Validation images are the rows behind the training images. The files lie in `cs231n/datasets/cifar-10-batches-py`
    under the working directory, or else in `datasets` beside this module.
    """
    root = Path("cs231n/datasets/cifar-10-batches-py")
    X_train, y_train, X_test, y_test = load_CIFAR10(root if root.is_dir() else _HERE / "datasets" / root.name)
    if subtract_mean:
        mean = np.mean(X_train[:num_training], axis=0)
        X_train -= mean  # in place: the training images alone fill 1.2 GB
        X_test -= mean
    val = slice(num_training, num_training + num_validation)
    parts = {
        "train": (X_train[:num_training], y_train[:num_training]),
        "val": (X_train[val], y_train[val]),
        "test": (X_test[:num_test], y_test[:num_test]),
    }
    data = {}
    for name, (images, labels) in parts.items():
        data[f"X_{name}"], data[f"y_{name}"] = np.ascontiguousarray(images.transpose(0, 3, 1, 2)), labels.copy()
    return data


def load_tiny_imagenet(path: str | Path, dtype: Any = np.float32, subtract_mean: bool = True) -> dict[str, Any]:
    """Read a TinyImageNet folder: images `(N, 3, 64, 64)` of `dtype`, less the training mean, and labels.

    Keys: `class_names` (lists of names), `X_train, y_train, X_val, y_val, X_test, y_test, mean_image`; `y_test` is
    None where the folder does not say.
    """
    root = Path(path)
    ids = root.joinpath("wnids.txt").read_text().split()
    label_of = {name: label for label, name in enumerate(ids)}
    words = dict(line.split("\t") for line in root.joinpath("words.txt").read_text().splitlines())
    data: dict[str, Any] = {"class_names": [[word.strip() for word in words[name].split(",")] for name in ids]}

    train = [
        (root / "train" / name / "images" / file, label_of[name])
        for name in ids
        for file, _ in _annotations(root / "train" / name / f"{name}_boxes.txt")
    ]
    val = [
        (root / "val" / "images" / file, label_of[name])
        for file, name in _annotations(root / "val" / "val_annotations.txt")
    ]
    test_labels = root / "test" / "test_annotations.txt"
    known = dict(_annotations(test_labels)) if test_labels.is_file() else None
    test = sorted((root / "test" / "images").iterdir())
    data["X_train"], data["y_train"] = _read_images([file for file, _ in train], dtype), _labels(train)
    data["X_val"], data["y_val"] = _read_images([file for file, _ in val], dtype), _labels(val)
    data["X_test"] = _read_images(test, dtype)
    data["y_test"] = None if known is None else np.array([label_of[known[file.name]] for file in test])
    data["mean_image"] = data["X_train"].mean(axis=0)
    if subtract_mean:
        for name in ("X_train", "X_val", "X_test"):
            data[name] -= data["mean_image"]
    return data


def load_models(models_dir: str | Path) -> dict[str, Any]:
    """Read the models of all checkpoints (`Solver`'s pickles) in a folder, by file name; other files are skipped."""
    models = {}
    for file in sorted(Path(models_dir).iterdir()):
        with file.open("rb") as stream:
            try:
                models[file.name] = load_pickle(stream)["model"]
            except pickle.UnpicklingError:
                continue
    return models


def load_imagenet_val(num: int | None = None) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    """Read the course's 25 validation images of ImageNet, `datasets/imagenet_val_25.npz` beside this module.

    Returns images `(num, 224, 224, 3)`, labels `(num,)` and the names of the classes.
    """
    path = _HERE / "datasets" / "imagenet_val_25.npz"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; it comes with the course's get_imagenet_val.sh")
    with np.load(path) as file:
        images, labels = file["X"][:num], file["y"][:num]
        with file.zip.open("label_map.npy") as stream:
            return images, labels, read_object_array(stream).item()


def read_object_array(stream: Any) -> np.ndarray:
    """Read an `.npy` stream of Python objects, which NumPy itself reads only by running what is in it."""
    assert np.lib.format.read_magic(stream) == (1, 0), "the course's files have version 1.0"
    np.lib.format.read_array_header_1_0(stream)
    return load_pickle(stream)


def _annotations(path: Path) -> list[tuple[str, str]]:
    """The first two columns of each line: a file name, and a class or a corner."""
    lines = (line.split("\t") for line in path.read_text().splitlines())
    return [(columns[0], columns[1]) for columns in lines]


def _labels(pairs: list[tuple[Path, int]]) -> np.ndarray:
    return np.array([label for _, label in pairs], np.int64)


def _read_images(files: list[Path], dtype: Any) -> np.ndarray:
    """Read images as `(N, 3, H, W)`; a gray one fills all three channels."""
    images = (np.atleast_3d(read_image(file)) for file in files)
    return np.array([np.broadcast_to(image.transpose(2, 0, 1), (3, *image.shape[:2])) for image in images], dtype)


class _PlainUnpickler(pickle.Unpickler):
    """Finds only what arrays, and the models and update rules of this package, are made of."""

    def find_class(self, module: str, name: str) -> Any:
        ours = module.startswith("jnet.compat.cs231n.classifiers.") or module == "jnet.compat.cs231n.optim"
        if (module in _NUMPY and name in _ARRAYS) or (ours and name in importlib.import_module(module).__all__):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"the file asks for {module}.{name}; it may hold arrays, numbers and models only")
