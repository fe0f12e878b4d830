"""The YAML files of configs/serve: valid for Ray Serve, and their arguments for us."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from serve.config import parse_config, parse_live_config

FILES = sorted(Path("configs/serve").glob("*.yaml"))


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*RAY_ACCEL.*:FutureWarning")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_file_is_valid_for_ray_and_for_us(path: Path):
    from ray.serve.schema import ServeDeploySchema

    fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    schema = ServeDeploySchema.model_validate(fields)
    for application in schema.applications:
        assert application.import_path == "serve.app:build"
        parse_config(application.args)
        for deployment in application.deployments:
            assert deployment.name == "supernet"
            parse_live_config(deployment.user_config)


def test_there_is_a_file():
    assert FILES
