"""docs/reference.md says what the program says, and the schemas describe what it writes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import typer

from serve.cli import VERBS, build_app
from serve.models.limits import REASONS
from slackfit.metrics import summarize
from slackfit.policies import create_policy, policy_names
from slackfit.profile import LatencyProfile
from slackfit.simulation.simulate import simulate
from traces.spec.spec import GENERATORS

DOCS = Path("docs")
REFERENCE = (DOCS / "reference.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#|\Z)", REFERENCE, re.M | re.S)
    assert found, f"docs/reference.md has no section {title!r}"
    return found.group(1)


def schema(name: str) -> dict[str, Any]:
    loaded = json.loads((DOCS / "schemas" / f"{name}.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(loaded)
    return loaded


def options_of(command: Any) -> set[str]:
    inner = getattr(command, "commands", {})
    names = {option for sub in inner.values() for option in options_of(sub)}
    for parameter in command.params:
        names |= {o for o in (*parameter.opts, *parameter.secondary_opts) if o.startswith("--")}
    return names - {"--help", "--no-resume"}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_is_described_with_exactly_its_options(verb: str) -> None:
    command = typer.main.get_command(build_app([verb])).commands[verb]  # type: ignore[attr-defined]
    described = set(re.findall(r"--[a-z][a-z-]*", section(f"supernet {verb}")))
    assert described == options_of(command)


def test_every_verb_of_the_page_exists() -> None:
    assert sorted(re.findall(r"^### supernet (\w+)$", REFERENCE, re.M)) == sorted(VERBS)


def test_every_policy_is_described() -> None:
    assert set(re.findall(r"`([a-z:<>_]+)`", section("Policies"))) >= set(policy_names())


def test_every_generator_is_described_with_exactly_its_keys() -> None:
    rows = dict(re.findall(r"^\| `([a-z0-9-]+)` \| (.*?) \|$", section("Trace specs"), re.M))
    assert rows.keys() == GENERATORS.keys()
    for name, generator in GENERATORS.items():
        keys = {k.strip() for part in re.findall(r"`(.*?)`", rows[name]) for k in part.split(",")}
        assert keys == set(generator.keys), name


def test_every_refusal_is_listed_with_its_status() -> None:
    rows = re.findall(r"^\| (`.*?`) \| (\d{3}) \| (\w+) \|", section("The wire"), re.M)
    listed = {
        r: (int(http), grpc) for names, http, grpc in rows for r in re.findall(r"`(\w+)`", names)
    }
    assert listed == {reason: tuple(code) for reason, code in REASONS.items()}


@pytest.mark.parametrize("path", sorted(Path("profiles").glob("*.json")), ids=lambda p: p.stem)
def test_shipped_profiles_fit_the_schema(path: Path) -> None:
    jsonschema.validate(json.loads(path.read_text()), schema("profile"))


def test_a_simulated_report_fits_the_schema() -> None:
    profile = LatencyProfile.load("profiles/superserve_resnet_2080ti.json")
    policy = create_policy("slackfit", profile)
    arrival_s = np.linspace(0.0, 1.0, 500)
    outcomes = simulate(arrival_s, profile, policy, slo_s=0.036)
    report = summarize(
        outcomes, policy=policy.name, slo_s=0.036, duration_s=1.0, seed=0, profile=profile.name
    )
    jsonschema.validate(json.loads(json.dumps([report])), schema("report"))


def test_a_checkpoint_fits_the_schema(checkpoint_folder: Path) -> None:
    whole = schema("checkpoint")
    for name in ("supernet.json", "accuracy.json"):
        part = {"$defs": whole["$defs"], "$ref": f"#/$defs/{name}"}
        jsonschema.validate(json.loads((checkpoint_folder / name).read_text()), part)


def test_pages_link_to_files_that_exist() -> None:
    for page in (Path("README.md"), *DOCS.glob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page}: {target}"


def test_the_structure_page_is_short_and_names_real_files() -> None:
    text = (DOCS / "structure.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 60
    for path in re.findall(
        r"`((?:serve|slackfit|subnetact|supernet|traces|training)/[\w/]+\.py)`", text
    ):
        assert Path(path).is_file(), path
