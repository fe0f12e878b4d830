"""`import_supernet`: make a supernet of weights that were trained elsewhere.

Sources: a timm or torchvision model by name (with its pretrained weights), an official OFA file, a
Hugging Face-format folder, files of two small projects that publish trained networks, and our own
checkpoint folders. Strict: a missing, unexpected or misshapen tensor is an error that lists it
(`num_batches_tracked` alone may be absent: nothing reads it). timm and torchvision are imported
here only, and only when asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch

from supernet.checkpoint import check_state, load_checkpoint
from supernet.definition import SupernetDefinition, define_supernet
from supernet.weights.huggingface_config import read_network_config
from supernet.weights.naming import Naming, State, find_naming
from supernet.weights.ofa_files import materialise_kernels, matrix_names, to_static
from supernet.weights.positions import with_positions
from supernet.weights.weight_files import WeightsError, read_tensors
from supernet.weights.wrapped_names import without_prefix, without_wrappers

_POSITION_IDS = "bert.embeddings.position_ids"  # a constant that older encoder files hold
_MAX_LISTED = 20
_HEADS = ("classifier", "fc", "head", "head.fc")


def import_supernet(
    source: str | Path,
    *,
    origin: str,
    supernet: str | None = None,
    weights: str | Path | None = None,
    new_head: bool = False,
    ignore: Sequence[str] = (),
    **overrides: Any,
) -> tuple[SupernetDefinition, State]:
    """Return the definition and the complete state of a supernet with foreign weights.

    `source` is a file, a folder, or for timm and torchvision a model's name; `weights` is then
    one's own file of that model, instead of the published ones, and says how many classes there
    are. `supernet` names the variant (default: the model's name, or what a Hugging Face config
    says). `new_head` draws a classifier that is absent, or has other classes. `ignore` are patterns
    of keys to leave out, such as `cls.*`.
    Raises WeightsError for tensors that do not fit or are not finite, ValueError for unknown names.
    """
    is_named = origin in ("timm", "torchvision") and not Path(source).exists()
    if weights is not None and not is_named:
        raise ValueError(
            f"weights {weights} belong to a model of timm or torchvision given by its name; "
            f"{source} from {origin} are weights already"
        )
    if origin == "huggingface":
        family, config = read_network_config(source)
        variant = {"bert": "minilm_l6"}.get(family, family)
        definition = define_supernet(supernet or variant, **{**config, **overrides})
    elif supernet is None and is_named:
        definition = define_supernet(str(source).partition(".")[0], **overrides)
    elif supernet is None:
        raise ValueError(f"say which supernet {source} is: weights of {origin} do not tell")
    else:
        definition = define_supernet(supernet, **overrides)
    if origin == "supernet":
        return definition, _own_state(Path(source), definition, new_head)
    naming = find_naming(origin, definition.family_name)
    where = str(weights or source)
    tensors = _read(where, origin if is_named and weights is None else "")
    kept = {n: t for n, t in tensors.items() if not any(fnmatch(n, p) for p in ignore)}
    if not new_head and "num_classes" not in overrides:
        definition = _with_classes_of(kept, definition, naming)
    return definition, import_state(kept, definition, naming, new_head=new_head, where=where)


def import_state(
    tensors: Mapping[str, torch.Tensor],
    definition: SupernetDefinition,
    naming: Naming,
    *,
    new_head: bool = False,
    where: str = "state_dict",
) -> State:
    """Turn a state_dict in its origin's naming into the complete state of our supernet.

    Raises WeightsError listing what is missing, unexpected or of another shape.
    """
    given = _unwrapped(tensors, definition, naming, where)
    matrices: State = {}
    if naming.origin == "ofa":
        given, matrices = to_static(given)
        if matrices:
            expected_matrices = set(matrix_names(definition, naming))
            _check_names(expected_matrices, set(matrices), definition, where)
    elif naming.family == "decoder":
        given = _with_decoder_names(given, definition, where)
    elif naming.origin == "huggingface":
        given = _with_prefix(given)
    given = _completed(given, definition, naming, new_head)
    expected = naming.expected(definition)
    given = with_positions(given, expected)
    _check_names(set(expected), set(given), definition, where)
    _check_shapes(expected, given, where)
    state = naming.to_ours(given, definition)
    state = materialise_kernels(state, definition, naming, matrices)
    state = {name: _as_stored(t) for name, t in state.items()}
    check_state(state, definition, where)
    check_finite(state, where)
    return state


def check_finite(tensors: Mapping[str, torch.Tensor], where: str) -> None:
    """Raise WeightsError listing the tensors that hold a NaN or an infinity."""
    wrong: list[str] = []
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or bool(torch.isfinite(tensor).all()):
            continue
        nans, infinities = int(tensor.isnan().sum()), int(tensor.isinf().sum())
        wrong.append(f"{name} ({nans} NaN and {infinities} infinite of {tensor.numel()})")
    if wrong:
        raise WeightsError(
            f"{where}: numbers that are not finite in {_listed(wrong)}; such a network answers "
            "NaN, so it is not read: take a state from before training diverged"
        )


def _as_stored(tensor: torch.Tensor) -> torch.Tensor:
    """A copy of its own, in single precision whatever precision it was saved in."""
    single = tensor.to(torch.float32) if tensor.is_floating_point() else tensor
    return single.contiguous().clone()


def _unwrapped(
    tensors: Mapping[str, torch.Tensor],
    definition: SupernetDefinition,
    naming: Naming,
    where: str,
) -> State:
    given = {name: t.detach() for name, t in without_wrappers(tensors).items()}
    expected = set(naming.expected(definition))
    if naming.origin == "huggingface":  # encoders are also published bare
        expected |= {name.removeprefix("bert.") for name in expected}
    if naming.family == "decoder":  # which may hold a head though it is tied
        expected.add("lm_head.weight")
    try:
        return without_prefix(given, expected)
    except ValueError as error:
        raise WeightsError(f"{where}: {error}") from None


def _with_classes_of(
    tensors: Mapping[str, torch.Tensor], definition: SupernetDefinition, naming: Naming
) -> SupernetDefinition:
    """The definition with as many classes as the classifier of a file has, if it has one."""
    weight = _classifier_of(definition, naming)
    found = {t.shape[0] for n, t in tensors.items() if f".{n}".endswith(f".{weight}") and t.dim()}
    if len(found) != 1 or found == {definition.config.num_classes}:
        return definition
    described = definition.to_json()
    if "num_classes" not in described["config"]:  # a decoder's are its vocabulary
        return definition
    described["config"]["num_classes"] = found.pop()
    return SupernetDefinition.from_json(described)


def _classifier_of(definition: SupernetDefinition, naming: Naming) -> str:
    """What the origin calls the classifier's weight; our own name where there is none."""
    ours = definition.on_meta(definition.space.largest).state_dict()
    layer = next((layer for layer in _HEADS if f"{layer}.weight" in ours), _HEADS[0])
    return naming.key(f"{layer}.weight")


def _own_state(folder: Path, definition: SupernetDefinition, new_head: bool) -> State:
    """Return the state of a checkpoint of ours, to go on from."""
    state = dict(load_checkpoint(folder).state)
    if new_head:
        expected = definition.on_meta(definition.space.largest).state_dict()
        for layer in _HEADS:
            weight, mine = expected.get(f"{layer}.weight"), state.get(f"{layer}.weight")
            if weight is not None and mine is not None and weight.shape[0] != mine.shape[0]:
                state |= _drawn_head(f"{layer}.weight", weight.shape)
    check_state(state, definition, str(folder))
    check_finite(state, str(folder))
    return state


def _drawn_head(weight: str, shape: torch.Size) -> State:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(shape, generator=generator) * 0.02
    return {weight: drawn, f"{weight.removesuffix('weight')}bias": torch.zeros(shape[0])}


def _read(source: str, published_by: str) -> State:
    """The published weights of a name, or the tensors of a file or folder."""
    if published_by == "timm":
        import timm

        return dict(timm.create_model(source, pretrained=True).state_dict())
    if published_by == "torchvision":
        from torchvision.models import get_model

        return dict(get_model(source, weights="DEFAULT").state_dict())
    return read_tensors(source)


def _with_decoder_names(tensors: State, definition: SupernetDefinition, where: str) -> State:
    """Leave out what a decoder's file repeats: a tied head, and the angles of older files."""
    named = {n: t for n, t in tensors.items() if not n.endswith("rotary_emb.inv_freq")}
    head = named.get("lm_head.weight")
    if head is None or not definition.config.tied:  # type: ignore[attr-defined]
        return named
    table = named.get("model.embed_tokens.weight")
    if table is not None and not torch.equal(table, head):
        raise WeightsError(
            f"{where}: config.json says tie_word_embeddings, but lm_head.weight differs from "
            "model.embed_tokens.weight"
        )
    return {name: t for name, t in named.items() if name != "lm_head.weight"}


def _with_prefix(tensors: State) -> State:
    """Bare encoders and classifiers differ in the prefix `bert.`."""
    named = {
        name if name.startswith(("bert.", "classifier.", "cls.")) else f"bert.{name}": tensor
        for name, tensor in tensors.items()
    }
    named.pop(_POSITION_IDS, None)
    return named


def _completed(
    tensors: State, definition: SupernetDefinition, naming: Naming, new_head: bool
) -> State:
    """Add batch counters that are absent and, if asked for, draw a classifier that does not fit."""
    complete = dict(tensors)
    expected = naming.expected(definition)
    for name, tensor in expected.items():
        if name.endswith("num_batches_tracked") and name not in complete:
            complete[name] = torch.zeros(tensor.shape, dtype=tensor.dtype)
    weight = _classifier_of(definition, naming)
    if new_head and weight in expected:
        shape = expected[weight].shape
        # Of the same inputs only: another network's classifier is told by its shape.
        if weight not in complete or (
            complete[weight].shape[0] != shape[0] and complete[weight].shape[1:] == shape[1:]
        ):
            complete |= _drawn_head(weight, shape)
    return complete


def _check_names(
    expected: set[str], given: set[str], definition: SupernetDefinition, where: str
) -> None:
    missing, unexpected = sorted(expected - given), sorted(given - expected)
    if missing or unexpected:
        raise WeightsError(
            f"{where}: the tensors do not fit {definition.family_name}"
            + (f"; missing {_listed(missing)}" if missing else "")
            + (f"; unexpected {_listed(unexpected)}" if unexpected else "")
        )


def _check_shapes(expected: State, given: State, where: str) -> None:
    wrong = [
        f"{name} has shape {tuple(given[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if given[name].shape != tensor.shape
    ]
    if wrong:
        raise WeightsError(f"{where}: {_listed(wrong)}")


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_MAX_LISTED])
    return shown if len(names) <= _MAX_LISTED else f"{shown} and {len(names) - _MAX_LISTED} more"
