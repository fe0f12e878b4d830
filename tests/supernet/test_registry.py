"""The registry, and the network that docs/families.md shows to users."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from serve.cli import build_app
from subnetact import Actuator
from supernet import (
    Subgraph,
    cost,
    create_supernet,
    define_supernet,
    extract,
    list_supernets,
    registry,
)
from supernet.registry import get_family, list_families

DOCS = Path(__file__).parents[2] / "docs" / "families.md"


@pytest.fixture
def plain() -> Iterator[None]:
    """The user's network of the documentation, registered for one test."""
    (code,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    statements = [line for line in code.splitlines() if line.strip()]
    assert len(statements) < 45, "the example is meant to be read at a glance"
    program = compile(code, str(DOCS), "exec", dont_inherit=True)
    exec(program, {"__name__": "user_network"})
    yield
    del registry._families["plain"]


@torch.inference_mode()
def test_the_network_of_the_documentation_is_a_supernet(plain: None) -> None:
    definition = define_supernet("plain_32", channels=16)
    net = create_supernet("plain_32", channels=16).eval()
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    actuator = Actuator(net, definition)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for arch in definition.space:
        subnet = extract(state, definition, arch)
        statistics = {n: t for n, t in subnet.state_dict().items() if "running" in n}
        actuator.actuate(actuator.register(arch, statistics))
        torch.testing.assert_close(net(x), subnet(x), atol=1e-5, rtol=1e-5)
        params = sum(p.numel() for p in subnet.parameters())
        assert cost(definition, arch).params == params
        assert Subgraph.of(definition, arch).num_elements == params


def test_every_named_supernet_has_a_space_and_a_cost_rising_with_size() -> None:
    for name in list_supernets():
        definition = define_supernet(name)
        arch = definition.space.sample(np.random.default_rng(0))
        sizes = [
            sum(int(np.prod(shape)) for shape in definition.parameter_shapes(a).values())
            for a in (definition.space.smallest, arch, definition.space.largest)
        ]
        assert sizes == sorted(sizes)
        assert sizes[0] < sizes[-1]


def test_a_familys_name_stands_for_its_first_variant() -> None:
    assert define_supernet("ofa_mobilenet_v3") == define_supernet("ofa_mobilenet_v3_w1.0")
    assert define_supernet("vit") == define_supernet("vit_tiny_patch16_224")


def test_an_entry_point_registers_a_family(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    (tmp_path / "my_plain.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    point = EntryPoint(name="plain", value="my_plain", group="supernet.families")
    monkeypatch.setattr(registry, "entry_points", lambda group: [point])
    registry._load_built_in.cache_clear()
    try:
        assert "plain_32" in list_supernets()
    finally:
        registry._families.pop("plain", None)
        registry._load_built_in.cache_clear()


def test_a_name_is_taken_once(plain: None) -> None:
    other = get_family("resnet")
    with pytest.raises(ValueError, match="'plain' is already registered"):
        registry.supernet_family(
            "plain", config=other.config, space=other.space, variants=other.variants
        )(torch.nn.Linear)


def test_letters_are_documented_per_family() -> None:
    text = DOCS.read_text()
    for family in list_families():
        letters = get_family(family).letters
        space = define_supernet(family).space
        names = ("width", "expand", "kernel", "heads", "fanout")
        elastic = {"d", "r"} | {
            letter for letter, name in zip("wekhf", names, strict=True) if getattr(space, name)
        }
        chosen = {"decoder": {"h"}}.get(family, set())  # elastic only where its settings say so
        assert set(letters) == elastic | chosen, family
        assert f"`{family}`" in text
        result = CliRunner().invoke(build_app(["cost"]), ["cost", family, "--arch", "help"])
        assert result.exit_code == 0
        assert all(f"{letter}  " in result.output for letter in letters)
