"""GCNII (Chen et al., ICML 2020): the deep graph network that teaches.

Each layer mixes in the first one (initial residual, alpha) and keeps close to the identity
(beta_l = log(lambda / l + 1)). Trained on the whole graph as published: Adam at 0.01, weight decay
0.01 on the layers and 0.0005 on the two dense ones, the weights of the best validation loss.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from training.graphs.whole_graph import Dropout, WholeGraph


@dataclass(frozen=True, slots=True, kw_only=True)
class GcniiOptions:
    """Size and training of a GCNII; the defaults are the paper's for Cora but for the depth.

    `decay_factor` multiplies the paper's two weight decays.
    """

    layers: int = 16
    width: int = 64
    alpha: float = 0.1
    decay: float = 0.5  # lambda
    dropout: float = 0.6
    lr: float = 0.01
    epochs: int = 600
    patience: int = 100
    decay_factor: float = 1.0


class Gcnii(nn.Module):
    """All nodes of a graph to (nodes, num_classes) logits."""

    def __init__(self, num_features: int, num_classes: int, options: GcniiOptions):
        super().__init__()
        self._options = options
        self.first = nn.Linear(num_features, options.width)
        self.layers = nn.ParameterList(
            nn.Parameter(torch.empty(options.width, options.width)) for _ in range(options.layers)
        )
        for weight in self.layers:
            nn.init.uniform_(weight, -(options.width**-0.5), options.width**-0.5)
        self.last = nn.Linear(options.width, num_classes)

    def forward(
        self, whole: WholeGraph, dropout: Dropout, hidden: list[torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Logits; `hidden` is filled with each layer's (nodes, width) output."""
        alpha, decay = self._options.alpha, self._options.decay
        features = dropout.of_features(whole.features)
        first = F.relu(features.product(self.first.weight.T) + self.first.bias)
        h, residual = first, alpha * first
        for number, weight in enumerate(self.layers, start=1):
            beta = math.log(decay / number + 1.0)
            spread = whole.propagation.product(dropout.of(h))
            mixed = torch.add(residual, spread, alpha=1 - alpha)
            h = F.relu(torch.addmm(mixed, mixed, weight, beta=1 - beta, alpha=beta))
            if hidden is not None:
                hidden.append(h)
        return self.last(dropout.of(h))

    def optimizer(self) -> torch.optim.Optimizer:
        """Adam with the paper's two weight decays, times a factor."""
        dense = [*self.first.parameters(), *self.last.parameters()]
        factor = self._options.decay_factor
        return torch.optim.Adam(
            [
                {"params": list(self.layers), "weight_decay": 0.01 * factor},
                {"params": dense, "weight_decay": 5e-4 * factor},
            ],
            lr=self._options.lr,
        )


def train_gcnii(whole: WholeGraph, num_classes: int, options: GcniiOptions, seed: int) -> Gcnii:
    """Train from labels and return the network at its best validation loss, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Gcnii(whole.graph.num_features, num_classes, options)
    optimizer, dropout = net.optimizer(), Dropout(options.dropout, seed)
    train, validation = whole.rows["train"], whole.rows["validation"]
    best, best_loss, since = net.state_dict(), math.inf, 0
    for _ in range(options.epochs):
        net.train()
        optimizer.zero_grad()
        loss = F.cross_entropy(net(whole, dropout)[train], whole.labels[train])
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            logits = net.eval()(whole, Dropout())[validation]
            held_out = float(F.cross_entropy(logits, whole.labels[validation]))
        since += 1
        if held_out < best_loss:
            best_loss, since = held_out, 0
            best = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        if since >= options.patience:
            break
    net.load_state_dict(best)
    return net.eval().requires_grad_(False)


@torch.no_grad()
def accuracy_of(logits: torch.Tensor, whole: WholeGraph, split: str) -> float:
    """Accuracy (a fraction) of (nodes, num_classes) logits at the nodes of a split."""
    rows = whole.rows[split]
    return float((logits[rows].argmax(1) == whole.labels[rows]).double().mean())
