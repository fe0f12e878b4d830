"""`Program`: one subnet as a straight line of calls, its convolutions fused with what follows them.

How a program is made:

1. The subnet's ordinary module is built on the meta device, and run there once to note the input
   size of every convolution.
2. It is traced by `torch.fx`.
3. BatchNorm, an addition and an activation that follow a convolution join it as one `ConvSite`.
4. What the graph calls besides sites is filled with views of the supernet's parameters.

How a site is computed (on views, with a packed weight, with everything folded in) is decided per
run by the list of calls that `run` is given, so what is resident can change while the program
stays. Plain twin: the extracted module.

A module that cannot be traced is called as a whole, on its views: a transformer's embedding, for
instance. Tracing costs tens of milliseconds per subnet and is done when a subnet is registered.
"""

from __future__ import annotations

import inspect
import operator
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from subnetact.conv_geometry import ConvGeometry
from supernet.arch import Arch
from supernet.definition import SupernetDefinition
from supernet.layers.blocks import SamePadConv2d, pad_same
from supernet.slicing import leading_slice

SiteCall = Callable[..., torch.Tensor]

_ACTIVATIONS: dict[Any, str] = {
    F.relu: "relu",
    torch.relu: "relu",
    F.relu6: "relu6",
    F.hardswish: "hard_swish",
    F.hardsigmoid: "hard_sigmoid",
}
_ADDITIONS = (operator.add, torch.add)


@dataclass(frozen=True, slots=True)
class ConvSite:
    """A convolution, and what was fused with it: its norm, an addition, an activation.

    `layer` and `norm` are module names; `adds` says that a second tensor is added after the norm,
    `overwrites` that nobody needs that tensor afterwards.
    """

    layer: str
    geometry: ConvGeometry
    has_bias: bool
    norm: str | None = None
    act: str | None = None
    adds: bool = False
    overwrites: bool = False


class Program:
    """A traced subnet: its sites in order of execution, and `run`."""

    def __init__(
        self,
        definition: SupernetDefinition,
        arch: Arch,
        state: Mapping[str, torch.Tensor],
        view: Callable[[torch.Tensor, tuple[int, ...]], torch.Tensor] = leading_slice,
        classifier: str | None = None,
    ):
        """Trace `arch`, with views of `state` (the supernet's parameters) where it needs any.

        `view` makes what a call outside the sites reads: a parameter's leading slice. The linear
        layer `classifier` computes in the dtype of its own weight, whatever comes to it.

        Raises ValueError when `arch` is outside the space, KeyError when a tensor is missing.
        """
        module, graph, self.sites = _traced(definition, arch)  # 1. to 3.
        is_whole = any(node.target is module for node in graph.nodes)
        traced = fx.GraphModule(nn.Module() if is_whole else module, graph)
        # 4. What the graph calls needs weights; a site's are handed over with its call.
        needy = module if is_whole else traced
        views = {
            name: view(state[name], tuple(meta.shape)) for name, meta in needy.state_dict().items()
        }
        needy.load_state_dict(views, strict=True, assign=True)
        if classifier is not None:
            needy.get_submodule(classifier).register_forward_pre_hook(_in_dtype_of_weight)
        self._forward = _without_graph(traced)

    @staticmethod
    def describe(definition: SupernetDefinition, arch: Arch) -> tuple[ConvSite, ...]:
        """Return the sites that a program of `arch` would have; needs no weights."""
        return _traced(definition, arch)[2]

    @staticmethod
    def classifier(definition: SupernetDefinition) -> str | None:
        """Return the name of the linear layer that gives the network's output, if one does."""
        arch = definition.space.smallest
        module = definition.on_meta(arch).eval()
        outputs: dict[str, object] = {}
        for name, child in module.named_modules():
            if isinstance(child, nn.Linear):
                child.register_forward_hook(
                    lambda _module, _inputs, y, name=name: outputs.update({name: y})
                )
        with torch.device("meta"):
            logits = module(definition.example_input(arch))
        return next((name for name, y in outputs.items() if y is logits), None)

    def run(self, x: torch.Tensor, calls: Sequence[SiteCall]) -> torch.Tensor:
        """Run on `x`, computing site i by `calls[i]`."""
        return self._forward(x, calls)


def _in_dtype_of_weight(
    linear: nn.Module, inputs: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor, ...]:
    assert isinstance(linear, nn.Linear), "a classifier is one"
    return (inputs[0].to(linear.weight.dtype),)


def _without_graph(traced: fx.GraphModule) -> Callable[..., torch.Tensor]:
    """Return the traced function on its children alone; the graph and its module can go."""
    holder = nn.Module()
    for name, child in traced.named_children():
        holder.add_module(name, child)
    for name, parameter in traced.named_parameters(recurse=False):
        holder.register_parameter(name, parameter)
    for name, buffer in traced.named_buffers(recurse=False):
        holder.register_buffer(name, buffer)
    return MethodType(type(traced).forward, holder)


def _traced(
    definition: SupernetDefinition, arch: Arch
) -> tuple[nn.Module, fx.Graph, tuple[ConvSite, ...]]:
    """Return the subnet on meta, its graph with fused sites, and the sites."""
    module = definition.on_meta(arch).eval().requires_grad_(False)
    with torch.device("meta"):  # 1.
        geometries = _conv_geometries(module, definition.example_input(arch))
    with _TRACING:  # 2.
        graph = _trace(module)
    return module, graph, _fuse(graph, module, geometries)  # 3.


# NOTE: while `torch.fx` traces, every call of a module in the process comes to the tracer, also
# those of threads that run batches. So one thread traces at a time, and the calls of the others
# are passed on.
_TRACING = threading.Lock()


class _Tracer(fx.Tracer):
    """Traces through everything but `leaves`, and notes where it failed."""

    def __init__(self, leaves: set[str]):
        super().__init__()
        self._leaves = leaves
        self._thread = threading.get_ident()
        self.failed_in: str | None = None

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return (
            module_qualified_name in self._leaves
            or isinstance(m, SamePadConv2d)
            or super().is_leaf_module(m, module_qualified_name)
        )

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:  # any: the innermost module whose forward needs values is what we want
            if self.failed_in is None:
                self.failed_in = self.path_of_module(m)
            raise


def _trace(module: nn.Module) -> fx.Graph:
    """Trace, taking each module that needs concrete values as one call."""
    leaves: set[str] = set()
    while True:
        tracer = _Tracer(leaves)
        try:
            return tracer.trace(module, concrete_args=_defaults(module))
        except Exception:  # see _Tracer.call_module
            if tracer.failed_in is None or tracer.failed_in in leaves:
                break
            leaves.add(tracer.failed_in)
    graph = fx.Graph()  # the root itself needs values: one call of the whole
    graph.output(graph.call_function(module, (graph.placeholder("x"),)))
    return graph


def _defaults(module: nn.Module) -> dict[str, Any]:
    """Optional arguments of `forward`: never given here, so their defaults are constants."""
    parameters = inspect.signature(module.forward).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _conv_geometries(module: nn.Module, example: torch.Tensor) -> dict[str, ConvGeometry]:
    """Run on meta and note the input size of every convolution."""
    geometries: dict[str, ConvGeometry] = {}
    hooks: list[Any] = []

    def note(name: str) -> Callable[..., None]:
        def hook(conv: nn.Conv2d, args: tuple[torch.Tensor, ...]) -> None:
            x = args[0]
            if isinstance(conv, SamePadConv2d):  # its padding is a call of its own, see _fuse
                x = pad_same(x, conv.kernel_size[0], conv.stride[0])
            geometries[name] = ConvGeometry(
                weight_shape=tuple(conv.weight.shape),
                input_shape=tuple(x.shape[1:]),
                stride=tuple(conv.stride),
                padding=tuple(conv.padding),  # type: ignore[arg-type]
                dilation=tuple(conv.dilation),
                groups=conv.groups,
            )

        return hook

    for name, child in module.named_modules():
        if isinstance(child, nn.Conv2d) and child.padding_mode == "zeros":
            hooks.append(child.register_forward_pre_hook(note(name)))
    try:
        module(example)
    finally:
        for hook in hooks:
            hook.remove()
    return geometries


def _fuse(
    graph: fx.Graph, module: nn.Module, geometries: Mapping[str, ConvGeometry]
) -> tuple[ConvSite, ...]:
    """Replace every convolution and its followers in `graph` by one call of a site."""
    modules = dict(module.named_modules())
    # 3a. one input and the list of calls; optional inputs are constants
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    for unused in inputs[1:]:  # traced by their defaults, see _defaults
        for check in list(unused.users):
            graph.erase_node(check)
        graph.erase_node(unused)
    with graph.inserting_after(inputs[0]):
        calls = graph.placeholder("calls")
    # 3b. from the first convolution to the last: a sum of two goes to the later one
    sites: list[ConvSite] = []
    order = {node: i for i, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        if node.op != "call_module" or node.target not in geometries:
            continue
        chain = _Chain(node, modules, geometries[node.target], order)
        conv, x = modules[node.target], node.args[0]
        with graph.inserting_before(chain.last):
            if isinstance(conv, SamePadConv2d):
                x = graph.call_function(pad_same, (x, conv.kernel_size[0], conv.stride[0]))
                order[x] = order[chain.last]
            arguments = (calls, len(sites), x, chain.other)
            fused = graph.call_function(_call_site, arguments)
        order[fused] = order[chain.last]
        chain.last.replace_all_uses_with(fused)
        for absorbed in reversed(chain.nodes):
            graph.erase_node(absorbed)
        sites.append(chain.site())
    graph.lint()
    return tuple(sites)


def _call_site(
    calls: Sequence[SiteCall], index: int, x: torch.Tensor, other: torch.Tensor | None
) -> torch.Tensor:
    return calls[index](x) if other is None else calls[index](x, other)


class _Chain:
    """A convolution's node and the nodes behind it that one fused call can take in."""

    def __init__(
        self,
        conv: fx.Node,
        modules: Mapping[str, nn.Module],
        geometry: ConvGeometry,
        order: Mapping[fx.Node, int],
    ):
        self.nodes = [conv]
        self.other: fx.Node | None = None
        self._geometry = geometry
        self._has_bias = modules[str(conv.target)].bias is not None
        self._norm: str | None = None
        self._act: str | None = None
        self._overwrites = False
        # In this order a kernel can compute them: norm, addition, activation.
        follower = self._only_user()
        if follower is not None and isinstance(
            modules.get(str(follower.target)) if follower.op == "call_module" else None,
            nn.BatchNorm2d,
        ):
            self._norm = str(follower.target)
            self.nodes.append(follower)
        self._take_addition(order)
        self._take_activation()

    @property
    def last(self) -> fx.Node:
        """The node whose value the fused call gives."""
        return self.nodes[-1]

    def site(self) -> ConvSite:
        """Describe what was fused."""
        return ConvSite(
            layer=str(self.nodes[0].target),
            geometry=self._geometry,
            has_bias=self._has_bias,
            norm=self._norm,
            act=self._act,
            adds=self.other is not None,
            overwrites=self._overwrites,
        )

    def _only_user(self) -> fx.Node | None:
        return next(iter(self.last.users)) if len(self.last.users) == 1 else None

    def _take_addition(self, order: Mapping[fx.Node, int]) -> None:
        """Take in `self + other`, where other is another tensor that was computed before."""
        add = self._only_user()
        if add is None or add.op != "call_function" or add.target not in _ADDITIONS:
            return
        others = [arg for arg in add.args if arg is not self.last]
        if add.kwargs or len(others) != 1 or not isinstance(others[0], fx.Node):
            return
        other = others[0]
        if order[other] > order[self.nodes[0]] and other.op == "call_module":
            return  # the other side ends in a later convolution, which takes the sum instead
        self.other = other
        self.nodes.append(add)
        is_last = all(user is add or user.target is _call_site for user in other.users)
        self._overwrites = (
            is_last
            and other.target is _call_site  # a fresh tensor, which nothing else is a view of
            and other is not self.nodes[0].args[0]
            and max(order[user] for user in other.users) <= order[add]
        )

    def _take_activation(self) -> None:
        act = self._only_user()
        if act is None or act.op != "call_function" or act.target not in _ACTIVATIONS:
            return
        if set(act.kwargs) - {"inplace"} or len(act.args) != 1:
            return
        self._act = _ACTIVATIONS[act.target]
        self.nodes.append(act)
