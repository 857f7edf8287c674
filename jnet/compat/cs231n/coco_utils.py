"""The course's form of the COCO captions: load, sample, decode."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["BASE_DIR", "decode_captions", "load_coco_data", "sample_coco_minibatch"]

BASE_DIR = str(Path(__file__).parent / "datasets" / "coco_captioning")


def load_coco_data(
    base_dir: str | Path = BASE_DIR, max_train: int | None = None, pca_features: bool = True
) -> dict[str, Any]:
    """Read the course's archive: captions, features of images, the vocabulary and the images' addresses.

    `max_train` draws that many training captions, with replacement. Raises FileNotFoundError where a file is missing
    and ModuleNotFoundError without h5py.
    """
    print("base dir ", base_dir)
    folder, suffix = Path(base_dir), "_pca" if pca_features else ""
    data = _read_h5(folder / "coco2014_captions.h5")
    for split in ("train", "val"):
        data[f"{split}_features"] = _read_h5(folder / f"{split}2014_vgg16_fc7{suffix}.h5")["features"]
        addresses = _found(folder / f"{split}2014_urls.txt").read_text(encoding="utf-8")
        data[f"{split}_urls"] = np.asarray([line.strip() for line in addresses.splitlines()])
    data.update(json.loads(_found(folder / "coco2014_vocab.json").read_text(encoding="utf-8")))
    if max_train is not None:
        chosen = np.random.randint(len(data["train_captions"]), size=max_train)
        for name in ("train_captions", "train_image_idxs"):
            data[name] = data[name][chosen]
    return data


def decode_captions(captions: np.ndarray, idx_to_word: Sequence[str]) -> str | list[str]:
    """Turn one caption `(T,)` or several `(N, T)` into text: without `<NULL>`, up to and with the first `<END>`."""
    if captions.ndim == 1:
        return _decoded(captions, idx_to_word)
    return [_decoded(caption, idx_to_word) for caption in captions]


def sample_coco_minibatch(
    data: dict[str, Any], batch_size: int = 100, split: str = "train"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw captions `(batch, T)` with their images' features `(batch, D)` and addresses, with replacement."""
    chosen = np.random.choice(len(data[f"{split}_captions"]), batch_size)
    images = data[f"{split}_image_idxs"][chosen]
    return data[f"{split}_captions"][chosen], data[f"{split}_features"][images], data[f"{split}_urls"][images]


def _decoded(caption: np.ndarray, idx_to_word: Sequence[str]) -> str:
    words = [str(idx_to_word[index]) for index in caption]
    if "<END>" in words:
        words = words[: words.index("<END>") + 1]
    return " ".join(word for word in words if word != "<NULL>")


def _read_h5(path: Path) -> dict[str, np.ndarray]:
    import h5py  # pyright: ignore[reportMissingImports]  # an optional package, for these files alone

    with h5py.File(_found(path), "r") as file:
        return {name: np.asarray(values) for name, values in file.items()}


def _found(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; it must hold a part of the course's coco_captioning archive")
    return path
