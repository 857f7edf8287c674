"""Write the tables of the book that are computed: `python docs/_site/tables.py` from the root of the repository.

`docs/tables/ops.md` lists the ops, and `kept.md` the bytes that each keeps, at the shapes of the benchmarks; a test
computes both anew.
`docs/tables/check.md` is what `jnet check` prints; its rounding errors depend on the machine.
"""

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

ROOT = Path(__file__).parents[2]
TABLES = ROOT / "docs/tables"
CASES_PER_OP = 2


def ops_table() -> str:
    """Every op with its arguments and the first line of its docstring."""
    from jnet.custom_vjp import CATALOGUE

    rows = []
    for entry in CATALOGUE:
        parameters = inspect.signature(entry.op).parameters.values()
        arguments = ", ".join(p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in parameters)
        first_line = inspect.getdoc(entry.op).splitlines()[0]
        page = "fused" if entry.forward.__module__.endswith(".fused") else entry.name
        rows.append(f"| [`{entry.name}`](../derivations/{page}.md) | `({arguments})` | {first_line} |")
    return "\n".join(["| op | arguments | |", "|---|---|---|", *rows]) + "\n"


def kept_table() -> str:
    """Bytes kept for the backward pass, by hand and by automatic differentiation of the plain twin; all in float32."""
    head = "| op | shapes | by hand | by autodiff | autodiff / by hand |\n|---|---|---:|---:|---:|"
    return "\n".join([head, *kept_rows()]) + "\n"


def kept_rows() -> Iterator[str]:
    from benchmarks.ops.cases import CASES
    from jnet.custom_vjp import CATALOGUE
    from jnet.summary import kept_bytes

    for entry in CATALOGUE:
        for case in CASES.get(entry.name, ())[:CASES_PER_OP]:
            arrays = case.draw()
            floats = {name: _shape(arrays[name]) for name in entry.diff if arrays[name] is not None}
            rest = {name: array for name, array in arrays.items() if name not in floats}

            def kept(function, floats=floats, rest=rest, case=case):
                def call(floats):
                    out = function(**floats, **rest, **case.static)
                    return out[0] if case.auxiliary else out

                return kept_bytes(call, floats)

            hand, autodiff = kept(entry.op), kept(entry.reference)
            ratio = f"{autodiff / hand:.2g}" if hand else "all"
            yield f"| `{entry.name}` | {case.label} | {_size(hand)} | {_size(autodiff)} | {ratio} |"


def check_table() -> str:
    """Largest relative error of each op's result and gradients, all samples, against float64 autodiff."""
    from jnet.check import check_op
    from jnet.custom_vjp import CATALOGUE

    lines = ["| op | float64 | float32 | bfloat16 | kept by hand | by autodiff |", "|---|---:|---:|---:|---:|---:|"]
    for entry in CATALOGUE:
        result = check_op(entry)
        errors = " | ".join(f"{error:.1e}" for error in result.errors.values())
        lines.append(f"| `{result.name}` | {errors} | {result.kept_by_hand:,} | {result.kept_by_autodiff:,} |")
    return "\n".join(lines) + "\n"


def _shape(array: np.ndarray) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype)


def _size(count: int) -> str:
    return f"{count:,} B" if count < 10_000 else f"{count / 2**20:,.2f} MiB"


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    TABLES.mkdir(exist_ok=True)
    (TABLES / "ops.md").write_text(ops_table())
    (TABLES / "kept.md").write_text(kept_table())
    (TABLES / "check.md").write_text(check_table())
