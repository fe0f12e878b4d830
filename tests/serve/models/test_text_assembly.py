"""Text of tokens up to a stop string: in any split the same text, and never a piece taken back."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from serve.models.text_assembly import StopWatch, TextAssembly
from serve.models.text_coder import ByteCoder


class Utf8Coder(ByteCoder):
    """One token for each byte of UTF-8, so that characters take several."""

    def decode(self, ids):
        return bytes(ids).decode("utf-8", errors="replace")


def assembled(text: str, stop: list[str], coder: ByteCoder) -> tuple[str, int, bool]:
    """The text that is given out, after how many tokens, and whether a stop string came."""
    assembly, watch = TextAssembly(coder, stop), StopWatch(coder, stop, 0)
    out, count = "", 0
    for token in text.encode():
        count += 1
        out += assembly.push(token)
        assert watch(token) == assembly.is_over
        if assembly.is_over:
            return out, count, True
    return out + assembly.finish(), count, assembly.is_over


def plain(text: str, stop: list[str]) -> str:
    found = [at for s in stop if (at := text.find(s)) >= 0]
    return text[: min(found)] if found else text


@settings(max_examples=200, deadline=None)
@given(
    text=st.text("abö€😀", max_size=30),
    stop=st.lists(st.text("abö€", min_size=1, max_size=4), max_size=3),
)
def test_the_text_is_cut_where_the_first_stop_string_begins(text: str, stop: list[str]) -> None:
    out, _, is_over = assembled(text, stop, Utf8Coder())
    ends = min((text.find(s) + len(s) for s in stop if s in text), default=None)
    if ends is None:
        assert (out, is_over) == (text, False)
    else:  # the one that is whole first is found first
        assert is_over
        assert out == plain(text[:ends], stop)


def test_nothing_is_held_back_that_can_not_be_a_stop_string() -> None:
    assembly = TextAssembly(ByteCoder(), ["xyz"])
    pieces = [assembly.push(token) for token in b"abxyab"]
    assert pieces == ["a", "b", "", "", "xya", "b"]


def test_half_a_character_is_held_back_and_a_wrong_one_given_up() -> None:
    assembly = TextAssembly(Utf8Coder())
    assert [assembly.push(token) for token in "€".encode()] == ["", "", "€"]
    pieces = [assembly.push(0xFF) for _ in range(9)]
    assert any(pieces[:8])  # no character takes so many


class MarkedCoder(ByteCoder):
    """A text loses the space that it begins with, as where tokens mark the begin of words."""

    def decode(self, ids):
        return bytes(ids).decode("utf-8", errors="replace").removeprefix(" ")


def test_a_text_goes_on_behind_its_prompt() -> None:
    for prompt, stop, text, is_over in (
        (b"so", [], " it", [False, False, False]),
        (b"so", [" i"], "", [False, True, True]),
        (b"", [], "it", [False, False, False]),
        (b"", [" i"], "it", [False, False, False]),
        ("né".encode()[:-1], [], "it", [False, False, False]),  # what it ends by is not known
    ):
        assembly = TextAssembly(MarkedCoder(), stop, behind=prompt)
        assert "".join(map(assembly.push, b" it")) + assembly.finish() == text
        watch = StopWatch(MarkedCoder(), stop, 0, prompt)
        assert [watch(token) for token in b" it"] == is_over


def test_a_character_that_a_prompt_begins_is_not_made_up() -> None:
    whole = "né".encode()
    assembly = TextAssembly(Utf8Coder(), behind=whole[:-1])
    assert assembly.push(whole[-1]) + assembly.finish() == "\N{REPLACEMENT CHARACTER}"
