"""`supernet generate` as a user meets it: text on stdout, one clear sentence for what can't be."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from serve.cli import build_app
from supernet import Checkpoint, define_supernet, load_checkpoint, save_checkpoint
from supernet.text import TextSpec
from supernet.tokenizer import TextStream, Tokenizer

tokenizers = pytest.importorskip("tokenizers")
CHAT = "{% for m in messages %}<s>{{ m.role }}:{{ m.content }}</s>{% endfor %}<s>"


def byte_text(chat_template: str = CHAT, without: str = "") -> TextSpec:
    """A token per byte, and two that begin and end a text; none for the letters `without`."""
    letters = sorted(set(tokenizers.pre_tokenizers.ByteLevel.alphabet()) - set(without))
    tokens = ["<s>", "</s>", *letters]
    encoder = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[])
    )
    encoder.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    encoder.decoder = tokenizers.decoders.ByteLevel()
    encoder.add_special_tokens(["<s>", "</s>"])
    return TextSpec(tokenizer=encoder.to_str(), chat_template=chat_template, bos_id=0, eos_ids=(1,))


@pytest.fixture(scope="module")
def folder(make_decoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder with random weights and a tokenizer of bytes."""
    made: Checkpoint = make_decoder(define_supernet("decoder_tiny", vocab_size=258))
    folder: Path = tmp_path_factory.mktemp("text") / "decoder"
    save_checkpoint(replace(made, text=byte_text()), folder)
    return folder


def run(folder: Path, *arguments: str) -> Result:
    command = ["generate", "--checkpoint", str(folder), *arguments]
    return CliRunner().invoke(build_app(["generate"]), command)


def test_the_text_travels_with_the_checkpoint(folder: Path) -> None:
    assert (folder / "tokenizer.json").is_file()
    assert load_checkpoint(folder).text == byte_text()


def test_a_text_is_made_at_any_width_and_the_same_each_time(folder: Path) -> None:
    made = {}
    for arguments in (
        (),
        ("--arch", "smallest"),
        ("--switch", "e=0.25@3"),
        ("--temperature", "1", "--seed", "4"),
        ("--chat",),
    ):
        result = run(folder, "--prompt", "Once upon", "--max-tokens", "12", *arguments)
        assert result.exit_code == 0, result.output
        made[arguments] = result.stdout
        again = run(folder, "--prompt", "Once upon", "--max-tokens", "12", *arguments)
        assert again.stdout == result.stdout
    assert len(set(made.values())) == len(made)
    assert made[()][:2] == made["--switch", "e=0.25@3"][:2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--prompt", ""), "the prompt is empty"),
        (("--prompt", "x" * 300), "the prompt has 300 tokens, allowed 256"),
        (("--prompt", "x", "--arch", "e=0.3"), "is 0.3, allowed 0.25, 0.5, 0.75, 1"),
        (("--prompt", "x", "--switch", "half@2"), "'half' is not LETTER=NUMBER"),
        (("--prompt", "x", "--packing", "int4"), "allowed views, packed, half, int8"),
        (
            ("--texts", "2", "--out", "texts.txt", "--switch", "smallest@2"),
            "--switch and --chat go with --prompt, not with --texts",
        ),
        (("--prompt", "x", "--temperature", "inf"), "temperature is inf, allowed a number, 0 or"),
        (
            ("--texts", "2", "--out", "texts.txt", "--max-tokens", "300"),
            "texts of 300 tokens are asked for, allowed 256 (the network's longest context)",
        ),
        (
            ("--texts", "2", "--out", "texts.txt", "--max-tokens", "1000000000000000"),
            "texts of 1000000000000000 tokens are asked for, allowed 256",
        ),
        (
            ("--texts", "2", "--out", "texts.txt", "--seed", "4294967296"),
            "seed is 4294967296, of texts allowed 0 to 4294967295",
        ),
        (("--prompt", "ab\udcff"), "character 2 of the text is none of Unicode"),
        (("--prompt", "\udcff", "--chat"), "character 8 of the text is none of Unicode"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence(
    folder: Path, arguments: tuple[str, ...], message: str
) -> None:
    result = run(folder, *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_who_stops_reading_is_told_of_no_error(folder: Path) -> None:
    """As `supernet generate ... | head` does."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-c", "from serve.cli import build_app; build_app(['generate'])()"]
    command += ["generate", "--checkpoint", str(folder), "--prompt", "Once"]
    try:
        done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_text_that_ends_with_the_context_says_so(folder: Path) -> None:
    for count, told in ((7, ""), (8, "stopped at the network's longest context, 256 tokens\n")):
        result = run(folder, "--prompt", "x" * 250, "--max-tokens", str(count))
        assert result.exit_code == 0, result.output
        assert result.stderr == told


def test_checkpoints_that_make_no_text_are_told(
    decoder: Checkpoint, checkpoint_folder: Path, folder: Path, tmp_path: Path
) -> None:
    save_checkpoint(decoder, tmp_path / "bare")
    for source in (tmp_path / "bare", checkpoint_folder):
        result = run(source, "--prompt", "x")
        assert result.exit_code == 2
        assert "makes no text; import a decoder with one" in result.stderr
    tampered = tmp_path / "tampered"
    save_checkpoint(load_checkpoint(folder), tampered)
    (tampered / "tokenizer.json").write_text("{}")
    assert "its digest is not the one" in run(tampered, "--prompt", "x").stderr
    save_checkpoint(decoder, tampered)  # without a text: the file of before goes
    assert not (tampered / "tokenizer.json").exists()
    assert load_checkpoint(tampered).text is None


def test_half_a_character_is_held_back() -> None:
    tokenizer = Tokenizer(byte_text())
    text = "naïve \U0001f600 end"
    ids = tokenizer.encode(text)
    stream = TextStream(tokenizer)
    pieces = [stream.push(token) for token in ids]
    assert "".join(pieces) + stream.finish() == text
    assert all("\N{REPLACEMENT CHARACTER}" not in piece for piece in pieces)
    assert "" in pieces
    half = TextStream(tokenizer)
    assert half.push(tokenizer.encode("ï")[0]) == ""
    assert half.finish() == "\N{REPLACEMENT CHARACTER}"


def test_characters_that_no_token_stands_for_are_not_left_out_silently(
    folder: Path, tmp_path: Path
) -> None:
    """Byte pairs made of a text alone know its letters alone, and drop all others."""
    text = byte_text(without="zQ")
    tokenizer = Tokenizer(text)
    with pytest.raises(ValueError, match="no token for 'zQ'; leave these characters out"):
        tokenizer.encode("a zoo of Quizzes")
    with pytest.raises(ValueError, match="no token for 'z'"):
        tokenizer.encode_chat([{"role": "user", "content": "zoo"}])
    assert tokenizer.decode(tokenizer.encode("a \N{COMBINING ACUTE ACCENT}\n\t\0b"))[-1] == "b"
    partial = tmp_path / "partial"
    save_checkpoint(replace(load_checkpoint(folder), text=text), partial)
    result = run(partial, "--prompt", "zoo")
    assert result.exit_code == 2
    assert "has no token for 'z'" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("pre_tokenizer", "lost"), [("Metaspace", "\u03b5"), ("ByteLevel", "\u00e9")]
)
def test_a_mark_before_a_character_or_half_of_it_is_not_the_character(
    pre_tokenizer: str, lost: str
) -> None:
    """Tokenizers that mark where a word begins give an id for what they leave out."""
    tokenizers = pytest.importorskip("tokenizers", reason="needs tokenizers (the extra `lm`)")
    vocabulary = {letter: place for place, letter in enumerate("\u2581\u0120\u00c3abc")}
    encoder = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    encoder.pre_tokenizer = getattr(tokenizers.pre_tokenizers, pre_tokenizer)()
    encoder.decoder = getattr(tokenizers.decoders, pre_tokenizer)()
    tokenizer = Tokenizer(replace(byte_text(), tokenizer=encoder.to_str()))
    assert tokenizer.decode(tokenizer.encode("ab c")).strip() == "ab c"
    with pytest.raises(ValueError, match=f"no token for '{lost}'"):
        tokenizer.encode(f"ab {lost}c")


def test_a_chat_is_rendered_by_the_template() -> None:
    tokenizer = Tokenizer(byte_text())
    rendered = tokenizer.encode_chat([{"role": "user", "content": "hi"}])
    assert rendered == tokenizer.encode("<s>user:hi</s><s>")
    assert rendered[0] == 0
    with pytest.raises(ValueError, match="has no chat template; prompt it without --chat"):
        Tokenizer(byte_text("")).encode_chat([{"role": "user", "content": "hi"}])
    refusing = Tokenizer(byte_text("{{ raise_exception('only users') }}"))
    with pytest.raises(ValueError, match="refuses these messages .only users"):
        refusing.encode_chat([{"role": "system", "content": "hi"}])


def test_a_template_has_what_transformers_gives_it() -> None:
    """Loops that break off, JSON as it is written outside of HTML, the day."""
    year = str(datetime.now().year)
    for template, rendered in (
        ("{% for m in messages %}{{ m.content }}{% break %}{% endfor %}", "<a> & b"),
        ("{{ messages[0].content | tojson }}", '"<a> & b"'),
        ("{{ strftime_now('%Y') }}", year),
    ):
        tokenizer = Tokenizer(byte_text(template))
        messages = [{"role": "user", "content": text} for text in ("<a> & b", "c")]
        assert tokenizer.encode_chat(messages) == tokenizer.encode(rendered)


def test_a_template_that_fails_is_one_sentence() -> None:
    for template in ("{{ messages[0] + 1 }}", "{{ 1 / 0 }}", "{{ 'a'.index('b') }}"):
        with pytest.raises(ValueError, match="the chat template refuses these messages"):
            Tokenizer(byte_text(template)).encode_chat([{"role": "user", "content": "hi"}])


@pytest.mark.parametrize("kind", ["bytes", "fallback"])
def test_a_part_of_a_character_has_its_bytes(kind: str) -> None:
    if kind == "bytes":
        tokenizer = Tokenizer(byte_text())
    else:
        vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)} | {"<unk>": 256}
        encoder = tokenizers.Tokenizer(
            tokenizers.models.BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>")
        )
        encoder.decoder = tokenizers.decoders.ByteFallback()
        tokenizer = Tokenizer(replace(byte_text(), tokenizer=encoder.to_str()))
    text = "é€\U0001f600 \n"
    ids = tokenizer.encode(text)
    assert len(ids) == len(text.encode())
    assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()
    assert tokenizer.token_name(10_000) == "token_id:10000"


def test_no_text_is_cut_or_filled_up_as_the_file_was_saved() -> None:
    encoder = tokenizers.Tokenizer.from_str(byte_text().tokenizer)
    encoder.enable_truncation(max_length=4)
    encoder.enable_padding(length=16, pad_id=0, pad_token="<s>")
    tokenizer = Tokenizer(replace(byte_text(), tokenizer=encoder.to_str()))
    text = "longer than four bytes"
    assert tokenizer.encode(text) == Tokenizer(byte_text()).encode(text)
    assert len(tokenizer.encode_chat([{"role": "user", "content": text}])) > 16


def test_no_text_is_drawn_behind_a_token_that_the_network_lacks(
    folder: Path, tmp_path: Path
) -> None:
    """One that was added to the tokenizer alone, and is called the end of texts."""
    loaded = load_checkpoint(folder)
    save_checkpoint(replace(loaded, text=replace(byte_text(), eos_ids=(1, 258))), tmp_path / "lm")
    out = tmp_path / "texts.txt"
    result = run(tmp_path / "lm", "--texts", "4", "--out", str(out), "--max-tokens", "5")
    assert result.exit_code == 0, result.output
    assert out.is_file()
