"""The way of the imports, and what `import jnet` must not cost."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import jnet

PACKAGE = Path(jnet.__file__).parent
# A module may import those of lower floors, and of its own floor where the floor is a package.
FLOORS = [
    {"formulas"},
    {"reference", "optim"},
    {"custom_vjp"},
    {"layers"},
    {"models"},
]


def imports(path: Path) -> set[str]:
    """Names of jnet's own modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("jnet.")}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "jnet":
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("floor", range(len(FLOORS)))
def test_imports_point_one_way(floor):
    allowed = set.union(set(), *FLOORS[:floor])
    for module in FLOORS[floor]:
        files = sorted((PACKAGE / module).rglob("*.py")) or [PACKAGE / f"{module}.py"]
        for file in files:
            assert imports(file) <= allowed | {module}, file


@pytest.mark.parametrize("module", ["reference", "optim"])
def test_reference_and_optim_import_nothing_of_jnet(module):
    assert imports(PACKAGE / f"{module}.py") == set()


@pytest.mark.parametrize("file", sorted((PACKAGE / "formulas").rglob("*.py")), ids=lambda f: f.stem)
def test_formulas_import_jax_alone(file):
    roots = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or "jnet"])
    }
    assert roots <= {
        "__future__",
        "collections",
        "fractions",
        "functools",
        "itertools",
        "jax",
        "jaxlib",
        "jnet",
        "json",
        "math",
        "numpy",
        "operator",
        "platform",
        "types",
        "typing",
    }


def test_import_is_light():
    """`import jnet` loads no library at all; its modules, asked for, load JAX but nothing that is for the command."""
    heavy = "matplotlib orbax sklearn mlxtend tyro rich optax flax torch tensorboardX grain".split()
    code = f"""
import sys, jnet
early = {{"jax", "numpy"}} & set(sys.modules)
assert set(jnet.__all__) < set(dir(jnet))
for name in jnet.__all__:
    assert getattr(jnet, name).__name__ == f"jnet.{{name}}"
sys.exit(" ".join(early | set({heavy}) & set(sys.modules)) or 0)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_what_jnet_has_not_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'jnet' has no attribute 'nothing'"):
        jnet.nothing  # noqa: B018
