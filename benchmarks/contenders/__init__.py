"""Those who race: jnet and its rivals, each building the same workloads in its own idiom.

A contender is written `library:variant:variant`, for example `flax:scan` or `torch:compile:channels_last`. Each
module's `build(workload, variants, precision)` returns an object with

- `describe(checked) -> dict`: parameters, mean losses over the halves of the first `checked` steps, compiled
  temporaries;
- `compile() -> float`: seconds to compile the step;
- `run(seconds) -> list[float]`: seconds a training step, measured for about that long.
"""

import importlib
from typing import Any

from benchmarks.workloads import Workload

MODULES = {"jnet": "jnet_steps", "flax": "flax_steps", "equinox": "equinox_steps", "torch": "torch_steps"}
VARIANTS = {
    "jnet": ("scan", "reference"),
    "flax": ("scan", "reduce", "off"),
    "equinox": ("scan", "reduce", "off"),
    "torch": ("channels_last", "compile"),
}
STEPS = (
    *("jnet", "flax", "flax:reduce", "flax:off", "equinox", "equinox:reduce", "equinox:off"),
    *("torch", "torch:channels_last", "torch:compile", "torch:compile:channels_last"),
)
SCANS = ("jnet:scan", "flax:scan", "flax:scan:reduce", "equinox:scan", "equinox:scan:reduce")


def parse(contender: str) -> tuple[str, frozenset[str]]:
    """`"flax:scan:reduce"` -> `("flax", {"scan", "reduce"})`; ValueError names an unknown part."""
    library, *variants = contender.split(":")
    if library not in MODULES:
        raise ValueError(f"contender {contender!r}: {library!r} is not one of {', '.join(MODULES)}")
    for variant in variants:
        if variant not in VARIANTS[library]:
            known = ", ".join(VARIANTS[library])
            raise ValueError(f"contender {contender!r}: {variant!r} is not one of {library}'s variants {known}")
    return library, frozenset(variants)


def build(contender: str, workload: Workload, precision: str = "float32") -> Any:
    """Build a contender in this process."""
    library, variants = parse(contender)
    module = importlib.import_module(f"benchmarks.contenders.{MODULES[library]}")
    return module.build(workload, variants, precision)
