"""Settings: what is unknown, malformed or contradictory is refused in words."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from serve.config import ServeConfig, ServeConfigError, parse_config, read_config_file


def test_unknown_key_lists_the_known_ones():
    with pytest.raises(
        ServeConfigError, match="unknown setting polcy; known: checkpoint, profile, pol"
    ):
        parse_config({"checkpoint": "x", "polcy": "slackfit"})


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"slo_ms": 0}, "slo_ms: Input should be greater than 0, got 0"),
        ({"threads": "many"}, "threads: .*got 'many'"),
        ({"port": 70000}, "port: .*65535, got 70000"),
        ({"device": "tpu"}, "device: .*'cpu', 'cuda' or 'timed', got 'tpu'"),
        ({"model_name": "a/b"}, "model_name"),
        ({"device": "timed"}, "give a profile"),
        ({"checkpoint": None}, "checkpoint is missing"),
        ({"num_classes": 10}, "come from the checkpoint"),
    ],
)
def test_bad_value_is_named_with_what_is_allowed(changes, text):
    with pytest.raises(ServeConfigError, match=text):
        parse_config({"checkpoint": "x", **changes})


def test_words_from_a_command_line_are_understood():
    config = parse_config({"checkpoint": "x", "subnets": "a,b", "slo_ms": "36", "port": "0"})
    assert (config.subnets, config.slo_ms, config.port) == (("a", "b"), 36.0, 0)


def test_server_listens_on_loopback_unless_told_otherwise():
    assert parse_config({"checkpoint": "x"}).host == "127.0.0.1"


def test_settings_come_from_toml_and_json(tmp_path: Path):
    toml, as_json = tmp_path / "a.toml", tmp_path / "a.json"
    toml.write_text('checkpoint = "x"\nslo_ms = 20\n')
    as_json.write_text('{"checkpoint": "x", "slo_ms": 20}')
    assert read_config_file(toml) == read_config_file(as_json) == {"checkpoint": "x", "slo_ms": 20}


@pytest.mark.parametrize(("name", "text"), [("a.toml", "= 3"), ("a.json", "{"), ("b.json", "[1]")])
def test_unreadable_settings_name_the_file(tmp_path: Path, name, text):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ServeConfigError, match=re.escape(str(path))):
        read_config_file(path)
    with pytest.raises(ServeConfigError, match="no such file"):
        read_config_file(tmp_path / "none.toml")


def test_settings_survive_the_way_to_a_replica():
    config = parse_config({"checkpoint": "x", "subnets": ["a"], "drop_hopeless": None})
    assert ServeConfig.model_validate(config.model_dump()) == config
