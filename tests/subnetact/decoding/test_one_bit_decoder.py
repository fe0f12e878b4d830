"""A decoder's subnets with one-bit feed-forwards: beside float ones, at any token."""

from dataclasses import replace

import pytest
import torch

from subnetact.decoding.decoder_weights import DecoderWeights
from subnetact.decoding.one_bit_linear import OneBitTable, PlainOneBitLinear
from subnetact.decoding.ragged_batch import Chunk
from subnetact.decoding.stream_executor import StreamExecutor
from subnetact.decoding.switches import find_subnet
from supernet import Checkpoint, extract
from supernet.low_bit.low_bit_weights import LowBitWeights


@pytest.fixture(scope="module")
def one_bit(decoder: Checkpoint) -> Checkpoint:
    """The decoder of four widths, each with one-bit feed-forwards as well."""
    entries = tuple(
        replace(s, precision="signed_binary", accuracy=s.accuracy / 2) for s in decoder.subnets
    )
    return replace(
        decoder,
        low_bit=LowBitWeights.of(decoder.state, decoder.definition),
        low_bit_subnets=entries,
        norm_statistics={s.subnet_id: {} for s in (*decoder.subnets, *entries)},
    )


def ids_of(checkpoint: Checkpoint) -> list[str]:
    return [form.subnet_id for form in checkpoint.forms]


def test_they_compute_what_the_extracted_network_with_those_weights_does(one_bit):
    """Up to the rounding of activations to int8, which the plain network does not do."""
    assert one_bit.low_bit is not None
    executor = StreamExecutor(one_bit, subnet_ids=ids_of(one_bit))
    state = one_bit.low_bit.in_place_of(one_bit.state)
    ids = list(range(1, 9))
    for subnet in one_bit.low_bit_subnets:
        logits = executor.run(subnet.subnet_id, [Chunk("a", tuple(ids))])[0]
        executor.release("a")
        with torch.inference_mode():
            net = extract(state, one_bit.definition, subnet.arch)
            expected = net(torch.tensor([ids]))[0, -1]
        assert (logits - expected).norm() < 0.03 * expected.norm(), subnet.subnet_id


def test_a_stream_changes_precision_between_two_tokens(one_bit):
    """Keys and values are those of whatever ran: what one precision cached, another reads."""
    executor = StreamExecutor(one_bit, subnet_ids=ids_of(one_bit))
    largest = one_bit.subnets[-1].subnet_id
    executor.run(largest, [Chunk("a", (1, 2, 3))])
    mixed = executor.run(f"{largest}-sb", [Chunk("a", (4,))])[0]
    executor.run(f"{largest}-sb", [Chunk("b", (1, 2, 3))])
    pure = executor.run(f"{largest}-sb", [Chunk("b", (4,))])[0]
    assert mixed.isfinite().all()
    assert not torch.equal(mixed, pure)


def test_all_widths_share_one_table_per_weight(one_bit, monkeypatch):
    made = []
    monkeypatch.setattr(
        "subnetact.decoding.decoder_weights.one_bit_linear",
        lambda table, shape: made.append((id(table), shape)) or PlainOneBitLinear(table, shape),
    )
    DecoderWeights(one_bit, ids_of(one_bit))
    depth = one_bit.definition.config.depth  # type: ignore[attr-defined]
    assert len({table for table, _ in made}) == 3 * depth
    assert len(made) == 3 * depth * len({s.arch.expand[0] for s in one_bit.subnets})


def test_the_plain_path_serves_the_same_logits(one_bit, monkeypatch):
    form_id = one_bit.low_bit_subnets[0].subnet_id
    chunks = [Chunk("a", (5, 6, 7))]
    first = StreamExecutor(one_bit, subnet_ids=[form_id]).run(form_id, chunks)
    monkeypatch.setattr(
        "subnetact.decoding.decoder_weights.one_bit_linear",
        lambda table, shape: PlainOneBitLinear(OneBitTable(*table), shape),
    )
    assert torch.equal(StreamExecutor(one_bit, subnet_ids=[form_id]).run(form_id, chunks), first)


def test_a_subnet_is_named_with_its_precision(one_bit):
    form = one_bit.low_bit_subnets[1]
    assert find_subnet(form.subnet_id, one_bit) == (form.arch, "signed_binary")
    assert find_subnet("largest", one_bit) == (one_bit.definition.space.largest, "fp32")
    executor = StreamExecutor(one_bit, subnet_ids=())
    assert executor.add(*find_subnet(form.subnet_id, one_bit)) == form.subnet_id


def test_without_one_bit_weights_the_command_to_make_them_is_named(decoder):
    executor = StreamExecutor(decoder, subnet_ids=())
    largest = decoder.definition.space.largest
    with pytest.raises(ValueError, match="no one-bit weights; make them with `supernet precision"):
        executor.add(largest, "signed_binary")
    with pytest.raises(ValueError, match="precision of a decoder's subnet is 'int8', allowed fp32"):
        executor.add(largest, "int8")
