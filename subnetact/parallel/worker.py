"""A worker process: takes orders from the executor until that is gone.

Orders come and answers go through one pipe; what workers exchange goes through `Peers`. An order
that fails because another worker is gone is answered with `Failed`, the group is left, and the
worker waits for the next group: what it holds of other streams stays.

It ends when the pipe is closed, or the process of the executor is gone: at once, also in the middle
of an exchange, and with it those that hang. SIGINT and SIGTERM, which a terminal or a service
manager sends to all processes of a service, are the executor's to act on, maybe after a drain.
"""

from __future__ import annotations

import contextlib
import signal
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from subnetact.parallel.lifeline import Lifeline
from subnetact.parallel.messages import Done, Failed, FillSlots, Iterate, Join, Loaded, WorkerSpec
from subnetact.parallel.peers import Peers
from subnetact.parallel.shard_decoder import ShardDecoder
from subnetact.parallel.worker_device import worker_device
from supernet.checkpoint import load_checkpoint


def work(connection: Connection, spec: WorkerSpec) -> None:
    """Serve until the other end of the pipe is closed, or its process is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    lifeline = Lifeline(spec.meeting_place)
    with contextlib.suppress(OSError):  # what `ps` and `top` call it, on Linux
        Path("/proc/self/comm").write_text(f"supernet-w{spec.rank}", encoding="ascii")
    if spec.threads is not None:
        torch.set_num_threads(spec.threads)
    worker = _WorkerOrders(spec)
    try:
        connection.send(Loaded())
        while True:
            connection.send(_answer(worker, connection.recv()))
    except (EOFError, OSError):
        lifeline.let_go()


def _answer(worker: _WorkerOrders, order: Any) -> Done | Failed:
    try:
        return worker.carry_out(order)
    except Exception as error:  # another worker is gone, or a bug: the executor decides
        worker.peers.leave()
        return Failed(f"{type(error).__name__}: {error}")


class _WorkerOrders:
    def __init__(self, spec: WorkerSpec) -> None:
        device = worker_device(spec.device, spec.rank)
        checkpoint = load_checkpoint(spec.folder)
        depth = checkpoint.definition.config.depth  # type: ignore[attr-defined]
        self.peers = Peers(spec.grid, spec.rank, backend=spec.backend, device=device)
        self._decoder = ShardDecoder(
            checkpoint,
            spec.grid.blocks(spec.grid.stage_of(spec.rank), depth),
            capacity_tokens=spec.capacity_tokens,
            block_tokens=spec.block_tokens,
            packing=spec.packing,
            subnet_ids=spec.subnet_ids,
            device=device,
            shard=spec.grid.shard_of(spec.rank),
            shards=spec.grid.shards,
        )

    def carry_out(self, order: Any) -> Done:
        if isinstance(order, Iterate):
            return Done(self._iterate(order))
        if isinstance(order, Join):
            self.peers.join(order.path, order.within_s)
        elif isinstance(order, FillSlots):
            self._decoder.fill(order.runs, order.seed)
        else:
            raise TypeError(f"an order of type {type(order).__name__}")
        return Done()

    def _iterate(self, order: Iterate) -> Any:
        """Take each micro-batch from the stage before, and pass it on before taking the next."""
        decoder, width = self._decoder, self._decoder.config.width
        peers = None if order.alone else self.peers
        found: list[torch.Tensor] = []
        for batch in order.micro_batches:
            shape = (len(batch.ids), width)
            x = decoder.embed(batch) if decoder.is_first else self.peers.take_over(shape)
            x = decoder.run(order.subnet_id, batch, x, peers)
            if not decoder.is_last:
                self.peers.pass_on(x)
            else:
                logits = decoder.logits(x, batch, is_alone=order.alone)
                found += [] if logits is None else [logits]
        self.peers.finish()
        return torch.cat(found).cpu().numpy() if found else None
