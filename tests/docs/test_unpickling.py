"""Nothing of ours unpickles, or runs, what comes from outside."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

PACKAGES = ("supernet", "subnetact", "slackfit", "training", "traces", "serve", "benchmarks")
SOURCES = sorted(path for package in PACKAGES for path in Path(package).rglob("*.py"))
UNSAFE_MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
# What has none of these words is not parsed.
CALLS = (r"torch\.(load|package)", r"np\.load", r"yaml\.", r"\beval\(", r"\bexec\(")
WORDS = re.compile("|".join((*UNSAFE_MODULES, *CALLS)))


def unsafe(text: str) -> list[str]:
    """Return what in a module could run what a file or a peer holds."""
    found: list[str] = []
    if not WORDS.search(text):
        return found
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Import(names=names):
                found += [f"import {n.name}" for n in names if n.name in UNSAFE_MODULES]
            case ast.ImportFrom(module=module) if module in UNSAFE_MODULES:
                found.append(f"from {module}")
            case ast.Call(func=ast.Attribute(value=ast.Name(id=owner), attr=attr), keywords=words):
                given = {w.arg: w.value.value for w in words if isinstance(w.value, ast.Constant)}
                call = f"{owner}.{attr}"
                if call == "torch.load" and given.get("weights_only") is not True:
                    found.append("torch.load without weights_only=True")
                if call == "np.load" and given.get("allow_pickle") is not False:
                    found.append("np.load without allow_pickle=False")
                if call in ("yaml.load", "yaml.unsafe_load", "torch.package"):
                    found.append(call)
            case ast.Call(func=ast.Name(id="eval" | "exec" as name)):
                found.append(name)
    return found


@pytest.mark.parametrize(
    "text",
    ["import pickle", "torch.load(p)", "np.load(p)", "np.load(p, allow_pickle=True)", "eval(x)"],
)
def test_the_search_finds_what_it_is_for(text: str):
    assert unsafe(text)


# What may touch the module, and what of it: its errors, which torch's `weights_only` reader raises,
# and a reader of CIFAR's Python files whose `find_class` knows arrays alone.
ALLOWED = {
    "supernet/weights/weight_files.py": {"UnpicklingError"},
    "training/data/cifar.py": {"Unpickler", "UnpicklingError"},
}


def test_nothing_of_ours_unpickles_what_comes_from_outside():
    found = {
        (str(path), what) for path in SOURCES for what in unsafe(path.read_text(encoding="utf-8"))
    }
    assert found == {(path, "import pickle") for path in ALLOWED}
    for path, allowed in ALLOWED.items():
        tree = ast.parse(Path(path).read_text(encoding="utf-8"))
        used = {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "pickle"
        }
        assert used <= allowed, path
        if "Unpickler" in used:
            defined = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
            assert "find_class" in defined, f"{path}: an unpickler that builds anything"
