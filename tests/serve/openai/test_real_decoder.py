"""A real decoder behind the door: a checkpoint folder, its tokenizer, every width, no Ray."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from serve.config import ServeConfigError, parse_config, read_config_file
from serve.hosts.check import check
from serve.hosts.load_decoder import load_decoder
from slackfit.policies.streams import stream_policy_names
from subnetact.cuda.accelerator import HostAccelerator
from subnetact.cuda.cuda_stream_executor import CudaStreamExecutor
from subnetact.decoding.generation import generate
from subnetact.decoding.linear_forms import FORMS, has_form
from subnetact.decoding.sampling import Sampling
from subnetact.decoding.stream_executor import StreamExecutor
from subnetact.load_streams import load_stream_executor
from subnetact.profiling.iteration_profiler import measure_iterations
from supernet import Checkpoint, define_supernet, load_checkpoint, save_checkpoint
from supernet.low_bit.low_bit_weights import LowBitWeights
from supernet.text import TextSpec
from supernet.tokenizer import Tokenizer
from supernet.weights.import_decoder import decoder_checkpoint

tokenizers = pytest.importorskip("tokenizers")
torch = pytest.importorskip("torch")

EOS = 7
RELEASE = Path("models/decoder_shakespeare")
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'bad' %}{{ raise_exception('no such role') }}"
    "{% endif %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}<assistant>"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of random weights whose tokens are bytes, so that characters take several."""
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate(letters)}
    encoder = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    encoder.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    encoder.decoder = tokenizers.decoders.ByteLevel()
    definition = define_supernet("decoder_tiny", vocab_size=256, max_positions=512)
    generator = torch.Generator().manual_seed(0)
    state = {
        name: torch.randn(tensor.shape, generator=generator)
        * (1.0 if "embedding" in name else 1.5 / tensor.shape[-1] ** 0.5)
        if tensor.dim() > 1
        else torch.ones(tensor.shape)
        for name, tensor in definition.build().state_dict().items()
    }
    text = TextSpec(tokenizer=encoder.to_str(), chat_template=TEMPLATE, eos_ids=(EOS,))
    ids = [torch.arange(64)[None]]
    checkpoint = decoder_checkpoint(definition, state, ids, name="tiny lm", text=text)
    path = tmp_path_factory.mktemp("lm") / "checkpoint"
    save_checkpoint(checkpoint, path)
    return path


def written(checkpoint: Checkpoint, prompt: str, count: int, sampling: Sampling) -> str:
    """What `generate`, the plain loop of one text, writes at the largest width."""
    assert checkpoint.text is not None
    tokenizer = Tokenizer(checkpoint.text)
    executor = StreamExecutor(checkpoint, capacity_tokens=1024)
    made = generate(
        executor,
        tokenizer.encode(prompt),
        subnet_id=checkpoint.subnets[-1].subnet_id,
        max_tokens=count,
        sampling=sampling,
        eos_ids=checkpoint.text.eos_ids,
    )
    return tokenizer.decode(list(made))


def test_the_door_writes_what_the_plain_loop_writes(
    folder: Path, serving_streams: Callable[..., Any]
) -> None:
    """Greedy and drawn, alone and in company, from a cold prompt and from a kept one."""
    checkpoint = load_checkpoint(folder)

    async def main() -> None:
        settings = {"checkpoint": str(folder), "policy": "fixed:largest", "kv_tokens": 1024}
        async with serving_streams(**settings) as streams:
            prompts = ["Once upon a time " * 9, "Once upon a time " * 9 + "and", "x", "zwölf"]
            samplings = [Sampling(), Sampling(0.8, 3), Sampling(), Sampling(1.0, 11)]

            async def ask(prompt: str, sampling: Sampling) -> tuple[str, int]:
                answer = await streams.client.post(
                    "/v1/completions",
                    json={
                        "model": "tiny-lm",
                        "prompt": prompt,
                        "max_tokens": 24,
                        "temperature": sampling.temperature,
                        "seed": sampling.seed,
                    },
                )
                assert answer.status_code == 200, answer.text
                usage = answer.json()["usage"]
                text = answer.json()["choices"][0]["text"]
                return text, usage["prompt_tokens_details"]["cached_tokens"]

            wanted = [
                written(checkpoint, p, 24, s) for p, s in zip(prompts, samplings, strict=True)
            ]
            pairs = list(zip(prompts, samplings, strict=True))
            cold = await asyncio.gather(*(ask(*pair) for pair in pairs))
            assert [text for text, _ in cold] == wanted
            warm = [await ask(*pair) for pair in pairs]
            assert [text for text, _ in warm] == wanted
            assert [cached for _, cached in warm] == [128, 128, 0, 0]
            table = streams.decoder.engine._device.executor.cache.table
            async with asyncio.timeout(2.0):
                while not all(str(name).startswith("prefix-") for name in table.sequences):
                    await asyncio.sleep(0.005)
            table.check_integrity()

    asyncio.run(main())


def test_characters_come_whole_and_a_chat_by_its_template(
    folder: Path, serving_streams: Callable[..., Any]
) -> None:
    async def main() -> None:
        async with serving_streams(checkpoint=str(folder), kv_tokens=512) as streams:
            body = {
                "model": "tiny-lm",
                "messages": [{"role": "user", "content": "Grüße"}],
                "seed": 5,
                "max_tokens": 60,
                "ignore_eos": True,
            }
            whole = (await streams.client.post("/v1/chat/completions", json=body)).json()
            text = whole["choices"][0]["message"]["content"]
            assert whole["usage"]["prompt_tokens"] == len("<user>Grüße<assistant>".encode())
            pieces: list[str] = []
            body["stream"] = True
            url = "/v1/chat/completions"
            async with streams.client.stream("POST", url, json=body) as response:
                async for line in response.aiter_lines():
                    if line.startswith("data: {"):
                        delta = json.loads(line[6:])["choices"][0]["delta"]
                        pieces.append(delta.get("content", ""))
            assert "".join(pieces) == text
            bad = {**body, "messages": [{"role": "bad", "content": "x"}]}
            refused = await streams.client.post(url, json=bad)
            assert refused.status_code == 400
            assert "no such role" in refused.json()["error"]["message"]

    asyncio.run(main())


def test_the_released_decoder_writes_verse_behind_the_door(
    serving_streams: Callable[..., Any],
) -> None:
    """Text as the plain loop has it, and a kept prompt of hundreds of tokens is read once."""
    checkpoint = load_checkpoint(RELEASE)
    prompt = "ROMEO:\nWhat shall we say, my lord, of such a night?\n\n" * 20

    async def main() -> None:
        settings = {"checkpoint": str(RELEASE), "policy": "fixed:largest", "packing": "views"}
        async with serving_streams(**settings, kv_tokens=2048) as streams:
            asked = {"model": "decoder_shakespeare", "prompt": prompt, "temperature": 0}
            cached: list[int] = []
            for _ in range(2):
                answer = await streams.client.post(
                    "/v1/completions", json={**asked, "max_tokens": 24}
                )
                assert answer.status_code == 200, answer.text
                body = answer.json()
                cached.append(body["usage"]["prompt_tokens_details"]["cached_tokens"])
                assert body["choices"][0]["text"] == written(checkpoint, prompt, 24, Sampling())
            assert cached[0] == 0
            assert cached[1] >= 256
            long = "My lord, " * 600
            refused = await streams.client.post("/v1/completions", json={**asked, "prompt": long})
            assert refused.status_code == 400
            assert "1024" in refused.json()["error"]["message"]

    asyncio.run(main())


def test_memory_that_streams_need_is_taken_from_kept_prompts(
    folder: Path, serving_streams: Callable[..., Any]
) -> None:
    """Ever new prompts, each as large as a fifth of the memory: all are served, none is lost."""

    async def main() -> None:
        settings = {"checkpoint": str(folder), "kv_tokens": 640, "ttft_ms": 60_000}
        async with serving_streams(**settings) as streams:
            rng = np.random.default_rng(0)
            answers = await asyncio.gather(
                *(
                    streams.client.post(
                        "/v1/completions",
                        json={
                            "model": "tiny-lm",
                            "prompt": rng.integers(8, 256, 128).tolist(),
                            "max_tokens": 20,
                            "ignore_eos": True,
                        },
                    )
                    for _ in range(12)
                )
            )
            assert {answer.status_code for answer in answers} == {200}
            engine = streams.decoder.engine
            assert engine.status().kv_share == 0.0
            executor = engine._device.executor
            async with asyncio.timeout(2.0):
                while any(type(name) is int for name in executor.cache.table.sequences):
                    await asyncio.sleep(0.005)
            executor.cache.table.check_integrity()

    asyncio.run(main())


@pytest.mark.parametrize("packing", ["packed", "half"])
def test_the_packing_that_is_set_is_served_and_writes_the_same(
    packing: str, folder: Path, tmp_path: Path, serving_streams: Callable[..., Any]
) -> None:
    """Weights that are kept in 16 bit are exact in half: the text is that of the views."""
    if not has_form(packing):
        pytest.skip(f"no {packing} linear layers in this build of torch")
    checkpoint = load_checkpoint(folder)
    halved = {name: tensor.half().float() for name, tensor in checkpoint.state.items()}
    save_checkpoint(replace(checkpoint, state=halved), tmp_path / "halved")
    prompt = "It was a bright cold day "
    wanted = written(load_checkpoint(tmp_path / "halved"), prompt, 16, Sampling())
    config = tmp_path / "serve.toml"
    config.write_text(f'checkpoint = "{tmp_path / "halved"}"\npacking = "{packing}"\n')
    settings = read_config_file(config)
    assert settings["packing"] == packing

    async def main() -> None:
        async with serving_streams(**settings, policy="fixed:largest", kv_tokens=512) as streams:
            executor = streams.decoder.engine._device.executor
            assert executor.packing == executor.weights.form == packing
            asked = {"model": "tiny-lm", "prompt": prompt, "max_tokens": 16, "temperature": 0}
            answer = await streams.client.post("/v1/completions", json=asked)
            assert answer.status_code == 200, answer.text
            assert answer.json()["choices"][0]["text"] == wanted

    asyncio.run(main())


@pytest.mark.parametrize("packing", FORMS)
def test_every_form_of_linear_layers_can_be_set(packing: str, folder: Path) -> None:
    settings = parse_config({"checkpoint": str(folder), "packing": packing})
    assert settings.packing == packing
    check(settings)


def test_settings_that_fit_no_decoder_are_refused(folder: Path) -> None:
    for settings, word in (
        ({"device": "cuda", "packing": "half"}, "on cuda allowed views"),
        ({"dtype": "bfloat16"}, "on cpu allowed float32"),
        ({"packing": "graph"}, "packed"),
        ({"autoscaling": {"max_replicas": 2}}, "streams"),
    ):
        with pytest.raises(ServeConfigError, match=word):
            check(parse_config({"checkpoint": str(folder), **settings}))
    assert "slackwidth" in stream_policy_names()


@pytest.mark.parametrize("kv_tokens", [2**50, 10**30])
def test_a_cache_that_is_not_to_be_had_is_one_sentence(folder: Path, kv_tokens: int) -> None:
    settings = parse_config({"checkpoint": str(folder), "kv_tokens": kv_tokens})
    with pytest.raises(ServeConfigError, match=f"a cache of {kv_tokens} tokens takes .* GiB"):
        load_decoder(settings)


def test_one_bit_widths_of_a_profile_are_served(folder: Path, tmp_path: Path) -> None:
    plain = load_checkpoint(folder)
    entries = tuple(replace(s, precision="signed_binary") for s in plain.subnets)
    one_bit = replace(
        plain,
        low_bit=LowBitWeights.of(plain.state, plain.definition),
        low_bit_subnets=entries,
        norm_statistics={s.subnet_id: {} for s in (*plain.subnets, *entries)},
    )
    save_checkpoint(one_bit, tmp_path / "one_bit")
    loaded = load_checkpoint(tmp_path / "one_bit")
    executor = load_stream_executor(loaded, capacity_tokens=2048)
    profile = measure_iterations(
        executor, loaded, decodes=(1, 2), repeats=1, max_error=float("inf")
    )
    profile.save(tmp_path / "profile.json")
    config = parse_config(
        {
            "checkpoint": str(tmp_path / "one_bit"),
            "profile": str(tmp_path / "profile.json"),
            "kv_tokens": 512,
        }
    )
    check(config)
    served = load_decoder(config)
    assert sum(name.endswith("-sb") for name in served.costs.subnet_ids) == len(entries)
    assert set(served.costs.subnet_ids) <= set(served.executor.subnet_ids)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_a_device_that_is_not_there_is_refused_as_for_images(folder: Path) -> None:
    with pytest.raises(ServeConfigError, match="no CUDA device is available; use cpu"):
        load_decoder(parse_config({"checkpoint": str(folder), "device": "cuda"}))


def test_on_cuda_the_door_writes_the_same(
    folder: Path, serving_streams: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a CPU in place of the device: pages, graphs of decodes, prompts that are kept."""
    monkeypatch.setattr(
        "subnetact.cuda.cuda_accelerator.CudaAccelerator", lambda device: HostAccelerator()
    )
    monkeypatch.setattr("subnetact.device.device_name", lambda device: f"a stand-in for {device}")
    checkpoint = load_checkpoint(folder)
    prompts = ["Once upon a time " * 5, "x", "zwölf"]
    wanted = [written(checkpoint, prompt, 16, Sampling()) for prompt in prompts]

    async def main() -> None:
        settings = {
            "checkpoint": str(folder),
            "device": "cuda",
            "dtype": "float32",
            "policy": "fixed:largest",
            "kv_tokens": 1024,
            "max_running": 4,
        }
        async with serving_streams(**settings) as streams:
            executor = streams.decoder.engine._device.executor
            assert isinstance(executor, CudaStreamExecutor)
            before = executor.graph_status.replays

            async def ask(prompt: str) -> tuple[str, int]:
                asked = {"model": "tiny-lm", "prompt": prompt, "max_tokens": 16, "temperature": 0}
                answer = (await streams.client.post("/v1/completions", json=asked)).json()
                cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
                return answer["choices"][0]["text"], cached

            cold = await asyncio.gather(*map(ask, prompts))
            assert [text for text, _ in cold] == wanted
            warm = [await ask(prompt) for prompt in prompts]
            assert [text for text, _ in warm] == wanted
            assert [cached for _, cached in warm] == [80, 0, 0]  # whole pages of 16
            assert executor.graph_status.replays > before
            executor.cache.table.check_integrity()

    asyncio.run(main())


@pytest.mark.slow
def test_supernet_serve_starts_a_stream_server(
    folder: Path, running_any: Callable[..., Any]
) -> None:
    """The kind of server is known from the checkpoint."""
    with running_any("--checkpoint", str(folder), "--no-ray") as server:
        models = httpx.get(f"{server.url}/v1/models").json()
        assert [model["id"] for model in models["data"]] == ["tiny-lm"]
        body = {"model": "tiny-lm", "prompt": "x", "max_tokens": 4, "ignore_eos": True}
        answer = httpx.post(f"{server.url}/v1/completions", json=body)
        assert answer.json()["usage"]["completion_tokens"] == 4
        metrics = httpx.get(f"{server.url}/metrics").text
        assert 'vllm:generation_tokens_total{engine="0",model_name="tiny-lm"} 4.0' in metrics
        assert 'supernet_stream_ended_total{model="tiny-lm",outcome="on_time"' in metrics
        assert server.interrupt() == 0
