"""How others name the tensors of our families: one table of `Naming`s.

A naming says what a network of ours looks like in its origin's state_dict (`to_origin`) and back
(`to_ours`). Names are rewritten by ordered patterns; the few tensors that also differ in shape or
order (attention, class token) are converted. The names that an origin's file must have follow from
`to_origin` of the weightless supernet, so nothing is listed twice.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from supernet.arch import Arch
from supernet.definition import SupernetDefinition
from supernet.weights.decoder_naming import (
    DECODER_RULES,
    decoder_from_huggingface,
    decoder_to_huggingface,
)

State = dict[str, torch.Tensor]
Convert = Callable[[State, SupernetDefinition], State]

ORIGINS = "timm, torchvision, ofa, huggingface, gguf, efficientnet_pytorch, cifar_resnet, supernet"
"""Where weights may come from, and whose names a state_dict may have; `supernet` is our own."""
_KERNEL = re.compile(r"(.*conv_dw)\.\d+\.(.*)")


def _unchanged(state: State, definition: SupernetDefinition) -> State:
    return state


@dataclass(frozen=True, slots=True, kw_only=True)
class Naming:
    """How one origin names one family.

    `rules` rewrite one of our names, each pattern applied to the result of those before it.
    `before` converts our tensors before they are renamed, `after` the origin's tensors before
    they are renamed back. `renumber` are the prefixes whose numbers an origin keeps without gaps.
    """

    origin: str
    family: str
    rules: tuple[tuple[str, str], ...] = ()
    before: Convert = _unchanged
    after: Convert = _unchanged
    renumber: tuple[str, ...] = ("blocks",)

    def to_origin(self, state: Mapping[str, torch.Tensor], definition: SupernetDefinition) -> State:
        """Rename the state of one subnet; `conv_dw.5.weight` becomes `conv_dw.weight`.

        Blocks that are absent leave no gap in the numbers.
        """
        named = self._without_gaps(self.before(dict(state), definition), definition)
        return {self.key(name): tensor for name, tensor in named.items()}

    def to_ours(self, tensors: Mapping[str, torch.Tensor], definition: SupernetDefinition) -> State:
        """Rename the origin's tensors of the largest subnet, which must all be there."""
        largest = definition.space.largest
        names = self.before(dict(definition.on_meta(largest).state_dict()), definition)
        return self.after({name: tensors[self.key(name)] for name in names}, definition)

    def expected(self, definition: SupernetDefinition, arch: Arch | None = None) -> State:
        """The weightless state_dict that the origin's file of a subnet (the largest) matches."""
        arch = definition.space.largest if arch is None else arch
        return self.to_origin(definition.on_meta(arch).state_dict(), definition)

    def key(self, name: str) -> str:
        """Return the origin's name for one of our (gapless) names."""
        name = _KERNEL.sub(r"\1.\2", name)
        for pattern, replacement in self.rules:
            name = re.sub(pattern, replacement, name)
        return name

    def _without_gaps(self, state: State, definition: SupernetDefinition) -> State:
        renamed = state
        for prefix in self.renumber:
            numbered = re.compile(rf"{prefix}\.(\d+)\.")
            found = {int(m[1]) for name in renamed if (m := numbered.match(name))}
            position = {old: new for new, old in enumerate(sorted(found))}
            renamed = {
                numbered.sub(lambda m: f"{prefix}.{position[int(m[1])]}.", name, count=1)  # noqa: B023
                if numbered.match(name)
                else name: tensor
                for name, tensor in renamed.items()
            }
        return renamed


_MOBILE_TIMM = (
    (r"^stem\.conv\.", "conv_stem."),
    (r"^stem\.bn\.", "bn1."),
    (r"^(blocks\.\d+\.0)\.bn\.", r"\1.bn1."),
    (r"^head\.conv\.", "conv_head."),
    (r"^head\.bn\.", "bn2."),
)
_OFA_MOBILE = (
    (r"^(blocks\.0)\.conv_dw\.", r"\1.conv.depth_conv.conv."),
    (r"^(blocks\.0)\.bn1\.", r"\1.conv.depth_conv.bn."),
    (r"^(blocks\.0)\.conv_pw\.", r"\1.conv.point_linear.conv."),
    (r"^(blocks\.0)\.bn2\.", r"\1.conv.point_linear.bn."),
    (r"^(blocks\.\d+)\.conv_pw\.", r"\1.conv.inverted_bottleneck.conv."),
    (r"^(blocks\.\d+)\.bn1\.", r"\1.conv.inverted_bottleneck.bn."),
    (r"^(blocks\.\d+)\.conv_dw\.", r"\1.conv.depth_conv.conv."),
    (r"^(blocks\.\d+)\.bn2\.", r"\1.conv.depth_conv.bn."),
    (r"^(blocks\.\d+)\.se\.conv_(reduce|expand)\.", r"\1.conv.depth_conv.se.fc.\2."),
    (r"^(blocks\.\d+)\.conv_pwl\.", r"\1.conv.point_linear.conv."),
    (r"^(blocks\.\d+)\.bn3\.", r"\1.conv.point_linear.bn."),
    (r"^final_expand\.", "final_expand_layer."),
    (r"^feature_mix\.weight", "feature_mix_layer.conv.weight"),
    (r"^feature_mix\.", "feature_mix_layer."),
    (r"^classifier\.", "classifier.linear."),
)
_OFA_RESNET = (
    (r"^(blocks\.\d+)\.conv([123])\.", r"\1.conv\2.conv."),
    (r"^(blocks\.\d+)\.bn([123])\.", r"\1.conv\2.bn."),
    (r"^classifier\.", "classifier.linear."),
)
_EFFICIENTNET_PYTORCH = (
    (r"^stem\.conv\.", "_conv_stem."),
    (r"^stem\.bn\.", "_bn0."),
    (r"^blocks\.0\.conv_dw\.", "_blocks.0._depthwise_conv."),
    (r"^blocks\.0\.conv_pw\.", "_blocks.0._project_conv."),
    (r"^blocks\.0\.bn([12])\.", r"_blocks.0._bn\1."),
    (r"^blocks\.(\d+)\.conv_pw\.", r"_blocks.\1._expand_conv."),
    (r"^blocks\.(\d+)\.conv_dw\.", r"_blocks.\1._depthwise_conv."),
    (r"^blocks\.(\d+)\.conv_pwl\.", r"_blocks.\1._project_conv."),
    (r"^blocks\.(\d+)\.bn1\.", r"_blocks.\1._bn0."),
    (r"^blocks\.(\d+)\.bn2\.", r"_blocks.\1._bn1."),
    (r"^blocks\.(\d+)\.bn3\.", r"_blocks.\1._bn2."),
    (r"^head\.conv\.", "_conv_head."),
    (r"^head\.bn\.", "_bn1."),
    (r"^classifier\.", "_fc."),
)
_CONVNEXT_TIMM = (
    (r"^(stem|stages\.\d+\.downsample)\.steps\.", r"\1."),
    (r"\.gamma\.weight$", ".gamma"),
)
_TOWER_TIMM = (
    (r"^patch_embed\.(cls_token|reg_token|pos_embed)\.weight$", r"\1"),
    (r"\.(gamma|latent)\.weight$", r".\1"),
)
_VIT_TIMM = ((r"^patch_embed\.(cls_token|pos_embed)\.weight$", r"\1"),)
_BERT = (
    (r"^embeddings\.(word|position|token_type)s\.", r"embeddings.\1_embeddings."),
    (r"^embeddings\.norm\.", "embeddings.LayerNorm."),
    (r"^blocks\.(\d+)\.attn\.(query|key|value)\.", r"encoder.layer.\1.attention.self.\2."),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"encoder.layer.\1.attention.output.dense."),
    (r"^blocks\.(\d+)\.norm1\.", r"encoder.layer.\1.attention.output.LayerNorm."),
    (r"^blocks\.(\d+)\.mlp\.fc1\.", r"encoder.layer.\1.intermediate.dense."),
    (r"^blocks\.(\d+)\.mlp\.fc2\.", r"encoder.layer.\1.output.dense."),
    (r"^blocks\.(\d+)\.norm2\.", r"encoder.layer.\1.output.LayerNorm."),
    (r"^pooler\.", "pooler.dense."),
    (r"^(embeddings|encoder|pooler)\.", r"bert.\1."),
)


def _flat_blocks(state: State, definition: SupernetDefinition) -> State:
    """`blocks.2.1.` with the blocks of all stages numbered in one row."""
    places = sorted(
        {
            (int(m[1]), int(m[2]))
            for name in state
            if (m := re.match(r"blocks\.(\d+)\.(\d+)\.", name))
        }
    )
    number = {place: i for i, place in enumerate(places)}

    def flat(match: re.Match[str]) -> str:
        return f"blocks.{number[int(match[1]), int(match[2])]}."

    return {re.sub(r"^blocks\.(\d+)\.(\d+)\.", flat, name): t for name, t in state.items()}


def _staged_blocks(state: State, definition: SupernetDefinition) -> State:
    names = list(definition.on_meta(definition.space.largest).state_dict())
    flat = _flat_blocks(dict.fromkeys(names, torch.empty(0)), definition)
    staged = dict(zip(flat, names, strict=True))
    return {staged[name]: tensor for name, tensor in state.items()}


def _head_dim(definition: SupernetDefinition) -> int:
    config = definition.config
    return config.width // config.num_heads  # type: ignore[attr-defined]


def _swap_head_order(tensor: torch.Tensor, head_dim: int, to_head_major: bool) -> torch.Tensor:
    """Rows (3, H, D) to (H, 3, D), or back; a copy."""
    outer = 3 if to_head_major else tensor.shape[0] // (3 * head_dim)
    rows = tensor.unflatten(0, (outer, -1, head_dim))
    return rows.transpose(0, 1).flatten(0, 2).contiguous()


def _vit_to_timm(state: State, definition: SupernetDefinition) -> State:
    converted: State = {}
    for name, tensor in state.items():
        if ".attn.qkv." in name:
            tensor = _swap_head_order(tensor, _head_dim(definition), to_head_major=False)
        elif name.startswith(("patch_embed.cls_token", "patch_embed.pos_embed")):
            tensor = tensor.unsqueeze(0)
        converted[name] = tensor
    return converted


def _vit_from_timm(state: State, definition: SupernetDefinition) -> State:
    converted: State = {}
    for name, tensor in state.items():
        if ".attn.qkv." in name:
            tensor = _swap_head_order(tensor, _head_dim(definition), to_head_major=True)
        elif name.startswith(("patch_embed.cls_token", "patch_embed.pos_embed")):
            tensor = tensor.squeeze(0)
        converted[name] = tensor
    return converted


def _convnext_to_timm(state: State, definition: SupernetDefinition) -> State:
    return {n: t.squeeze(0) if n.endswith("gamma.weight") else t for n, t in state.items()}


def _convnext_from_timm(state: State, definition: SupernetDefinition) -> State:
    return {n: t.unsqueeze(0) if n.endswith("gamma.weight") else t for n, t in state.items()}


_ROWS = ("reg_token.weight", "latent.weight")


def _tower_to_timm(state: State, definition: SupernetDefinition) -> State:
    named = _vit_to_timm(_convnext_to_timm(state, definition), definition)
    return {n: t.unsqueeze(0) if n.endswith(_ROWS) else t for n, t in named.items()}


def _tower_from_timm(state: State, definition: SupernetDefinition) -> State:
    named = _vit_from_timm(_convnext_from_timm(state, definition), definition)
    return {n: t.squeeze(0) if n.endswith(_ROWS) else t for n, t in named.items()}


_QKV = ("query", "key", "value")


def _bert_to_huggingface(state: State, definition: SupernetDefinition) -> State:
    converted: State = {}
    for name, tensor in state.items():
        if ".attn.qkv." in name:
            parts = _swap_head_order(tensor, _head_dim(definition), to_head_major=False).chunk(3)
            for part, value in zip(_QKV, parts, strict=True):
                converted[name.replace(".qkv.", f".{part}.")] = value.clone()
        else:
            converted[name] = tensor
    return converted


def _bert_from_huggingface(state: State, definition: SupernetDefinition) -> State:
    converted: State = {}
    for name, tensor in state.items():
        if ".attn.query." in name:
            parts = [state[name.replace(".query.", f".{part}.")] for part in _QKV]
            fused = _swap_head_order(torch.cat(parts), _head_dim(definition), to_head_major=True)
            converted[name.replace(".query.", ".qkv.")] = fused
        elif ".attn.key." not in name and ".attn.value." not in name:
            converted[name] = tensor
    return converted


_NAMINGS = (
    Naming(origin="timm", family="resnet", renumber=()),
    Naming(origin="torchvision", family="resnet", renumber=()),
    Naming(origin="cifar_resnet", family="resnet", rules=((r"^fc\.", "linear."),), renumber=()),
    Naming(origin="timm", family="mobilenet_v3", rules=_MOBILE_TIMM, renumber=()),
    Naming(origin="timm", family="efficientnet_lite", rules=_MOBILE_TIMM, renumber=()),
    Naming(
        origin="efficientnet_pytorch",
        family="efficientnet_lite",
        rules=_EFFICIENTNET_PYTORCH,
        before=_flat_blocks,
        after=_staged_blocks,
    ),
    Naming(
        origin="timm",
        family="vit",
        rules=_VIT_TIMM,
        before=_vit_to_timm,
        after=_vit_from_timm,
    ),
    Naming(
        origin="timm",
        family="image_tower",
        rules=_TOWER_TIMM,
        before=_tower_to_timm,
        after=_tower_from_timm,
    ),
    Naming(
        origin="timm",
        family="convnext",
        rules=_CONVNEXT_TIMM,
        before=_convnext_to_timm,
        after=_convnext_from_timm,
        renumber=tuple(f"stages.{stage}.blocks" for stage in range(4)),
    ),
    Naming(
        origin="huggingface",
        family="bert",
        rules=_BERT,
        before=_bert_to_huggingface,
        after=_bert_from_huggingface,
    ),
    Naming(
        origin="huggingface",
        family="decoder",
        rules=DECODER_RULES,
        before=decoder_to_huggingface,
        after=decoder_from_huggingface,
    ),
    Naming(origin="ofa", family="ofa_mobilenet_v3", rules=_OFA_MOBILE),
    Naming(origin="ofa", family="ofa_proxyless", rules=_OFA_MOBILE),
    Naming(
        origin="ofa", family="ofa_resnet50", rules=_OFA_RESNET, renumber=("blocks", "input_stem")
    ),
)


def find_naming(origin: str, family: str) -> Naming:
    """Return how `origin` names `family`. Raises ValueError listing the origins that do."""
    for naming in _NAMINGS:
        if (naming.origin, naming.family) == (origin, family):
            return naming
    known = origins_of(family)
    raise ValueError(
        f"{family} has no naming of {origin!r}; known are {', '.join(known) or 'none'}"
    )


def origins_of(family: str) -> tuple[str, ...]:
    """The origins that name a family."""
    return tuple(naming.origin for naming in _NAMINGS if naming.family == family)
