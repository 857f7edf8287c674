"""What the book takes from the repository while it is built: sources, notebooks, and MathJax from its package."""

import ast
import base64
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
SOURCE = re.compile(r"^\{\{ source ([\w.]+) \}\}$", re.MULTILINE)
KEPT = re.compile(r"^\{\{ kept (\w+) \}\}$", re.MULTILINE)


def on_files(files: Files, config: Any) -> Files:
    """Add a page a notebook, the list of the examples, and the files of MathJax that the pages load."""
    for notebook in sorted((ROOT / "examples").glob("*.ipynb")):
        text = notebook_to_markdown(json.loads(notebook.read_text()))
        files.append(File.generated(config, f"examples/{notebook.stem}.md", content=text))
    readme = (ROOT / "examples/README.md").read_text()
    files.append(File.generated(config, "examples/index.md", content=readme.replace(".ipynb)", ".md)")))
    for path in mathjax_files():
        files.append(File.generated(config, f"mathjax/{path.relative_to(mathjax())}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace `{{ source package.module.function }}` by that code, `{{ kept op }}` by its rows of tables/kept.md."""
    markdown = SOURCE.sub(lambda match: f"```python\n{source(match[1])}\n```", markdown)
    return KEPT.sub(lambda match: kept_rows(match[1]), markdown)


def source(name: str) -> str:
    """The code of a function or class from its file; the docstring of a function, which the page shows, is left out."""
    module, _, wanted = name.rpartition(".")
    path = ROOT / module.replace(".", "/")
    text = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()
    (node,) = (node for node in ast.parse(text).body if getattr(node, "name", None) == wanted)
    lines = text.splitlines()
    first = node.body[0]
    if isinstance(node, ast.FunctionDef) and isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
        kept = lines[node.lineno - 1 : first.lineno - 1] + lines[first.end_lineno : node.end_lineno]
    else:
        kept = lines[node.lineno - 1 : node.end_lineno]
    return "\n".join(kept)


def kept_rows(op: str) -> str:
    """The rows of one op in the table of bytes kept for the backward pass."""
    head, rule, *rows = (ROOT / "docs/tables/kept.md").read_text().splitlines()
    own = [row for row in rows if row.startswith(f"| `{op}` |")]
    title = "Bytes kept for the backward pass, in float32, what is an argument counted too:"
    return "\n".join([title, "", head, rule, *own]) if own else ""


def notebook_to_markdown(notebook: dict[str, Any]) -> str:
    """Cells as text, code and results; pictures are kept in the page."""
    parts = []
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
        parts += [shown for output in cell.get("outputs", []) if (shown := output_to_markdown(output))]
    return "\n\n".join(parts) + "\n"


def output_to_markdown(output: dict[str, Any]) -> str:
    """A result of a cell: what it printed, its picture or its value; progress and warnings are left out."""
    if output["output_type"] == "stream":
        return f"```text\n{''.join(output['text']).rstrip()}\n```" if output["name"] == "stdout" else ""
    data = output.get("data", {})
    if "image/png" in data:
        image = base64.b64encode(base64.b64decode("".join(data["image/png"]))).decode()
        return f"![](data:image/png;base64,{image})"
    return f"```text\n{''.join(data['text/plain'])}\n```" if "text/plain" in data else ""


def mathjax() -> Path:
    """The folder of MathJax inside the package django-static-mathjax, which is nothing but those files."""
    spec = importlib.util.find_spec("mathjax")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("mathjax: not installed; the docs need it: pip install -e '.[docs]'")
    return Path(spec.submodule_search_locations[0], "static", "mathjax", "es5")


def mathjax_files() -> list[Path]:
    """The TeX reader with HTML output, and its fonts."""
    return [mathjax() / "tex-chtml.js", *sorted((mathjax() / "output/chtml/fonts").rglob("*.woff"))]
