"""`import_decoder`: a decoder of others as a checkpoint folder of ours, sorted and measured.

The hidden units of its gated feed-forwards are sorted by their activations, so every width can be
served at once; each width's accuracy is its agreement with the largest on text that was not used to
sort (`supernet.subnets.agreement`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from supernet.checkpoint import Checkpoint, ServedSubnet
from supernet.definition import SupernetDefinition, define_supernet
from supernet.subnets.agreement import TOP1_AGREEMENT, top1_agreement
from supernet.subnets.cost import cost
from supernet.subnets.extract import extract
from supernet.subnets.sort import importance_order, permute_channels, rms_activations
from supernet.text import TextSpec
from supernet.tokenizer import Tokenizer
from supernet.weights.calibration_text import calibration_batches, packaged_text, passages
from supernet.weights.expected_input import input_of
from supernet.weights.gguf_file import read_gguf
from supernet.weights.huggingface_config import read_network_config
from supernet.weights.huggingface_folder import read_text
from supernet.weights.import_weights import import_state
from supernet.weights.naming import State, find_naming
from supernet.weights.weight_files import read_tensors

MORE_AXES = ("heads", "depth")
"""What of a decoder may be elastic beside its feed-forward widths, which always are."""

Tell = Callable[[str], object]


class ForeignDecoder(NamedTuple):
    """A decoder as it was read: which supernet, its complete state, its text."""

    definition: SupernetDefinition
    state: State
    text: TextSpec


def is_decoder(source: str | Path, origin: str) -> bool:
    """Whether a source holds a decoder. Raises WeightsError for a folder that tells nothing."""
    if origin == "huggingface":
        return read_network_config(source)[0] == "decoder"
    return origin == "gguf"


def read_decoder(source: str | Path, origin: str, elastic: Sequence[str] = ()) -> ForeignDecoder:
    """Read a GGUF file or a Hugging Face-format folder; `elastic` as `more_choices`.

    Raises WeightsError for what is no decoder of ours, does not fit or is not finite; ValueError
    for an axis that is not there.
    """
    unknown = sorted(set(elastic) - set(MORE_AXES))
    if unknown:
        raise ValueError(f"elastic axis {unknown[0]!r}, allowed {', '.join(MORE_AXES)}")
    if origin == "gguf":
        network = read_gguf(source)
        config, tensors, text = network.config, network.tensors, network.text
    else:
        text = read_text(source)
        config, tensors = read_network_config(source)[1], read_tensors(source)
    definition = define_supernet("decoder", **config, **more_choices(config, elastic))
    naming = find_naming("huggingface", "decoder")
    return ForeignDecoder(
        definition, import_state(tensors, definition, naming, where=str(source)), text
    )


def more_choices(config: Mapping[str, Any], elastic: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Return the choices of axes beside the feed-forward width, as fields of a `DecoderConfig`.

    `heads`: quarters of the query heads of each group; `depth`: three quarters, seven eighths and
    all of the blocks. Raises ValueError for heads where each group has one.

    >>> more_choices({"num_heads": 9, "num_kv_heads": 3, "depth": 30}, ["heads", "depth"])
    {'heads_choices': (1, 2, 3), 'depth_choices': (23, 27, 30)}
    """
    choices: dict[str, tuple[int, ...]] = {}
    if "heads" in elastic:
        ranks = config["num_heads"] // config["num_kv_heads"]
        if ranks < 2:
            raise ValueError(
                "heads can't be elastic: each group of keys and values has one query head"
            )
        choices["heads_choices"] = tuple(sorted({max(1, ranks * q // 4) for q in range(1, 5)}))
    if "depth" in elastic:
        depth = config["depth"]
        choices["depth_choices"] = tuple(sorted({depth - depth // n for n in (4, 8)} | {depth}))
    return choices


def import_decoder(
    source: str | Path,
    *,
    origin: str,
    sort: bool = True,
    calibration: Sequence[str] = (),
    elastic: Sequence[str] = (),
    tell: Tell = lambda _: None,
) -> Checkpoint:
    """Return a checkpoint that serves every width of the ladder.

    `calibration` are texts to measure activations on besides drawn text; widths are compared on
    other passages of them, or of the packaged text. `elastic` are axes beside the width
    (`more_choices`). `tell` hears what is being done. Raises WeightsError and ValueError as
    `read_decoder`, TokenizerMissingError without its package.
    """
    tell(f"reading {source}")
    definition, state, text = read_decoder(source, origin, elastic)
    tokenizer = Tokenizer(text)
    vocab_size = definition.config.num_classes
    permutation = None
    if sort:
        tell("measuring activations")
        net = extract(state, definition, definition.space.largest)
        groups = definition.family.channel_groups(definition.config)
        batches = calibration_batches(net, text, tokenizer, calibration, vocab_size)
        permutation = importance_order(state, groups, rms_activations(net, groups, batches))
        del net
        permute_channels(state, groups, permutation)
    tell("comparing widths with the largest")
    held_out = [
        ids
        for each in (calibration or (packaged_text(),))
        for ids in passages(tokenizer, each, held_out=True, vocab_size=vocab_size)
    ]
    name = Path(source).name.partition(".")[0]
    return decoder_checkpoint(
        definition,
        state,
        held_out,
        name=name,
        text=text,
        permutation=permutation,
        provenance={"origin": origin, "source": Path(source).name},
    )


def decoder_checkpoint(
    definition: SupernetDefinition, state: State, held_out: Sequence[Any], **others: Any
) -> Checkpoint:
    """Return a checkpoint of every width of the ladder, measured on texts (B, N) of held-out ids.

    `others` are further fields of the checkpoint, `name` among them.
    """
    archs = definition.space.ladder()
    given: dict[str, Any] = others.pop("provenance", {})
    found = top1_agreement(state, definition, archs, held_out)
    subnets = tuple(
        ServedSubnet(
            arch=arch,
            accuracy=found[arch.subnet_id].share,
            ci95=found[arch.subnet_id].ci95,
            **cost(definition, arch)._asdict(),
        )
        for arch in archs
    )
    tokens = sum(ids.numel() for ids in held_out)
    return Checkpoint(
        definition=definition,
        input=input_of(definition, others["name"]),
        state=state,
        norm_statistics={subnet.subnet_id: {} for subnet in subnets},
        subnets=subnets,
        provenance={**given, "perplexity": {i: each.perplexity for i, each in found.items()}},
        accuracy_source=f"{TOP1_AGREEMENT}: next tokens as the largest says, of {tokens} held out",
        **others,
    )
