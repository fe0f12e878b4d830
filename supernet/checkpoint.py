"""The checkpoint folder: one supernet's weights, its subnets' statistics and accuracies.

| file | what |
|---|---|
| supernet.safetensors | the supernet's state_dict |
| norm_statistics.safetensors | `<subnet id>/<buffer name>`: each served subnet's own statistics |
| activation_ranges.safetensors | `<subnet id>/<tensor>`: what int8 rounds by; only where measured |
| low_bit.safetensors | bits and scales of signed-binary weights, for all subnets; only where made |
| tokenizer.json | how text becomes tokens; only of a decoder that was made with one |
| accuracy.json | the served subnets: arch, accuracy with confidence interval, MACs, parameters |
| supernet.json | family, config, input, classes, permutation, provenance, digests of the others |

Tensors are safetensors and text is JSON: nothing that is loaded can execute. `supernet.json` is
written last and carries the digests of the other files, so a folder that was written half, or
mixed from two, is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from supernet.arch import Arch
from supernet.checkpoint_files import (
    ACCURACY,
    HEADER,
    LOW_BIT,
    NORMS,
    OPTIONAL,
    RANGES,
    TOKENIZER,
    WEIGHTS,
    CheckpointError,
    by_path,
    by_subnet,
    checked_digests,
    digest,
    fingerprint_of,
    read_json,
    read_tensors,
)
from supernet.definition import SupernetDefinition
from supernet.graphs.graph_folder import GraphFolder
from supernet.input import InputSpec
from supernet.low_bit.low_bit_weights import LowBitWeights
from supernet.sample import SampleSpec
from supernet.served_form import ServedForm
from supernet.tensor_file import save_tensors
from supernet.text import TextSpec

FORMAT = 1

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedSubnet:
    """A subnet in one precision, with its measured accuracy (fraction) and 95 % interval."""

    arch: Arch
    accuracy: float
    ci95: tuple[float, float]
    macs: int
    params: int
    precision: str = "fp32"

    @property
    def subnet_id(self) -> str:
        """The arch's canonical id, with the precision's suffix."""
        return ServedForm(self.arch.subnet_id, self.precision).form_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A supernet as loaded or about to be saved; `subnets` ascend in MACs.

    `state` is the supernet's state_dict; `norm_statistics` maps a subnet id to its
    running statistics by buffer name. `accuracy_source` says on which data accuracy was measured.
    `int8_subnets` are the same archs in int8 where that loses little, `activation_ranges` what they
    round by: {id of the float subnet: {tensor: lowest, highest, then means of channels}}.
    `low_bit` are signed-binary weights, `low_bit_subnets` archs that are served with them: their
    norm statistics are by their own ids.
    `text` is how a decoder's text becomes tokens, `graph` the one whose nodes are the samples.
    """

    name: str
    definition: SupernetDefinition
    input: InputSpec
    state: Mapping[str, torch.Tensor]
    norm_statistics: Mapping[str, Mapping[str, torch.Tensor]]
    subnets: tuple[ServedSubnet, ...]
    accuracy_source: str = ""
    classes: tuple[str, ...] = ()
    permutation: Mapping[str, list[int]] | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    fingerprint: str = ""
    int8_subnets: tuple[ServedSubnet, ...] = ()
    activation_ranges: Mapping[str, Mapping[str, torch.Tensor]] = field(default_factory=dict)
    low_bit: LowBitWeights | None = None
    low_bit_subnets: tuple[ServedSubnet, ...] = ()
    text: TextSpec | None = None
    graph: GraphFolder | None = None

    @property
    def forms(self) -> tuple[ServedSubnet, ...]:
        """Everything that could be offered: the subnets in every precision that was measured."""
        return (*self.subnets, *self.int8_subnets, *self.low_bit_subnets)

    @property
    def sample(self) -> SampleSpec:
        """What one sample is on its way to a device; a text's ids are those of the vocabulary.

        Raises CheckpointError for a family of texts whose config does not say its vocabulary.
        """
        if self.input.kind == "image":
            return SampleSpec(shape=self.input.shape)
        if self.input.kind == "nodes":
            if self.graph is None:
                raise CheckpointError(f"{self.name}: takes nodes, and does not say of which graph")
            return SampleSpec(shape=(1,), dtype="int64", highest=self.graph.num_nodes - 1)
        config: Any = self.definition.config
        try:
            highest, pad = config.vocab_size - 1, config.pad_id
        except AttributeError as error:
            raise CheckpointError(
                f"{self.name}: a family that takes token ids says `vocab_size` and `pad_id` in "
                f"its config ({error})"
            ) from None
        return SampleSpec(shape=(self.input.width,), dtype="int32", highest=highest, pad=pad)

    @property
    def num_classes(self) -> int:
        """Numbers per sample of the output: logits, or an embedding's."""
        return self.definition.output.size

    @property
    def subnet_ids(self) -> tuple[str, ...]:
        """Ids of the served subnets in float, ascending in MACs."""
        return tuple(subnet.subnet_id for subnet in self.subnets)

    def tensors_of(self, form: ServedForm) -> tuple[Tensors, Tensors]:
        """Return the supernet's state as a form of a subnet reads it, and its norm statistics.

        An int8 form reads what its float one does. Raises CheckpointError for a subnet that is not
        served, or not in low-bit weights.
        """
        if form.precision != "signed_binary":
            self.subnet(form.subnet_id)
            return self.state, self.norm_statistics[form.subnet_id]
        self.subnet(form.form_id)
        assert self.low_bit is not None, "checked when the checkpoint was loaded"
        return self.low_bit.in_place_of(self.state), self.norm_statistics[form.form_id]

    def serving(
        self,
        subnets: tuple[ServedSubnet, ...],
        norm_statistics: Mapping[str, Tensors],
        accuracy_source: str,
    ) -> Checkpoint:
        """Return the same weights serving other float subnets, or newly measured ones.

        Entries in other precisions are left out, and a decoder's perplexities: they were measured
        beside those that were.
        """
        return replace(
            self,
            subnets=subnets,
            norm_statistics=norm_statistics,
            accuracy_source=accuracy_source,
            int8_subnets=(),
            activation_ranges={},
            low_bit_subnets=(),
            provenance={k: v for k, v in self.provenance.items() if k != "perplexity"},
            fingerprint="",
        )

    def subnet(self, subnet_id: str) -> ServedSubnet:
        """Return one served subnet, in any precision. Raises CheckpointError with the known ids."""
        for subnet in self.forms:
            if subnet.subnet_id == subnet_id:
                return subnet
        known = ", ".join(subnet.subnet_id for subnet in self.forms)
        raise CheckpointError(
            f"subnet {subnet_id!r} is not served by {self.name!r}; it has {known}"
        )


def save_checkpoint(checkpoint: Checkpoint, folder: str | Path) -> str:
    """Write the folder and return the fingerprint of its tensors.

    All is written to a temporary folder beside it, which becomes the folder when whole. Into a
    folder that exists (a training run's, say) its files are moved, the header last. Raises OSError
    or SafetensorError when the disk is full; what was there before is then as it was.
    """
    target = Path(folder)
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as temporary:
        whole = Path(temporary) / "checkpoint"
        whole.mkdir()
        fingerprint = _write_files(checkpoint, whole, target)
        if not target.exists():
            whole.rename(target)
        else:
            is_ours = (target / HEADER).exists()  # else what lies there is of something else
            for name in (WEIGHTS, NORMS, *OPTIONAL, ACCURACY, HEADER):
                if (whole / name).exists():
                    (whole / name).replace(target / name)
                elif is_ours:
                    (target / name).unlink(missing_ok=True)
    return fingerprint


def _write_files(checkpoint: Checkpoint, folder: Path, target: Path) -> str:
    names = [WEIGHTS, NORMS, ACCURACY]
    if checkpoint.activation_ranges:
        save_tensors(by_path(checkpoint.activation_ranges), folder / RANGES)
        names.append(RANGES)
    written = checkpoint.state
    if checkpoint.low_bit is not None:
        save_tensors(checkpoint.low_bit.to_tensors(), folder / LOW_BIT)
        names.append(LOW_BIT)
        if checkpoint.low_bit.replaces:
            written = {n: t for n, t in written.items() if n not in checkpoint.low_bit.tensors}
    if checkpoint.text is not None:
        (folder / TOKENIZER).write_text(checkpoint.text.tokenizer, encoding="utf-8")
        names.append(TOKENIZER)
    weights = {name: t.detach().cpu().contiguous() for name, t in written.items()}
    save_tensors(weights, folder / WEIGHTS)
    save_tensors(by_path(checkpoint.norm_statistics), folder / NORMS)
    (folder / ACCURACY).write_text(json.dumps(_accuracy(checkpoint), indent=1) + "\n")
    digests = {name: digest(folder / name) for name in names}
    fingerprint = fingerprint_of(digests)
    header = _header(checkpoint) | {"files": digests, "fingerprint": fingerprint}
    if checkpoint.low_bit is not None:
        header["low_bit"] = {"replaces": checkpoint.low_bit.replaces}
    if checkpoint.graph is not None:
        header["graph"] = checkpoint.graph.to_json(target)
    (folder / HEADER).write_text(json.dumps(header, indent=1) + "\n")
    return fingerprint


def load_checkpoint(folder: str | Path) -> Checkpoint:
    """Read a checkpoint folder and check it against itself.

    Raises CheckpointError: a missing or altered file, an unknown format, a missing or extra
    tensor, a shape that does not fit the definition, a subnet outside the space.
    """
    source = Path(folder)
    header = read_json(source / HEADER)
    if header.get("format") != FORMAT:
        raise CheckpointError(
            f"{source / HEADER}: format is {header.get('format')!r}, allowed {FORMAT}"
        )
    digests = checked_digests(source, header)
    try:
        definition = SupernetDefinition.from_json(header)
        input_spec = InputSpec.from_json(header["input"])
        graph = GraphFolder.from_json(header["graph"], source) if "graph" in header else None
        forms = _subnets(definition, read_json(source / ACCURACY))
        text = _text(source, header, digests)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{source}: {error}") from None
    state = read_tensors(source / WEIGHTS)
    low_bit = _low_bit(source, header, definition)
    if low_bit is not None and low_bit.replaces:
        state = low_bit.in_place_of(state)
    check_state(state, definition, where=str(source / WEIGHTS))
    _check_output(source, header, definition)
    subnets = tuple(form for form in forms if form.precision == "fp32")
    if not subnets:
        raise CheckpointError(f"{source / ACCURACY}: no float subnet is listed, none can be served")
    low_bit_subnets = tuple(form for form in forms if form.precision == "signed_binary")
    norms = _norm_statistics(source, definition, (*subnets, *low_bit_subnets))
    int8_subnets = tuple(form for form in forms if form.precision == "int8")
    ranges = _activation_ranges(source, digests)
    _check_int8(source, int8_subnets, norms, ranges)
    _check_low_bit(source, low_bit_subnets, norms, low_bit)
    return Checkpoint(
        name=str(header.get("name", source.name)),
        definition=definition,
        input=input_spec,
        state=state,
        norm_statistics=norms,
        subnets=subnets,
        accuracy_source=read_json(source / ACCURACY).get("source", ""),
        classes=tuple(header.get("classes", ())),
        permutation=header.get("permutation"),
        provenance=header.get("provenance", {}),
        fingerprint=fingerprint_of(digests),
        int8_subnets=int8_subnets,
        activation_ranges=ranges,
        low_bit=low_bit,
        low_bit_subnets=low_bit_subnets,
        text=text,
        graph=graph,
    )


def _check_output(source: Path, header: Mapping[str, Any], definition: SupernetDefinition) -> None:
    told, own = header.get("output"), definition.output._asdict()
    if told not in (None, own):  # checkpoints of before do not say
        raise CheckpointError(f"{source / HEADER}: output is {told}, but the network gives {own}")


def _text(source: Path, header: Mapping[str, Any], digests: Mapping[str, str]) -> TextSpec | None:
    if TOKENIZER not in digests:
        return None
    tokenizer = (source / TOKENIZER).read_text(encoding="utf-8")
    return TextSpec.from_json(header.get("text", {}), tokenizer)


def _low_bit(
    source: Path, header: Mapping[str, Any], definition: SupernetDefinition
) -> LowBitWeights | None:
    if LOW_BIT not in header["files"]:
        return None
    try:
        replaces = bool(header["low_bit"]["replaces"])
        return LowBitWeights.from_tensors(
            read_tensors(source / LOW_BIT), definition, replaces=replaces
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{source / LOW_BIT}: {error}") from None


def check_state(
    state: Mapping[str, torch.Tensor], definition: SupernetDefinition, where: str = "state_dict"
) -> None:
    """Raise CheckpointError unless `state` has exactly the supernet's tensors and shapes."""
    expected = {**definition.parameter_shapes(), **definition.buffer_shapes()}
    missing = sorted(expected.keys() - state.keys())
    extra = sorted(state.keys() - expected.keys())
    if missing or extra:
        raise CheckpointError(
            f"{where}: the tensors do not fit {definition.family_name}"
            + (f"; missing {', '.join(missing)}" if missing else "")
            + (f"; not known {', '.join(extra)}" if extra else "")
        )
    for name, shape in expected.items():
        if tuple(state[name].shape) != shape:
            raise CheckpointError(
                f"{where}: {name} has shape {tuple(state[name].shape)}, expected {shape}"
            )


def _header(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "name": checkpoint.name,
        **checkpoint.definition.to_json(),
        "input": checkpoint.input.to_json(),
        "output": checkpoint.definition.output._asdict(),
        "classes": list(checkpoint.classes),
        **({"text": checkpoint.text.to_json()} if checkpoint.text else {}),
        "permutation": checkpoint.permutation,
        "provenance": dict(checkpoint.provenance),
    }


def _accuracy(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "source": checkpoint.accuracy_source,
        "subnets": [
            {
                "id": subnet.subnet_id,
                "arch": subnet.arch.to_json(),
                "accuracy": subnet.accuracy,
                "ci95": list(subnet.ci95),
                "macs": subnet.macs,
                "params": subnet.params,
                **({} if subnet.precision == "fp32" else {"precision": subnet.precision}),
            }
            for subnet in checkpoint.forms
        ],
    }


def _subnets(
    definition: SupernetDefinition, accuracy: Mapping[str, Any]
) -> tuple[ServedSubnet, ...]:
    subnets: list[ServedSubnet] = []
    rows: Sequence[Mapping[str, Any]] = accuracy["subnets"]
    for row in rows:
        arch = Arch.from_json(row["arch"])
        definition.space.validate(arch)
        precision = row.get("precision", "fp32")
        form_id = ServedForm(arch.subnet_id, precision).form_id
        if row["id"] != form_id:
            raise CheckpointError(f"{ACCURACY}: id {row['id']!r} names arch {form_id!r}")
        low, high = row["ci95"]
        subnets.append(
            ServedSubnet(
                arch=arch,
                accuracy=float(row["accuracy"]),
                ci95=(float(low), float(high)),
                macs=int(row["macs"]),
                params=int(row["params"]),
                precision=precision,
            )
        )
    if not subnets:
        raise CheckpointError(f"{ACCURACY}: no subnet is listed, nothing can be served")
    return tuple(sorted(subnets, key=lambda s: (s.macs, s.subnet_id)))


def _norm_statistics(
    source: Path, definition: SupernetDefinition, subnets: Sequence[ServedSubnet]
) -> dict[str, dict[str, torch.Tensor]]:
    norms: dict[str, dict[str, torch.Tensor]] = {subnet.subnet_id: {} for subnet in subnets}
    for subnet_id, tensors in by_subnet(source / NORMS).items():
        if subnet_id not in norms:
            raise CheckpointError(
                f"{source / NORMS}: {subnet_id}/{next(iter(tensors))} is of a subnet not listed "
                f"in {ACCURACY}"
            )
        norms[subnet_id] = tensors
    for subnet in subnets:
        _check_norms(source, definition, subnet, norms[subnet.subnet_id])
    return norms


def _check_norms(
    source: Path,
    definition: SupernetDefinition,
    subnet: ServedSubnet,
    statistics: Mapping[str, torch.Tensor],
) -> None:
    expected = {
        name: shape
        for name, shape in definition.buffer_shapes(subnet.arch).items()
        if name.endswith(("running_mean", "running_var"))
    }
    wrong = sorted(expected.keys() ^ statistics.keys())
    wrong += [n for n, s in expected.items() if n in statistics and statistics[n].shape != s]
    if wrong:
        raise CheckpointError(
            f"{source / NORMS}: statistics of {subnet.subnet_id} are missing, extra or of "
            f"another shape: {', '.join(wrong)}"
        )


def _activation_ranges(
    source: Path, digests: Mapping[str, str]
) -> dict[str, dict[str, torch.Tensor]]:
    return by_subnet(source / RANGES) if RANGES in digests else {}


def _check_int8(
    source: Path,
    int8_subnets: Sequence[ServedSubnet],
    norms: Mapping[str, object],
    ranges: Mapping[str, Mapping[str, torch.Tensor]],
) -> None:
    for subnet in int8_subnets:
        float_id = subnet.arch.subnet_id
        if float_id not in norms or not ranges.get(float_id):
            raise CheckpointError(
                f"{source / ACCURACY}: {subnet.subnet_id} needs {float_id} beside it and its "
                f"ranges in {RANGES}; measure them with `supernet precision`"
            )
    for subnet_id, tensors in ranges.items():
        wrong = [n for n, t in tensors.items() if t.ndim != 1 or len(t) < 2 or not t[0] <= t[1]]
        if wrong:
            raise CheckpointError(
                f"{source / RANGES}: {subnet_id}/{wrong[0]} holds no lowest and highest value"
            )


def _check_low_bit(
    source: Path,
    low_bit_subnets: Sequence[ServedSubnet],
    norms: Mapping[str, object],
    low_bit: LowBitWeights | None,
) -> None:
    for subnet in low_bit_subnets:
        if low_bit is None or subnet.arch.subnet_id not in norms:
            raise CheckpointError(
                f"{source / ACCURACY}: {subnet.subnet_id} needs {subnet.arch.subnet_id} beside it "
                f"and its weights in {LOW_BIT}; make them with `supernet precision`"
            )
