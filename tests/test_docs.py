"""The book is up to date with the package: a page an op, and the tables that are computed."""

import sys
from pathlib import Path

import jax
import pytest

from jnet.custom_vjp import CATALOGUE

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAIRS = [entry for entry in CATALOGUE if not entry.forward.__module__.endswith(".fused")]


@pytest.fixture
def tables(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.syspath_prepend(str(DOCS / "_site"))
    import tables

    yield tables
    del sys.modules["tables"]


@pytest.mark.parametrize("entry", PAIRS, ids=lambda entry: entry.name)
def test_every_op_has_a_page_with_all_its_parts(entry):
    page = (DOCS / f"derivations/{entry.name}.md").read_text()
    for part in ("## Derivation", "## Costs", "## What goes wrong in practice", "## The code", "## Checked by SymPy"):
        assert part in page
    assert f"::: {entry.forward.__module__}.{entry.forward.__name__}" in page
    assert entry.backward.__name__ in page
    assert f'tests/test_symbolic.py:{entry.name}"' in page
    assert f"derivations/{entry.name}.md" in (ROOT / "mkdocs.yml").read_text()


def test_the_page_of_fused_ops_has_them_all():
    page = (DOCS / "derivations/fused.md").read_text()
    for entry in (entry for entry in CATALOGUE if entry not in PAIRS):
        assert entry.backward.__name__ in page


def test_the_computed_table_of_ops_is_current(tables):
    assert (DOCS / "tables/ops.md").read_text() == tables.ops_table(), "run python docs/_site/tables.py"


@pytest.mark.skipif(jax.__version_info__[:2] != (0, 10), reason="the table shows what autodiff in jax 0.10 keeps")
def test_the_computed_table_of_bytes_is_current(tables):
    with jax.enable_x64(False):  # sizes are those of a user's session
        assert (DOCS / "tables/kept.md").read_text() == tables.kept_table(), "run python docs/_site/tables.py"


def test_the_table_of_rounding_errors_has_every_op():
    rows = (DOCS / "tables/check.md").read_text().splitlines()[2:]
    assert [row.split("`")[1] for row in rows] == [entry.name for entry in CATALOGUE], "run python docs/_site/tables.py"
