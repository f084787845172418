"""The shape of the code base: rooms, packaging, private interfaces and sizes. Reads sources, runs nothing."""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# In the order in which data flows: a module imports its own room and the rooms above it. A room is a
# folder or a file directly under dpcompile/. Kernels stand above the rooms that emit calls to them.
ROOMS = (
    "scan", "torch_private", "ir", "kernels", "clip", "rules", "selection", "losses", "reads", "fingerprint", "hooks",
    "batch", "guards", "provenance", "simplify", "views", "substitutes", "python_state", "conditions", "buffers", "constants",
    "sizes", "capture", "criteria", "analysis", "cost", "strategies", "predict", "plan", "passes", "measure", "forecast",
    "report", "runtime", "pipeline", "certificate", "step", "verify", "per_example", "trees", "cotangents", "recall", "parts",
    "arguments", "drop_in", "module", "training", "demo", "__main__",
)  # fmt: skip
LINES_PER_FILE = 300
LINES_PER_FUNCTION = 50


def sources() -> dict[str, Path]:
    """Every module of the product by its dotted name; the rewrites under the name they are imported by."""
    package = [path for path in (ROOT / "dpcompile").rglob("*.py") if (ROOT / "dpcompile/passes") not in path.parents]
    files = {path.relative_to(ROOT): path for path in package}
    files |= {"dpcompile" / path.relative_to(ROOT): path for path in (ROOT / "passes").rglob("*.py")}
    return {name_of(relative): path for relative, path in files.items()}


def name_of(relative: Path) -> str:
    """The dotted name of a source file."""
    parts = relative.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything that a module imports, local imports included.

    `from a import b` yields a.b, since b may be a module.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def attributes_of_torch(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every attribute chain that starts at `torch`, and of its beginnings."""
    for node in ast.walk(tree):
        parts: list[str] = []
        inner: ast.AST = node
        while isinstance(inner, ast.Attribute):
            parts.append(inner.attr)
            inner = inner.value
        if parts and isinstance(inner, ast.Name) and inner.id == "torch":
            yield inner.lineno, ".".join(["torch", *reversed(parts)])


def is_private_torch(name: str) -> bool:
    """Whether a dotted name leads into torch's private interfaces; `torch.__version__` is public."""
    first, *rest = name.split(".")
    return first == "torch" and any(part.startswith("_") and not part.endswith("__") for part in rest)


def room_of(name: str) -> str | None:
    """The room of a module of ours; None for the package itself and for what others wrote."""
    parts = name.split(".")
    return parts[1] if parts[0] == "dpcompile" and len(parts) > 1 else None


MODULES = {name: (path, ast.parse(path.read_text(encoding="utf-8"))) for name, path in sources().items()}


def test_every_module_stands_in_a_room() -> None:
    strangers = {name for name in MODULES if room_of(name) not in (None, *ROOMS)}
    assert not strangers, f"add them to ROOMS, in the order of the flow: {sorted(strangers)}"


@pytest.mark.parametrize("name", [name for name in MODULES if room_of(name) in ROOMS])
def test_a_room_imports_only_rooms_above_it(name: str) -> None:
    path, tree = MODULES[name]
    here = ROOMS.index(str(room_of(name)))
    below = [
        f"{path.relative_to(ROOT)}:{line} imports {other}" for line, other in imports(tree) if room_of(other) in ROOMS[here + 1 :]
    ]
    assert not below, "\n".join(below)


def test_private_interfaces_of_torch_are_used_in_one_file() -> None:
    found = {
        f"{path.relative_to(ROOT)}:{line} uses {name}"
        for module, (path, tree) in MODULES.items()
        if module != "dpcompile.torch_private"
        for line, name in (*imports(tree), *attributes_of_torch(tree))
        if is_private_torch(name)
    }
    assert not found, "give it a function with a reason in torch_private.py:\n" + "\n".join(sorted(found))


def test_a_planted_private_import_would_be_found() -> None:
    tree = ast.parse("from torch._guards import tracing\nimport torch.fx as fx\nx = torch.nn.functional._f(torch.__file__)")
    names = [name for _, name in (*imports(tree), *attributes_of_torch(tree)) if is_private_torch(name)]
    assert names == ["torch._guards.tracing", "torch.nn.functional._f"]


def test_packaging_lists_every_folder() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted(name for name, (path, _) in MODULES.items() if path.name == "__init__.py")


def test_the_rewrites_have_one_identity() -> None:
    import dpcompile.passes  # noqa: PLC0415  (what this test is about)

    assert (ROOT / "dpcompile/passes").resolve() == ROOT / "passes"
    assert dpcompile.passes.__name__ == "dpcompile.passes"
    assert "passes" not in sys.modules, "import dpcompile.passes, never the folder at the top level"


@pytest.mark.parametrize("name", MODULES)
def test_files_and_functions_are_short_and_say_what_they_are(name: str) -> None:
    path, tree = MODULES[name]
    assert ast.get_docstring(tree), f"{path} opens without a docstring"
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LINES_PER_FILE, f"split {path}"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= LINES_PER_FUNCTION, f"{path}:{node.lineno} {node.name} has {length} lines"


@pytest.mark.parametrize("name", MODULES)
def test_sources_are_ascii(name: str) -> None:
    assert MODULES[name][0].read_bytes().isascii()


def test_other_trainers_are_imported_by_their_own_files_only() -> None:
    found = {
        name
        for name, (_, tree) in MODULES.items()
        for _, imported in imports(tree)
        if imported.split(".")[0] in ("transformers", "lightning")
    }
    training = "dpcompile.training."
    assert found == {training + name for name in ("hf_arguments", "hf_trainer", "lightning_arguments", "lightning_callback")}
    needing = {
        name for name, (_, tree) in MODULES.items() for _, other in imports(tree) if any(other.startswith(one) for one in found)
    }
    assert needing <= found, "an optional extra would be needed by everyone"
