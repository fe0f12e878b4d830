"""What an embedding is worth: how often its nearest neighbour is the one of the largest subnet.

A network without classes has no accuracy of its own. Who serves embeddings looks for neighbours, so
a subnet is as good as its neighbours agree with those that the whole network finds, on the
user's own samples.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.nn import functional as F

from supernet import InputSpec, SupernetDefinition, extract
from training.data.data import batches_of
from training.data.samples import Samples

_BATCH_SIZE, _ROWS = 64, 1024


@torch.inference_mode()
def nearest_neighbours(
    net: torch.nn.Module, split: Samples, input_spec: InputSpec, resolution: int
) -> torch.Tensor:
    """(N,) which other sample of a split is most alike by cosine; lowest row where two are.

    Raises ValueError for fewer than three samples: with two there is only one neighbour to find.
    """
    if len(split) < 3:
        raise ValueError(f"neighbours are looked for among {len(split)} samples, at least 3 needed")
    device = next((p.device for p in net.parameters()), torch.device("cpu"))
    rows: list[torch.Tensor] = []
    for batch in batches_of(split, _BATCH_SIZE):
        x = input_spec.normalise(batch.images.to(device), resolution)
        rows.append(F.normalize(net(x).float(), dim=1).cpu())
    embeddings = torch.cat(rows)  # (N, D)
    found: list[torch.Tensor] = []
    for first in range(0, len(embeddings), _ROWS):
        alike = embeddings[first : first + _ROWS] @ embeddings.T  # (rows, N)
        own = torch.arange(len(alike))
        alike[own, own + first] = -2.0  # below any cosine: nothing is its own neighbour
        found.append(alike.argmax(1))
    return torch.cat(found)


def reference_neighbours(
    state: Mapping[str, torch.Tensor],
    definition: SupernetDefinition,
    split: Samples,
    input_spec: InputSpec,
    statistics: Mapping[str, torch.Tensor] | None = None,
) -> torch.Tensor | None:
    """The largest subnet's neighbours; None for a network that gives logits."""
    if definition.output.kind == "logits":
        return None
    largest = definition.space.largest
    net = extract(state, definition, largest, statistics).to(next(iter(state.values())).device)
    return nearest_neighbours(net, split, input_spec, largest.resolution)
