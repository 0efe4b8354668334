"""The library stays readable: short files and functions, and imports that run one way."""

import ast
import inspect
import pathlib
import types

import pytest

import jaxfit

LIBRARY = pathlib.Path(jaxfit.__file__).parent
FILES = sorted(LIBRARY.rglob("*.py"))
name_of = lambda path: ".".join(path.relative_to(LIBRARY.parent).with_suffix("").parts)
MODULES = {name_of(path).removesuffix(".__init__"): path for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_and_functions_are_short(path):
    text = path.read_text()
    assert text.count("\n") <= 300
    code = {number for number, line in enumerate(text.splitlines(), 1) if line.strip()}
    comments = {n for n, line in enumerate(text.splitlines(), 1) if line.lstrip().startswith("#")}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            spans = [set(range(one.lineno, one.end_lineno + 1)) for one in body]
            assert len(set().union(*spans) & code - comments) <= 60, node.name


def imported(module):
    """Return the library's modules that a module imports when it is loaded."""
    found = set()
    for node in ast.parse(MODULES[module].read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in MODULES else node.module)
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
    return found & set(MODULES) - {"jaxfit"}


def test_imports_make_no_circle():
    left = {module: imported(module) for module in MODULES}
    while free := [module for module, needed in left.items() if not needed & set(left)]:
        for module in free:
            del left[module]
    assert not left


PURE = {
    "data", "losses", "models", "record", "replay", "run", "stop", "train",
    "_counterparts", "_guard", "_jit", "_loops", "_problem", "_reach", "_reductions", "_step",
    "_tree", "_types", "_unit",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(PURE))
def test_what_is_pure_needs_nothing_that_drives_draws_or_writes(name):
    reached, new = set(), {f"jaxfit.{name}"}
    while new:
        reached |= new
        new = {inner for module in new for inner in imported(module)} - reached
    outside = ("jaxfit._drive", "jaxfit._disk", "jaxfit.plot", "jaxfit.fit", "jaxfit.sweep")
    assert not [module for module in reached if module.startswith(outside)]


def test_what_keeps_runs_on_disk_needs_nothing_that_drives_them():
    reached, new = set(), {name for name in MODULES if name.startswith("jaxfit._disk")}
    while new:
        reached |= new
        new = {inner for module in new for inner in imported(module)} - reached
    assert not [module for module in reached if module.startswith("jaxfit._drive")]


def public():
    """Return all that has a public name, by its name."""
    parts = [getattr(jaxfit, name) for name in jaxfit.__all__]
    modules = [jaxfit, *(part for part in parts if isinstance(part, types.ModuleType))]
    names = {f"{m.__name__}.{name}": getattr(m, name) for m in modules for name in m.__all__}
    return {name: value for name, value in names.items() if callable(value)}


@pytest.mark.parametrize("name", sorted(public()))
def test_what_is_public_is_described(name):
    value = public()[name]
    text = inspect.getdoc(value)
    if inspect.isclass(value):
        assert "Attributes:" in text
    else:
        assert ">>>" in text
        signature = inspect.signature(value)
        assert "Args:" in text or not signature.parameters
        assert "Returns:" in text or signature.return_annotation in (None, "None")
