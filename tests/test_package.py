"""The package as a whole: who imports whom, what importing it changes (nothing), what is public, its docstrings."""

import ast
import dataclasses
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = "fastai_heads"
ROOT = Path(__file__).parents[1]

LEAVES = {"errors", "names", "values", "head_tuple"}
NETWORK = {"modes", "archs", "data", "bodies", "tasks", "heads", "trunks", "model"}
# What a layer may import, besides itself. A new file or folder directly under fastai_heads/ gets its row here.
LAYERS = {
    "errors": set(),
    "names": {"errors"},
    "values": {"errors"},
    "head_tuple": {"errors", "names"},
    "disk": {"errors"},
    "modes": {*LEAVES},
    "archs": {*LEAVES, "modes"},
    "data": {*LEAVES, "disk"},
    "examples": {*LEAVES},
    "bodies": {*LEAVES, "modes", "archs", "data"},
    "tasks": {*LEAVES, "data"},
    "heads": {*LEAVES, "archs", "data", "tasks"},
    "trunks": {*LEAVES, "modes", "archs", "data", "bodies", "heads"},
    "model": {*LEAVES, "modes", "archs", "data", "bodies", "heads", "trunks"},
    "training": {*LEAVES, *NETWORK},
    "view": {*LEAVES, *NETWORK, "training"},
    "export": {*LEAVES, *NETWORK, "disk", "learner"},  # the learner in one call alone: a bundle that is trained on
    "learner": {*LEAVES, *NETWORK, "disk", "training", "view", "export", "probe"},
    "serve": {*LEAVES, "export"},
    "probe": {*LEAVES, *NETWORK, "training"},
    "compare": {*LEAVES, *NETWORK, "disk", "training", "view", "learner"},
}
ANYTHING = {"__init__", "__main__", "demo"}  # the doors: may import every layer, no layer imports them


class Import(NamedTuple):
    "One name that a file imports from this package."

    line: int
    module: str  # the module as it is written
    name: str | None  # what is taken from it; None for `import module`
    when: str  # 'import': when the file is imported; 'call': inside a function; 'typing': never


def module_name(path: Path) -> str:
    "Name a file's module: `fastai_heads.heads` for fastai_heads/heads/__init__.py."
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted((ROOT / PACKAGE).rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}
PACKAGES = {name for name, path in FILES.items() if path.stem == "__init__"}


def imports_in(node: ast.AST, when: str = "import") -> Iterator[Import]:
    "List every import below a node."
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(child.lineno, a.name, None, when) for a in child.names)
        elif isinstance(child, ast.ImportFrom):
            module = "." * child.level + (child.module or "")
            yield from (Import(child.lineno, module, a.name, when) for a in child.names)
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from imports_in(child, "call")
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            yield from imports_in(child, "typing")
        else:
            yield from imports_in(child, when)


def ours(module: str) -> bool:
    "Tell whether a module, as it is written in an import, is this package's."
    return module.startswith(".") or module.split(".")[0] == PACKAGE


def imported(entry: Import) -> str:
    "Name the module that an import executes: `from fastai_heads.heads import pooled` is of fastai_heads.heads.pooled."
    whole = f"{entry.module}.{entry.name}"
    return whole if whole in FILES else entry.module


def layer_of(module: str) -> str:
    "Name the file or folder directly under fastai_heads/ to which a module belongs."
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def our_imports() -> Iterator[tuple[str, Import]]:
    "List (module, import) for every import of this package by itself."
    for module, tree in TREES.items():
        yield from ((module, entry) for entry in imports_in(tree) if ours(entry.module))


def test_every_layer_is_known():
    assert {layer_of(m) for m in FILES} <= LAYERS.keys() | ANYTHING


def test_no_star_import():
    stars = [(m, e.line, e.module) for m, tree in TREES.items() for e in imports_in(tree) if e.name == "*"]
    assert not stars


def test_imports_name_the_defining_module():
    bad = []
    for module, entry in our_imports():
        if entry.module.startswith("."):
            bad.append(f"{module}:{entry.line}: relative import from {entry.module}")
        elif imported(entry) not in FILES:
            bad.append(f"{module}:{entry.line}: {imported(entry)} does not exist")
        elif imported(entry) in PACKAGES and layer_of(module) not in ANYTHING:
            bad.append(f"{module}:{entry.line}: import from the __init__ of {imported(entry)}")
    assert not bad


def test_imports_follow_the_layers():
    bad = []
    for module, entry in our_imports():
        layer, other = layer_of(module), layer_of(imported(entry))
        if layer not in ANYTHING and other not in LAYERS[layer] | {layer}:
            bad.append(f"{module}:{entry.line}: {layer} may not import {imported(entry)}")
    assert not bad


def executed(module: str) -> set[str]:
    "List the modules of this package that importing one executes. The packages that it lies in do not count."
    direct = {imported(e) for e in imports_in(TREES[module]) if ours(e.module) and e.when == "import"}
    parents = {name.rsplit(".", n)[0] for name in direct for n in range(1, name.count("."))}
    return {m for m in direct | parents if m in FILES and not f"{module}.".startswith(f"{m}.")}


def test_no_import_cycle():
    try:
        TopologicalSorter({m: executed(m) for m in FILES}).prepare()
    except CycleError as error:
        pytest.fail("import cycle: " + " → ".join(error.args[1]))


@pytest.mark.parametrize("package", sorted(PACKAGES - {PACKAGE}))
def test_init_files_only_reexport(package: str):
    docstring, *rest = TREES[package].body
    assert isinstance(docstring, ast.Expr) and ast.literal_eval(docstring.value).strip(), "no docstring"
    exported, names = [], set()
    for node in rest:
        if isinstance(node, ast.ImportFrom):
            names |= {a.asname or a.name for a in node.names}
            continue
        name = ast.unparse(node.targets[0]) if isinstance(node, ast.Assign) else None
        assert name == "__all__", ast.unparse(node)
        exported = ast.literal_eval(node.value) if name == "__all__" else exported
    assert sorted(exported) == sorted(names)


def test_public_names_are_found_where_the_stub_says():
    import fastai_heads

    stub = ast.parse((ROOT / PACKAGE / "__init__.pyi").read_text(encoding="utf-8"))
    said = {a.name: node.module for node in stub.body if isinstance(node, ast.ImportFrom) for a in node.names}
    assert said == fastai_heads._MODULES and sorted(said) == fastai_heads.__all__
    assert all(getattr(fastai_heads, name) is getattr(sys.modules[module], name) for name, module in said.items())
    with pytest.raises(AttributeError, match="has no attribute 'multihead_lerner'"):
        _ = fastai_heads.multihead_lerner


def test_importing_the_package_imports_no_torch():
    code = "import sys, fastai_heads.export.predictor; print([m for m in ('torch', 'fastai') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Runs in a process of its own, in which fastai has been imported and this package has not.
PROBE = """
import importlib, inspect, json, random, sys, types, warnings
import matplotlib, numpy as np, torch
import sklearn.datasets, timm
from fastai.vision.all import *
from plum import Function

THEIRS = ("fastai", "fastcore", "fasttransform", "fastprogress", "plum")


def state(value):
    "Return what has to stay: the object, and for a dispatched function its methods."
    return (id(value), len(value.methods)) if isinstance(value, Function) else id(value)


def snapshot(modules):
    "Collect every global of some modules, and every attribute of the classes among them."
    found = {}
    for module in modules:
        for name, value in list(vars(module).items()):
            found[f"{module.__name__}.{name}"] = state(value)
            if isinstance(value, type) and value.__module__.split(".")[0] in (*THEIRS, "torch"):
                prefix = f"{value.__module__}.{value.__qualname__}"
                found |= {f"{prefix}.{k}": state(v) for k, v in list(vars(value).items())}
    found |= {f"defaults.{k}": repr(v) for k, v in vars(defaults).items()}
    found |= {f"rcParams.{k}": repr(v) for k, v in matplotlib.rcParams.items()}
    found["warnings.filters"] = repr(warnings.filters)
    found["torch.get_default_dtype"] = repr(torch.get_default_dtype())
    found["torch.get_num_threads"] = torch.get_num_threads()
    found["random"] = hash(random.getstate())
    found["numpy.random"] = hash(np.random.get_state()[1].tobytes())
    found["torch.random"] = hash(torch.get_rng_state().numpy().tobytes())
    return found


modules = [m for name, m in list(sys.modules.items()) if name.split(".")[0] in THEIRS or name == "torch.nn"]
star = {}
exec("from fastai.vision.all import *", star)
for f in (show_batch, show_results, plot_top_losses): f.methods  # plum registers late
before = snapshot(modules)
before = snapshot(modules)  # counting the methods is what settles them
import fastai_heads
from fastai_heads import *
after = snapshot(modules)

changed = sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))
hides = {**vars(importlib.import_module("builtins")), **star}
shadowed = [n for n in fastai_heads.__all__ if n in hides and hides[n] is not getattr(fastai_heads, n)]
print(json.dumps({"seen": len(before), "changed": changed, "shadowed": shadowed}))
"""


@pytest.fixture(scope="module")
def probed() -> dict:
    "Import the package in a process of its own, and say what that changed for everybody else."
    answer = subprocess.run([sys.executable, "-c", PROBE], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout.splitlines()[-1])


def test_importing_changes_nothing_for_others(probed: dict):
    assert probed["seen"] > 5000
    assert probed["changed"] == []


def test_no_public_name_shadows_fastai(probed: dict):
    assert probed["shadowed"] == []


def untyped(function: object) -> list[str]:
    "List the parameters of a function that have no type, `return` among them."
    signature = inspect.signature(function)
    empty = [p.name for p in signature.parameters.values() if p.annotation is p.empty and p.name != "self"]
    is_init = getattr(function, "__name__", "") == "__init__"
    return empty + (["return"] if signature.return_annotation is signature.empty and not is_init else [])


def defined_here(value: object) -> bool:
    "Tell whether a class or a function is this package's own."
    return (getattr(value, "__module__", None) or "").split(".")[0] == PACKAGE


def test_public_names_are_documented_and_typed():
    import fastai_heads

    bad = []
    for name in fastai_heads.__all__:
        value = getattr(fastai_heads, name)
        doc = value.__doc__ or ""
        if not doc.strip() or doc.startswith(f"{name}("):  # what a dataclass without one is given
            bad.append(f"{name} has no docstring")
        if inspect.isclass(value):
            init = vars(value).get("__init__")
            if init is not None and defined_here(value) and not dataclasses.is_dataclass(value):
                bad += [f"{name}.__init__({p}) has no type" for p in untyped(init)]
        elif callable(value):
            bad += [f"{name}({p}) has no type" for p in untyped(value)]
    assert not bad
    assert len(set(fastai_heads.__all__)) == len(fastai_heads.__all__)


NO_VERB = re.compile(
    r"(the|a|an|what|whether|how|one|why|which|every|all|as|of|where|that|each|in|from|no)\b", re.IGNORECASE
)


def docstrings(path: Path) -> Iterator[tuple[ast.FunctionDef, str]]:
    "List (function, docstring). A property does not count, as its docstring names what it is."
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("__"):
            continue
        text = ast.get_docstring(node)
        if text and not any("property" in ast.unparse(decorator) for decorator in node.decorator_list):
            yield node, text


def told_files() -> list[Path]:
    "List the files whose docstrings begin with a verb: the package and what is run beside it."
    return sorted(p for folder in (PACKAGE, "benchmarks", "examples", ".ci") for p in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", told_files(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_docstrings_of_functions_begin_with_a_verb(path: Path):
    assert [f"{node.name}, line {node.lineno}: {text}" for node, text in docstrings(path) if NO_VERB.match(text)] == []
