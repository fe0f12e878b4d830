"""On Ray: two models in a replica, behind TLS and tokens, at its own door and at the proxy."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
import trustme

from serve.config import parse_config
from slackfit.profile import LatencyProfile
from tests.serve.ray_cluster import ON_RAY, on_ray

pytestmark = [*ON_RAY, pytest.mark.slow]

ADMIN, INFER = "a" * 16, "b" * 20
BODY = {"inputs": [{"name": "input", "datatype": "UINT8", "shape": [1, 1, 2, 2], "data": [0] * 4}]}


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


def test_two_models_behind_tls_and_tokens(tmp_path: Path, profile: LatencyProfile):
    leaf = trustme.CA().issue_cert("127.0.0.1")
    leaf.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    leaf.private_key_pem.write_to_path(tmp_path / "key.pem")
    (tmp_path / "tokens").write_text(f"ops admin {ADMIN}\nshop infer {INFER}\n")
    models = {}
    for name, factor in (("fast", 1.0), ("slow", 4.0)):
        profile.scaled(factor).save(tmp_path / f"{name}.json")
        models[name] = {"profile": str(tmp_path / f"{name}.json"), "input_shape": (1, 2, 2)}
    config = parse_config(
        {
            "device": "timed",
            "models": models,
            "port": 0,
            "slo_ms": 1000,
            "tokens_file": str(tmp_path / "tokens"),
            "tls_cert": str(tmp_path / "cert.pem"),
            "tls_key": str(tmp_path / "key.pem"),
        }
    )
    with on_ray(config) as host:
        assert host.url.startswith("https://")
        from serve.access.tls import TlsFiles

        trust = TlsFiles(config.tls_cert or "", config.tls_key or "").client_context()
        with httpx.Client(verify=trust, timeout=20) as client:
            for url in (host.url, host.proxy_url):
                assert client.get(f"{url}/v2").status_code == 401
                listed = client.get(f"{url}/v2", headers=bearer(INFER)).json()["models"]
                assert listed == ["fast", "slow"]
                for name in listed:
                    where = f"{url}/v2/models/{name}/infer"
                    assert client.post(where, json=BODY).status_code == 401
                    answer = client.post(where, json=BODY, headers=bearer(INFER))
                    assert (answer.status_code, answer.json()["model_name"]) == (200, name)
                config_url = f"{url}/admin/config"
                assert client.get(config_url, headers=bearer(INFER)).status_code == 403
                assert client.get(config_url, headers=bearer(ADMIN)).status_code == 200
        settings = host.reconfigure({"models": {"slow": {"policy": "fixed:smallest"}}})
        assert [settings[name]["policy"] for name in models] == ["drainfit", "fixed:small"]
