"""The notebooks run at small size, and what is committed is a full run of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path: Path) -> list[dict]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


@pytest.mark.slow
@every_notebook
def test_runs_at_small_size(path):
    if path.stem == "pytorch_and_jnet":
        pytest.importorskip("torch")
    code = "\n".join("".join(cell["source"]) for cell in code_cells(path))
    small = {"JNET_SMALL": "1", "MPLBACKEND": "Agg", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **small},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]


@every_notebook
def test_says_what_to_expect_and_holds_the_outputs_of_a_full_run(path):
    head = "".join(json.loads(path.read_text())["cells"][0]["source"])
    for word in ("**What it shows.**", "**Command.**", "**Time.**", "**Numbers to expect.**"):
        assert word in head
    outputs = [output for cell in code_cells(path) for output in cell["outputs"]]
    assert [cell["execution_count"] for cell in code_cells(path)] == list(range(1, len(code_cells(path)) + 1))
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    assert any("image/png" in output.get("data", {}) for output in outputs)


def test_the_list_names_every_example():
    listed = (ROOT / "examples/README.md").read_text()
    for path in (ROOT / "examples").iterdir():
        if path.suffix in (".ipynb", ".py"):
            assert path.name in listed
