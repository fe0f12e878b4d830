"""One-bit weights in a checkpoint: their size, their exactness at every arch, what is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from supernet import Checkpoint, CheckpointError, InputSpec, ServedSubnet, cost
from supernet.checkpoint import load_checkpoint, save_checkpoint
from supernet.definition import define_supernet
from supernet.low_bit.low_bit_weights import LowBitWeights
from supernet.low_bit.packed_bits import PackedBits
from supernet.low_bit.quantisers import Quantised, quantise
from supernet.served_form import ServedForm
from supernet.slicing import leading_slice
from supernet.subnets.extract import extract


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 70), inputs=st.integers(1, 300), kernel=st.sampled_from((0, 1, 3)),
    seed=st.integers(0, 2**31),
)  # fmt: skip
def test_packing_loses_nothing(rows, inputs, kernel, seed):
    shape = (rows, inputs, kernel, kernel) if kernel else (rows, inputs)
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    quantised = quantise(weight, "signed_binary")
    packed = PackedBits.of(quantised).checked("w")
    again = packed.quantised()
    assert torch.equal(again.codes, quantised.codes)
    assert torch.equal(again.scale, quantised.scale)
    assert (
        packed.num_bits <= 1.0625 * weight.numel() + 16 + 7
    )  # a scale of 16 per 256, or one; bytes
    words = packed.words()
    columns = np.arange(weight[0].numel())
    bits = (words.numpy()[:, columns // 64] >> (columns % 64)) & 1
    assert np.array_equal(bits, (quantised.codes != 0).flatten(1).numpy())


def test_codes_of_another_quantiser_do_not_pack():
    ones = Quantised(torch.ones(2, 8, dtype=torch.int8), torch.ones(1).half())
    with pytest.raises(ValueError, match="codes are not signed binary"):
        PackedBits.of(ones)


@pytest.fixture
def checkpoint(tiny, tiny_state):
    """Two subnets, each in float and with one-bit weights and norm statistics of its own."""
    archs = (tiny.space.smallest, tiny.space.largest)
    subnets = tuple(
        ServedSubnet(arch=a, accuracy=0.5, ci95=(0.4, 0.6), **cost(tiny, a)._asdict())
        for a in archs
    )
    norms = {
        arch.subnet_id: {
            name: leading_slice(tiny_state[name], shape).clone()
            for name, shape in tiny.buffer_shapes(arch).items()
            if name.endswith(("running_mean", "running_var"))
        }
        for arch in archs
    }
    own = {f"{i}-sb": {n: t + 0.25 for n, t in tensors.items()} for i, tensors in norms.items()}
    return Checkpoint(
        name="tiny",
        definition=tiny,
        input=InputSpec(channels=1, height=8, width=8, mean=(0.5,), std=(0.5,)),
        state=tiny_state,
        norm_statistics=norms | own,
        subnets=subnets,
        low_bit=LowBitWeights.of(tiny_state, tiny),
        low_bit_subnets=tuple(replace(s, precision="signed_binary", accuracy=0.4) for s in subnets),
    )


def test_a_checkpoint_serves_them_beside_the_float_ones(checkpoint, tmp_path):
    save_checkpoint(checkpoint, tmp_path / "c")
    loaded = load_checkpoint(tmp_path / "c")
    ids = [subnet.subnet_id for subnet in checkpoint.subnets]
    assert [form.subnet_id for form in loaded.forms] == [*ids, *(f"{i}-sb" for i in ids)]
    form = ServedForm(ids[0], "signed_binary")
    state, norms = loaded.tensors_of(form)
    name = "layer1.0.conv1.weight"
    expected = quantise(checkpoint.state[name], "signed_binary").dequantised()
    assert torch.equal(state[name], expected)
    assert torch.equal(state["conv1.weight"], checkpoint.state["conv1.weight"])
    assert all(
        torch.equal(t, checkpoint.norm_statistics[form.form_id][n]) for n, t in norms.items()
    )
    assert loaded.tensors_of(form.twin)[0][name].equal(checkpoint.state[name])


def test_every_arch_reads_prefixes_of_one_packed_tensor(checkpoint):
    """The words of the whole weight hold each subnet's: what is extracted is what is packed."""
    definition = checkpoint.definition
    assert checkpoint.low_bit is not None
    state = checkpoint.low_bit.in_place_of(checkpoint.state)
    for arch in (*definition.space.uniforms(), definition.space.smallest):
        net = extract(state, definition, arch)
        for name, weight in net.named_parameters():
            if name in checkpoint.low_bit.tensors:
                packed = checkpoint.low_bit.tensors[name].quantised()
                sliced = leading_slice(packed.codes, tuple(weight.shape))
                scale = packed.scale.float()[: len(sliced)].view(-1, 1, 1, 1)
                assert torch.equal(weight, sliced * scale), (arch.subnet_id, name)


def test_weights_alone_take_one_bit_in_the_layers_that_have_it(tmp_path):
    """The whole folder of a decoder whose feed-forwards are one-bit, counted on disk."""
    definition = define_supernet("decoder_tiny", width=256, hidden=1024)
    state = {n: torch.randn(t.shape) for n, t in definition.on_meta().state_dict().items()}
    low_bit = replace(LowBitWeights.of(state, definition), replaces=True)
    assert 1.0 < low_bit.bits_per_weight <= 1.1
    subnet = ServedSubnet(
        arch=definition.space.largest, accuracy=1.0, ci95=(0.9, 1.0),
        **cost(definition, definition.space.largest)._asdict(),
    )  # fmt: skip
    one_bit = replace(subnet, precision="signed_binary")
    whole = Checkpoint(
        name="d",
        definition=definition,
        input=InputSpec(channels=1, height=1, width=8, mean=(0.0,), std=(1.0,), kind="tokens"),
        state=low_bit.in_place_of(state),
        norm_statistics={subnet.subnet_id: {}, one_bit.subnet_id: {}},
        subnets=(subnet,),
        low_bit=low_bit,
        low_bit_subnets=(one_bit,),
    )
    save_checkpoint(whole, tmp_path / "d")
    loaded = load_checkpoint(tmp_path / "d")
    assert all(torch.equal(loaded.state[n], t) for n, t in whole.state.items())
    packed = sum(low_bit.tensors[n].shape[0] * low_bit.tensors[n].shape[1] for n in low_bit.tensors)
    others = sum(t.numel() for t in state.values()) - packed
    on_disk = sum(f.stat().st_size for f in (tmp_path / "d").glob("*.safetensors"))
    assert on_disk < 1.1 * packed / 8 + 4 * others + 20_000


def test_entries_without_their_weights_are_refused(checkpoint, tmp_path):
    folder = tmp_path / "c"
    save_checkpoint(replace(checkpoint, low_bit=None), folder)
    with pytest.raises(CheckpointError, match=r"-sb needs .* weights in low_bit.safetensors"):
        load_checkpoint(folder)


def test_an_altered_file_of_bits_is_refused(checkpoint, tmp_path):
    folder = tmp_path / "c"
    save_checkpoint(checkpoint, folder)
    path = folder / "low_bit.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(CheckpointError, match="its digest is not the one"):
        load_checkpoint(folder)


def test_bits_of_another_shape_are_refused(checkpoint):
    tensors = checkpoint.low_bit.to_tensors()
    name = next(n for n in tensors if n.endswith(".bits"))
    with pytest.raises(ValueError, match=r"bytes, expected \(\d+,\)"):
        LowBitWeights.from_tensors(
            {**tensors, name: tensors[name][:-1]}, checkpoint.definition, replaces=False
        )
    with pytest.raises(ValueError, match="missing or not known"):
        LowBitWeights.from_tensors({}, checkpoint.definition, replaces=False)


def test_serving_other_subnets_leaves_out_what_was_measured_beside_these(checkpoint, tmp_path):
    """Found by search on a checkpoint with int8 entries: the folder could not be loaded again."""
    smallest = checkpoint.subnets[0]
    int8 = replace(checkpoint.subnets[1], precision="int8")
    ranges = {checkpoint.subnets[1].subnet_id: {"x": torch.tensor([0.0, 1.0])}}
    before = replace(checkpoint, int8_subnets=(int8,), activation_ranges=ranges)
    after = before.serving(
        (smallest,), {smallest.subnet_id: checkpoint.norm_statistics[smallest.subnet_id]}, "test"
    )
    save_checkpoint(after, tmp_path / "c")
    assert load_checkpoint(tmp_path / "c").forms == (smallest,)
    rows = json.loads((tmp_path / "c" / "accuracy.json").read_text())["subnets"]
    assert [row["id"] for row in rows] == [smallest.subnet_id]
