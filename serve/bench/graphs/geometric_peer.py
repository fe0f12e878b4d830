"""torch_geometric's SAGEConv on subgraphs sampled elsewhere: median seconds of a forward pass.

Runs in an environment of its own (requirements-graphs.txt), so it imports nothing of ours:
`python geometric_peer.py FILE.npz`, with features `x<i>` (nodes, F) and, per hop, `e<i>_<hop>`
(2, edges) of sources and targets, and `n<i>` (hops,), how many nodes each hop has lists for.
Prints JSON.
"""

import json
import sys
import time

import numpy as np
import torch
from torch_geometric.nn import SAGEConv  # type: ignore[import-not-found]

WIDTH, NUM_CLASSES = 64, 8


def main(path: str) -> None:
    """Time every subgraph once, after a few to warm up."""
    torch.set_num_threads(1)
    arrays = np.load(path, allow_pickle=False)
    count = sum(name.startswith("x") for name in arrays.files)
    hops = sum(name.startswith("e0_") for name in arrays.files)
    first = SAGEConv(arrays["x0"].shape[1], WIDTH, root_weight=True)
    layers = [first, *(SAGEConv(WIDTH, WIDTH) for _ in range(hops - 1))]
    head = torch.nn.Linear(WIDTH, NUM_CLASSES)
    seconds: list[float] = []
    with torch.inference_mode():
        for number in (0, 1, 2, *range(count)):
            x = torch.from_numpy(arrays[f"x{number}"])
            edges = [torch.from_numpy(arrays[f"e{number}_{hop}"]) for hop in range(hops)]
            sizes = arrays[f"n{number}"].tolist()
            start_s = time.perf_counter()
            h = x
            for layer, edge, size in zip(layers, reversed(edges), reversed(sizes), strict=True):
                h = layer((h, h[:size]), edge).relu()
            head(h[:1])
            seconds.append(time.perf_counter() - start_s)
    print(json.dumps({"p50_s": float(np.median(seconds[3:])), "count": count}))


if __name__ == "__main__":
    main(sys.argv[1])
