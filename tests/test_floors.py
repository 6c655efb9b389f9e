"""The rules of the house, read from the source by ast: nothing is imported, so nothing can hide behind a lazy import.

Each rule is a function `rule(tree) -> list of violations`, tried on edgemae and on planted violations.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "edgemae"

# Bottom first. A room imports itself and the floors below it. `door` is edgemae/__init__.py.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("spec", "version"),
    ("device", "terminal"),
    ("model", "data", "profiling", "doctor"),
    ("train",),
    ("distill", "prune", "export", "quantize", "evaluation", "retrieval"),
    ("door",),
    ("deploy", "viewer"),
    ("pipeline",),
    ("cli",),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
LOOSE = {"__init__", "__main__", "version"}  # the only modules that lie beside the rooms
ON_DEVICE = ("spec", "terminal", "version", "device", "profiling", "retrieval", "doctor", "door", "deploy", "viewer")
BUILD_SIDE = {
    "dill", "jinja2", "joblib", "matplotlib", "nncf", "onnx", "onnx_ir", "onnxscript", "pandas", "pickle",
    "safetensors", "scipy", "shelve", "sklearn", "torch", "torch_pruning", "torchvision", "transformers",
}  # fmt: skip
TORCH_FREE = (*ON_DEVICE, "quantize", "cli")  # at import; their functions may load it when they need it
ONE_CALL_SITE = {"torch_pruning": "edgemae.prune.cut"}
NAMED = re.compile(r"\bedgemae(?:\.[a-z_0-9]+)+")
VAGUE = {"base", "bases", "common", "helper", "helpers", "manager", "managers", "misc", "util", "utils"}
MAX_LINES = 350
REGISTRIES = {  # name: (module, what the keys must equal)
    "CRITERIA": ("edgemae.prune.criteria", "functions"),
    "ENGINES": ("edgemae.device.engines", "files"),
    "MASKS": ("edgemae.model.mae", "functions"),
    "RECIPES": ("edgemae.distill.recipes", "files"),
    "SCHEMES": ("edgemae.quantize.schemes", "functions"),
}


@dataclass(frozen=True)
class Import:
    """One imported module. `when`: import (runs on import), call (inside a function) or types (never runs)."""

    target: str
    line: int
    when: str


@dataclass(frozen=True)
class Module:
    name: str
    path: Path
    source: str
    syntax: ast.Module
    imports: tuple[Import, ...]

    @property
    def room(self) -> str:
        parts = self.name.split(".")
        if len(parts) == 1:
            return "door"
        return "cli" if parts[1] == "__main__" else parts[1]


Tree = dict[str, Module]
Rule = Callable[[Tree], list[str]]


def read(package: Path) -> Tree:
    """Return every module of a package by its dotted name."""
    paths = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        paths[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    tree = {}
    for name, path in paths.items():
        source = path.read_text(encoding="utf-8")
        syntax = ast.parse(source, str(path))
        package_name = name if path.name == "__init__.py" else name.rpartition(".")[0]
        found = tuple(_imports(syntax.body, package_name, set(paths), "import"))
        tree[name] = Module(name, path, source, syntax, found)
    return tree


def _imports(body: list[ast.stmt], package: str, known: set[str], when: str) -> Iterator[Import]:
    """Walk statements; what is inside a function runs when it is called, what is under TYPE_CHECKING never."""
    for node in body:
        yield from _walk(node, package, known, when)


def _walk(node: ast.AST, package: str, known: set[str], when: str) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        yield from (Import(alias.name, node.lineno, when) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        parts = package.split(".")
        above = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
        source = ".".join(part for part in (above, node.module) if part)
        for alias in node.names:
            inner = f"{source}.{alias.name}"
            yield Import(inner if inner in known else source, node.lineno, when)
    elif isinstance(node, ast.Call):
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if called in ("import_module", "__import__") and node.args and isinstance(node.args[0], ast.Constant):
            yield Import(str(node.args[0].value), node.lineno, when)
        if called == "getLogger":
            return  # a logger's name starts nothing
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return  # a docstring may name what it likes
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):  # what a child process or importlib starts
        yield from (Import(name, node.lineno, "call") for name in NAMED.findall(node.value) if name in known)
    inside = "call" if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) else when
    types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    for name, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _walk(child, package, known, "types" if types and name == "body" else inside)


# ---------------------------------------------------------------- rules


def points_down(tree: Tree) -> list[str]:
    """A room imports only itself and the floors below; rooms of one floor never import each other."""
    wrong = []
    for module in tree.values():
        if module.room not in FLOOR:
            wrong.append(f"{module.name}: room '{module.room}' has no floor; give it one in FLOORS")
            continue
        for found in module.imports:
            if found.target.split(".")[0] != "edgemae":
                continue
            if found.target not in tree:
                wrong.append(f"{module.name}:{found.line} imports {found.target}, which does not exist")
                continue
            room = tree[found.target].room
            if room != module.room and FLOOR.get(room, 99) >= FLOOR[module.room]:
                wrong.append(f"{module.name}:{found.line} ({module.room}) imports {found.target} ({room})")
    return wrong


def no_cycles(tree: Tree) -> list[str]:
    """No module reaches itself through imports, lazy and typing ones included."""
    graph = {name: {i.target for i in m.imports if i.target in tree} - {name} for name, m in tree.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return ["cycle: " + " <- ".join(error.args[1])]
    return []


def device_stands_alone(tree: Tree) -> list[str]:
    """What runs on a device imports no build-side library, not even inside a function."""
    return [
        f"{module.name}:{found.line} imports {found.target}"
        for module in tree.values()
        if module.room in ON_DEVICE
        for found in module.imports
        if found.target.split(".")[0] in BUILD_SIDE and found.when != "types"
    ]


def torch_free_at_import(tree: Tree) -> list[str]:
    """Importing these rooms loads no torch, whichever way the imports lead."""
    wrong = []
    for start in (m for m in tree.values() if m.room in TORCH_FREE):
        todo, seen = [start.name], set()
        while todo:
            name = todo.pop()
            if name in seen or name not in tree:
                continue
            seen.add(name)
            todo.append(name.rpartition(".")[0])  # Python runs the __init__ of every package on the way
            for found in tree[name].imports:
                if found.when == "import":
                    todo.append(found.target)
                    if found.target.split(".")[0] == "torch":
                        wrong.append(f"{start.name} loads torch through {name}:{found.line}")
    return wrong


def one_call_site(tree: Tree) -> list[str]:
    """Libraries with sharp edges are called from one file."""
    return [
        f"{module.name}:{found.line} imports {found.target}; only {ONE_CALL_SITE[library]} may"
        for module in tree.values()
        for found in module.imports
        if (library := found.target.split(".")[0]) in ONE_CALL_SITE and module.name != ONE_CALL_SITE[library]
    ]


def short_files(tree: Tree) -> list[str]:
    """No module is longer than MAX_LINES."""
    lengths = {name: len(module.source.splitlines()) for name, module in tree.items()}
    return [f"{name} has {n} lines, more than {MAX_LINES}" for name, n in lengths.items() if n > MAX_LINES]


def no_loose_modules(tree: Tree) -> list[str]:
    """Every module lies in a room, but for the door, the command and the version."""
    return [
        f"{name} lies beside the rooms; give it one"
        for name, module in tree.items()
        if module.path.parent.name == "edgemae" and module.path.stem not in LOOSE
    ]


def telling_names(tree: Tree) -> list[str]:
    """No module is named after nothing in particular."""
    return [name for name in tree if VAGUE & set(name.split(".")[-1].strip("_").split("_"))]


def literal_registries(tree: Tree) -> list[str]:
    """Each registry is one literal dict whose keys are the files beside it, or the functions that it names."""
    wrong, homes = [], {}
    for module in tree.values():
        for node in module.syntax.body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            for target in targets:
                if isinstance(target, ast.Name) and target.id in REGISTRIES:
                    homes.setdefault(target.id, []).append(module.name)
                    wrong += _registry(tree, module, target.id, getattr(node, "value", None))
    for name, (home, _) in REGISTRIES.items():
        if homes.get(name, []) != [home]:
            wrong.append(f"{name} is defined in {homes.get(name, 'no module')}, not once in {home}")
    return wrong


def _registry(tree: Tree, module: Module, name: str, value: ast.expr | None) -> list[str]:
    if not isinstance(value, ast.Dict):
        return [f"{module.name}: {name} is not a literal dict"]
    keys = [key.value if isinstance(key, ast.Constant) else None for key in value.keys]
    if not all(isinstance(key, str) for key in keys):
        return [f"{module.name}: {name} has a key that is not a literal string"]
    wrong = []
    for key, item in zip(keys, value.values, strict=True):
        named = ast.unparse(item).split(".")[0].strip("_").replace("_", "-")
        if named != str(key).strip("_").replace("_", "-"):
            wrong.append(f"{module.name}: {name}['{key}'] points to {ast.unparse(item)}")
    if REGISTRIES[name][1] == "files":
        files = {n.rpartition(".")[2] for n in tree if n.rpartition(".")[0] == module.name}
        files = {n.replace("_", "-") for n in files if not n.startswith("_")}
        if files != set(keys):
            wrong.append(f"{module.name}: {name} has {sorted(map(str, keys))}, the files are {sorted(files)}")
    return wrong


RULES: dict[str, Rule] = {
    "points_down": points_down,
    "no_cycles": no_cycles,
    "device_stands_alone": device_stands_alone,
    "torch_free_at_import": torch_free_at_import,
    "one_call_site": one_call_site,
    "short_files": short_files,
    "no_loose_modules": no_loose_modules,
    "telling_names": telling_names,
    "literal_registries": literal_registries,
}


@pytest.fixture(scope="module")
def house() -> Tree:
    return read(PACKAGE)


@pytest.mark.parametrize("rule", RULES)
def test_the_house_keeps_its_rules(house: Tree, rule: str) -> None:
    wrong = RULES[rule](house)
    assert not wrong, "\n".join(wrong)


def test_the_whole_house_is_read(house: Tree) -> None:
    assert {module.room for module in house.values()} == set(FLOOR)
    assert sum(len(module.imports) for module in house.values()) > 200


# ---------------------------------------------------------------- the rules can fail

SOUND = {
    "spec/errors.py": "import math\n",
    "device/engines/__init__.py": "from edgemae.device.engines import one\nENGINES = {'one': one.ENGINE}\n",
    "device/engines/one.py": "def load():\n    import openvino\n",
    "model/mae.py": "import torch\nimport edgemae.spec.errors\ndef _random(): ...\nMASKS = {'random': _random}\n",
    "data/image_set.py": "from edgemae.device import engines\n",
    "doctor/machine.py": "from edgemae.device import engines\n",
    "distill/recipes/__init__.py": "from edgemae.distill.recipes import logit\nRECIPES: D = {'logit': logit.Logit}\n",
    "distill/recipes/logit.py": "from edgemae.model.mae import MASKS\n",
    "prune/criteria.py": "def taylor(): ...\nCRITERIA = {'taylor': taylor}\n",
    "prune/cut.py": "def cut():\n    import torch_pruning\n",
    "quantize/schemes.py": "def ort_static():\n    import torch\nSCHEMES = {'ort-static': ort_static}\n",
    "version.py": "__version__ = '1'\n",
    "deploy/ssh.py": "from edgemae import load\nfrom edgemae.version import __version__\n",
    "pipeline/compile.py": "from edgemae.prune import cut\nimport edgemae.quantize.schemes\n",
    "cli/app.py": '"""It starts edgemae.cli.app."""\ndef run():\n    from edgemae.pipeline.compile import build\n',
}

PLANTED = [
    ("points_down", {"spec/graph.py": "from edgemae.device.engines import one\n"}, "edgemae.spec.graph:1 (spec)"),
    ("points_down", {"model/vit.py": "def f():\n    import edgemae.data.image_set\n"}, "edgemae.model.vit:2 (model)"),
    ("points_down", {"prune/x.py": "from ..quantize import schemes\n"}, "imports edgemae.quantize.schemes (quantize)"),
    ("points_down", {"evaluation/x.py": "from edgemae.pipeline.compile import b\n"}, "imports edgemae.pipeline."),
    ("points_down", {"pipeline/x.py": "from edgemae import cli\n"}, "imports edgemae.cli (cli)"),
    ("points_down", {"device/x.py": "from edgemae import load\n"}, "imports edgemae (door)"),
    ("points_down", {"data/x.py": "import importlib\nm = importlib.import_module('edgemae.pipeline.x')\n"}, "data.x:2"),
    ("points_down", {"profiling/x.py": "WORKER = 'edgemae.pipeline.compile'\n"}, "profiling.x:1 (profiling) imports"),
    ("points_down", {"profiling/x.py": "CODE = 'from edgemae.cli.app import run'\n"}, "imports edgemae.cli.app (cli)"),
    ("no_loose_modules", {"tail.py": ""}, "edgemae.tail lies beside the rooms"),
    ("points_down", {"attic/x.py": ""}, "room 'attic' has no floor"),
    ("points_down", {"prune/x.py": "import edgemae.prune.gone\n"}, "imports edgemae.prune.gone, which does not exist"),
    ("no_cycles", {"spec/a.py": "from edgemae.spec import b\n", "spec/b.py": "def f():\n    import edgemae.spec.a\n"},
     "cycle: edgemae.spec."),
    ("device_stands_alone", {"device/x.py": "import torch\n"}, "edgemae.device.x:1 imports torch"),
    ("device_stands_alone", {"spec/x.py": "def f():\n    from scipy.stats import norm\n"}, "imports scipy.stats"),
    ("device_stands_alone", {"__init__.py": "__import__('pickle')\n"}, "edgemae:1 imports pickle"),
    ("torch_free_at_import", {"quantize/x.py": "from edgemae.model import mae\n"}, "through edgemae.model.mae:1"),
    ("torch_free_at_import", {"quantize/__init__.py": "import torch\n"}, "loads torch through edgemae.quantize:1"),
    ("one_call_site", {"prune/x.py": "def f():\n    import torch_pruning as tp\n"}, "only edgemae.prune.cut may"),
    ("short_files", {"data/x.py": "x = 1\n" * 351}, "edgemae.data.x has 351 lines"),
    ("telling_names", {"data/image_utils.py": ""}, "edgemae.data.image_utils"),
    ("telling_names", {"model/base.py": ""}, "edgemae.model.base"),
    ("literal_registries", {"device/engines/two.py": ""}, "the files are ['one', 'two']"),
    ("literal_registries", {"prune/criteria.py": "CRITERIA = dict(taylor=1)\n"}, "CRITERIA is not a literal dict"),
    ("literal_registries", {"prune/criteria.py": "CRITERIA = {**OTHER}\n"}, "not a literal string"),
    ("literal_registries", {"prune/criteria.py": "CRITERIA = {'taylor': magnitude}\n"}, "points to magnitude"),
    ("literal_registries", {"prune/x.py": "CRITERIA = {}\n"}, "not once in edgemae.prune.criteria"),
    ("literal_registries", {"model/mae.py": ""}, "MASKS is defined in no module"),
]  # fmt: skip


def plant(root: Path, files: dict[str, str]) -> Tree:
    package = root / "edgemae"
    for name, source in files.items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
    for folder in [package, *(p for p in package.rglob("*") if p.is_dir())]:
        (folder / "__init__.py").touch()
    return read(package)


@pytest.mark.parametrize("rule", RULES)
def test_a_sound_house_passes(rule: str, tmp_path: Path) -> None:
    assert RULES[rule](plant(tmp_path, SOUND)) == []


@pytest.mark.parametrize(("rule", "files", "message"), PLANTED)
def test_a_planted_violation_is_found(rule: str, files: dict[str, str], message: str, tmp_path: Path) -> None:
    found = RULES[rule](plant(tmp_path, SOUND | files))
    assert message in "\n".join(found)


def test_every_rule_has_a_planted_violation() -> None:
    assert {rule for rule, _, _ in PLANTED} == set(RULES)


def test_typing_imports_never_run(tmp_path: Path) -> None:
    """A name under TYPE_CHECKING loads nothing, its `else` does."""
    source = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\nelse:\n    import onnx\n"
    found = plant(tmp_path, {"device/x.py": source})["edgemae.device.x"].imports
    assert [(i.target, i.when) for i in found] == [("typing", "import"), ("torch", "types"), ("onnx", "import")]
