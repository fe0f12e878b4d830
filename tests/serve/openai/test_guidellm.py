"""guidellm, unmodified, against our server: it completes, and what it measured is printed."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slackfit.profile import LatencyProfile
from slackfit.streams.iteration_cost import IterationCosts

tokenizers = pytest.importorskip("tokenizers")
COMMAND = Path(".venv-guidellm/bin/guidellm").absolute()
REQUESTS = 20


@pytest.mark.slow
def test_guidellm_completes_against_our_server(
    running_any: Callable[..., Any], tmp_path: Path
) -> None:
    if not COMMAND.exists():
        pytest.skip(f"{COMMAND} is not there: `make guidellm` installs it")
    example = LatencyProfile.load("profiles/smollm2_135m_example.json")
    IterationCosts.of(example).scaled(0.05).in_profile(example).save(tmp_path / "profile.json")
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate(letters)}
    encoder = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    encoder.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    encoder.decoder = tokenizers.decoders.ByteLevel()
    (tmp_path / "tokenizer").mkdir()
    encoder.save(str(tmp_path / "tokenizer/tokenizer.json"))
    kind = json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"})
    (tmp_path / "tokenizer/tokenizer_config.json").write_text(kind)
    options = [
        "--no-ray", "--device", "timed", "--profile", str(tmp_path / "profile.json"),
        "--set", "model_name=lm",
    ]  # fmt: skip
    with running_any(*options) as server:
        done = subprocess.run(
            [
                str(COMMAND), "run", "--disable-console-interactive",
                "--backend", f"kind=openai_http,target={server.url},model=lm",
                "--profile", "kind=constant,rate=4",
                "--constraint", f"kind=max_requests,count={REQUESTS}",
                "--tokenizer", f"kind=hf_auto,model={tmp_path / 'tokenizer'}",
                "--data", "kind=synthetic_text,prompt_tokens=64,output_tokens=16",
                "--output", "kind=console", "--output", f"kind=json,path={tmp_path / 'out.json'}",
            ],
            capture_output=True,
            text=True,
            timeout=300,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": "", "COLUMNS": "160"},
        )  # fmt: skip
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    (measured,) = json.loads((tmp_path / "out.json").read_text())["benchmarks"]
    totals = measured["metrics"]["request_totals"]
    assert (totals["successful"], totals["errored"]) == (REQUESTS, 0), totals
