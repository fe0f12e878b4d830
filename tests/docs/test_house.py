"""The house: few files a folder, no circles, a line for every folder, contracts that hold.

What every later change is held to as well. `make check` runs the contracts themselves.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from itertools import chain
from pathlib import Path

import pytest

PACKAGES = ("supernet", "slackfit", "subnetact", "traces", "training", "serve")
MOST_FILES = 20
LEAST_CONTRACTS = 12
CONTRACTS = {
    contract["name"]: contract
    for contract in tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["tool"][
        "importlinter"
    ]["contracts"]
}


def is_ours(path: Path) -> bool:
    return not path.stem.endswith(("_pb2", "_pb2_grpc"))


@cache
def modules() -> dict[str, Path]:
    """Every module of the six packages by its dotted name; generated stubs left out."""
    paths = chain.from_iterable(Path(package).rglob("*.py") for package in PACKAGES)
    return {
        ".".join(path.with_suffix("").parts).removesuffix(".__init__"): path
        for path in paths
        if is_ours(path)
    }


def folders() -> list[Path]:
    return sorted({path.parent for path in modules().values()})


@cache
def imported(path: Path) -> tuple[str, ...]:
    """Modules that a file imports anywhere: at its top, inside a function, for types only."""
    return tuple(_imported(path))


def _imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in modules() else node.module


@cache
def imports() -> dict[str, set[str]]:
    """Our imports: module -> modules of ours."""
    return {
        name: {other for other in imported(path) if other in modules()} - {name}
        for name, path in modules().items()
    }


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Sets of nodes that reach each other (Tarjan's strongly connected components)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[set[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(graph[node]):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            members = set(stack[stack.index(node) :])
            del stack[stack.index(node) :]
            if len(members) > 1:
                found.append(members)

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return found


@pytest.mark.parametrize("folder", folders(), ids=str)
def test_a_folder_can_be_seen_at_a_glance(folder: Path):
    files = [path.name for path in modules().values() if path.parent == folder]
    assert len(files) <= MOST_FILES, sorted(files)


def test_no_module_imports_itself_by_way_of_others():
    assert circles(imports()) == []


def test_a_circle_would_be_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [{"a", "b", "c"}]


def test_every_import_of_ours_names_a_module_that_exists():
    missing = {
        (name, other)
        for name, path in modules().items()
        for other in imported(path)
        if other.split(".")[0] in PACKAGES and other not in modules() and "_pb2" not in other
    }
    assert missing == set()


@pytest.mark.parametrize("folder", [f for f in folders() if len(f.parts) > 1], ids=str)
def test_a_folder_says_in_a_line_what_lives_there_and_what_it_imports(folder: Path):
    docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))
    assert docstring, f"{folder}/__init__.py has no docstring"
    assert len(docstring.splitlines()) == 1, docstring
    assert "import" in docstring, docstring


def test_docs_list_every_folder():
    text = Path("docs/structure.md").read_text(encoding="utf-8")
    assert [str(folder) for folder in folders() if f"`{folder}/`" not in text] == []


@pytest.mark.parametrize("page", [Path("README.md"), *sorted(Path("docs").rglob("*.md"))], ids=str)
def test_a_page_names_files_that_exist(page: Path):
    named = re.findall(
        rf"(?<![\w/.])((?:{'|'.join(PACKAGES)}|tests|configs)/[\w/.-]+\.(?:py|toml|md|json))\b",
        page.read_text(encoding="utf-8"),
    )
    assert [name for name in named if not Path(name).is_file()] == []


def classes() -> dict[str, list[str]]:
    """Where each class name is defined; a leading underscore makes no other name."""
    found: dict[str, list[str]] = defaultdict(list)
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                found[node.name.lstrip("_")].append(name)
    return found


def test_a_class_name_means_one_thing():
    assert {name: where for name, where in classes().items() if len(where) > 1} == {}


def test_the_contracts_are_there():
    assert len(CONTRACTS) >= LEAST_CONTRACTS


@pytest.mark.parametrize(
    ("source", "forbidden"),
    [
        ("serve.client", {"serve.engine", "serve.models", "serve.doors", "serve.access",
                          "serve.observe", "serve.hosts", "serve.config"}),
        ("serve.engine", {"ray", "grpc", "starlette", "serve.proto", "serve.doors"}),
    ],
)  # fmt: skip
def test_what_a_folder_must_not_know(source: str, forbidden: set[str]):
    held = [
        set(contract["forbidden_modules"])
        for contract in CONTRACTS.values()
        if contract["type"] == "forbidden" and source in contract["source_modules"]
    ]
    assert any(forbidden <= modules for modules in held), held


def test_three_ways_to_run_a_subnet_are_strangers():
    held = [set(c["modules"]) for c in CONTRACTS.values() if c["type"] == "independence"]
    assert {"subnetact.views", "subnetact.cpu", "subnetact.cuda"} in held


def test_nothing_but_the_audit_imports_the_benchmarks():
    """The audit measures as well, on top of them: servers in processes, a journal of cells."""
    importers = {
        name
        for name, others in imports().items()
        for other in others
        if other.startswith("serve.bench") and not name.startswith(("serve.bench", "serve.audit"))
    }
    assert importers == set()


def test_a_users_error_ends_a_command_in_one_way():
    by_hand = re.compile(r"typer\.Exit\(2\)|Exit\(code=2\)")
    texts = {name: path.read_text(encoding="utf-8") for name, path in modules().items()}
    assert [name for name, text in texts.items() if by_hand.search(text)] == []
    homes = {name for name, text in texts.items() if re.search(r"def _?user_errors\b", text)}
    assert homes == {"slackfit.user_errors", "supernet.cli"}


def test_benchmarks_share_what_a_row_is():
    texts = {n: p.read_text(encoding="utf-8") for n, p in modules().items() if ".bench" in n}
    for shared in (r"^Row\b.*=", r"^Tell\b.*=", r"def _?row\(", r"def write_rows\(", r'"figure":'):
        homes = {name for name, text in texts.items() if re.search(shared, text, re.M)}
        assert homes == {"serve.bench.rows"}, shared


def test_words_of_users_are_never_read_as_markup():
    """A folder named `[bold]` is told by its name: one place makes consoles, without markup."""
    texts = {name: path.read_text(encoding="utf-8") for name, path in modules().items()}
    homes = {name for name, text in texts.items() if re.search(r"\bConsole\(", text)}
    assert homes == {"slackfit.plain_console"}
