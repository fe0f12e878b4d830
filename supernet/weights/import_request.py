"""`ImportRequest`: what the options of `supernet import` ask for, checked and done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from supernet.checkpoint import Checkpoint, load_checkpoint
from supernet.weights.half_weights import halved
from supernet.weights.import_decoder import import_decoder, is_decoder
from supernet.weights.import_network import imported_checkpoint
from supernet.weights.import_weights import check_finite, import_supernet
from supernet.weights.naming import ORIGINS


@dataclass(frozen=True, kw_only=True)
class ImportRequest:
    """Weights to import from `source`, named as `origin` names them.

    `calibration` files and `elastic` axes are of decoders; `num_subnets` of the ladder are served
    of others; `accuracy` is that of the largest, a fraction.
    """

    source: str
    origin: str
    supernet: str | None
    weights: Path | None
    num_classes: int | None
    new_head: bool
    ignore: Sequence[str]
    sort: bool
    num_subnets: int
    accuracy: float | None
    half: bool
    calibration: Sequence[Path]
    elastic: Sequence[str]
    tell: Callable[[str], object]

    def checkpoint(self) -> Checkpoint:
        """Return the checkpoint. Raises ValueError for what excludes each other, and what reading
        weights raises.
        """
        made = self._as_trained()
        return halved(made) if self.half else made

    def _as_trained(self) -> Checkpoint:
        origin = self.origin
        if self.supernet is None and origin not in ORIGINS.split(", "):  # else the family says
            raise ValueError(f"--from is {origin!r}, allowed {ORIGINS}")
        reads_decoder = origin != "supernet" and is_decoder(self.source, origin)
        if (self.elastic or self.calibration) and not reads_decoder:
            raise ValueError("--elastic and --calibration go with the weights of a decoder")
        if origin == "supernet":
            return self._own()
        return self._decoder() if reads_decoder else self._network()

    def _own(self) -> Checkpoint:
        checkpoint = load_checkpoint(self.source)
        for tensors in (checkpoint.state, *checkpoint.norm_statistics.values()):
            check_finite(tensors, self.source)
        return checkpoint

    def _decoder(self) -> Checkpoint:
        return import_decoder(
            self.source,
            origin=self.origin,
            sort=self.sort,
            calibration=[_text_of(path) for path in self.calibration],
            elastic=self.elastic,
            tell=self.tell,
        )

    def _network(self) -> Checkpoint:
        overrides = {} if self.num_classes is None else {"num_classes": self.num_classes}
        definition, state = import_supernet(
            self.source,
            origin=self.origin,
            supernet=self.supernet,
            weights=self.weights,
            new_head=self.new_head,
            ignore=self.ignore,
            **overrides,
        )
        ladder = definition.space.ladder()
        return imported_checkpoint(
            definition,
            state,
            name=self.supernet or Path(self.source).name.partition(".")[0],
            origin=self.origin,
            archs=ladder[-self.num_subnets :] if self.num_subnets > 1 else (),
            sort=self.sort,
            accuracy=self.accuracy,
            accuracy_source="not measured" if self.accuracy is None else "given at import",
            provenance={
                "origin": self.origin,
                "source": Path(self.source).name,
                **({"weights": self.weights.name} if self.weights else {}),
            },
        )


def _text_of(path: Path) -> str:
    """A file's text. Raises ValueError naming the file where there is none."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error})") from None
