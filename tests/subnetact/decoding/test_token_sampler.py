"""Choosing tokens: each wish by its definition, and the same text whatever else is going on."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from subnetact.decoding.sampling import Sampling
from subnetact.decoding.sampling_params import SamplingParams
from subnetact.decoding.token_sampler import TokenSampler

LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0, -30.0])


def drawn(count: int = 400, logits: torch.Tensor = LOGITS, **wishes: Any) -> Counter[int]:
    sampler = TokenSampler(SamplingParams(**wishes), [], ())
    return Counter(sampler(logits, position) for position in range(count))


def test_plain_draws_are_those_of_the_plain_loop() -> None:
    for temperature in (0.0, 0.7, 1.0):
        sampler = TokenSampler(SamplingParams(temperature=temperature, seed=9), [], ())
        plain = Sampling(temperature, 9)
        for position in range(50):
            row = torch.randn(40, generator=torch.Generator().manual_seed(position))
            assert sampler(row, position) == plain.choose(row, position)


def test_top_k_top_p_and_min_p_keep_the_likeliest() -> None:
    assert set(drawn(top_k=2)) == {0, 1}
    assert set(drawn(top_k=1)) == {0}
    chances = torch.softmax(LOGITS, -1)  # 0.64, 0.24, 0.09, 0.03
    assert set(drawn(top_p=float(chances[0]) - 0.01)) == {0}
    assert set(drawn(top_p=float(chances[0]) + 0.01)) == {0, 1}
    assert set(drawn(min_p=float(chances[1] / chances[0]) - 0.01)) == {0, 1}
    assert set(drawn(min_p=1.0)) == {0}
    assert set(drawn(2000)) == {0, 1, 2, 3}


def test_penalties_fall_on_what_the_text_has() -> None:
    two = torch.tensor([1.0, 0.9, -5.0])
    presence = TokenSampler(SamplingParams(temperature=0, presence_penalty=0.5), [1], ())
    assert [presence(two, i) for i in range(4)] == [0, 1, 0, 0]  # both have it from then on
    frequency = TokenSampler(SamplingParams(temperature=0, frequency_penalty=0.5), [], ())
    assert [frequency(two, i) for i in range(4)] == [0, 1, 0, 1]
    repetition = TokenSampler(SamplingParams(temperature=0, repetition_penalty=1.5), [0], ())
    assert repetition(two, 0) == 1  # the prompt counts: 1 / 1.5 is below 0.9
    biased = SamplingParams(temperature=0, logit_bias={2: 10.0, 0: -100.0})
    assert TokenSampler(biased, [], ())(two, 0) == 2


def test_no_end_token_comes_before_its_time() -> None:
    params = SamplingParams(temperature=0, min_tokens=2)
    sampler = TokenSampler(params, [], frozenset({0, 1}))
    assert [sampler(LOGITS, i) for i in range(4)] == [2, 2, 0, 0]


def test_scores_are_of_the_networks_own_distribution() -> None:
    params = SamplingParams(temperature=0.5, top_k=1, logit_bias={3: 100.0}, logprobs=2, seed=1)
    sampler = TokenSampler(params, [], ())
    assert sampler(LOGITS, 0) == 3
    (score,) = sampler.scores
    wanted = torch.log_softmax(LOGITS.double(), -1)
    assert score.logprob == pytest.approx(float(wanted[3]))
    assert [token for token, _ in score.top] == [0, 1]
    assert score.top[0][1] == pytest.approx(float(wanted[0]))


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**64 - 1),
    temperature=st.floats(0.1, 3.0),
    top_p=st.floats(0.05, 1.0),
    top_k=st.integers(0, 8),
    min_p=st.floats(0.0, 1.0),
)
def test_what_was_ruled_out_never_comes(
    seed: int, temperature: float, top_p: float, top_k: int, min_p: float
) -> None:
    row = torch.randn(30, generator=torch.Generator().manual_seed(seed % 1000))
    params = SamplingParams(
        seed=seed, temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p
    )
    chances = torch.softmax(row.double() / temperature, -1)
    for position in range(5):
        token = TokenSampler(params, [], ())(row, position)
        assert token == TokenSampler(replace(params), [], ())(row, position)
        if top_k:
            assert (row > row[token]).sum() < top_k
        assert chances[token] >= min_p * chances.max() - 1e-12


@pytest.mark.parametrize("wishes", [{}, {"top_p": 0.9}, {"min_p": 0.1}, {"top_k": 3}])
def test_the_smallest_temperature_takes_the_likeliest(wishes: dict[str, float]) -> None:
    """Over it logits are larger than any number, and the last token was taken."""
    assert set(drawn(20, temperature=5e-324, **wishes)) == {0}
    assert set(drawn(20, logits=-LOGITS - 40, temperature=1e-310, **wishes)) == {4}
