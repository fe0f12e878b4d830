"""How queries ended as the replayer saw it: `Answer`, and many of them as columns.

A sender appends to an `AnswerLog` while it runs; when it has ended its answers are
`AnswerColumns`. A million answers are 100 MB so; as records they are 500.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, overload

import numpy as np
import numpy.typing as npt

from traces.open_loop.target import ReplayReply
from traces.texts import Texts

_CHUNK = 4096
_MAX_ID_BYTES = 64
_UNJUDGED = -1
_TYPE_CODES = {
    **dict.fromkeys(("intended_s", "sent_s", "finish_s"), "d"),
    **dict.fromkeys(("accuracy", "queue_s", "execution_s"), "d"),
    **dict.fromkeys(("batch_size", "attempts"), "i"),
    "query_id": "q",
    "is_right": "b",
}


class Answer(NamedTuple):
    """One query's end as the replayer saw it; seconds from the run's start.

    `is_right` is None when there was no answer or no label to compare it with; `attempts` counts
    the sends, of which `sent_s` is the first and `finish_s` ends the last.
    """

    query_id: int
    intended_s: float
    sent_s: float
    finish_s: float
    reply: ReplayReply
    is_right: bool | None
    attempts: int = 1


class AnswerLog:
    """Answers of a run that is under way; replies are kept without their output."""

    def __init__(self) -> None:
        self._numbers = {name: array(code) for name, code in _TYPE_CODES.items()}
        self._codes = {name: array("i") for name in ("status", "reason", "subnet")}
        self._names: dict[str, dict[str, int]] = {name: {} for name in self._codes}
        self._batch_ids = bytearray()  # one after the other
        self._batch_id_ends = array("q")

    def __len__(self) -> int:
        return len(self._batch_id_ends)

    def append(self, answer: Answer) -> None:
        """Keep an answer."""
        reply, numbers = answer.reply, self._numbers
        numbers["query_id"].append(answer.query_id)
        numbers["intended_s"].append(answer.intended_s)
        numbers["sent_s"].append(answer.sent_s)
        numbers["finish_s"].append(answer.finish_s)
        numbers["accuracy"].append(reply.accuracy)
        numbers["batch_size"].append(reply.batch_size)
        numbers["queue_s"].append(reply.queue_s)
        numbers["execution_s"].append(reply.execution_s)
        numbers["is_right"].append(_UNJUDGED if answer.is_right is None else answer.is_right)
        numbers["attempts"].append(answer.attempts)
        self._add_text("status", reply.status)
        self._add_text("reason", reply.reason)
        self._add_text("subnet", reply.subnet_id or "")
        self._batch_ids += _id_bytes(reply.batch_id)
        self._batch_id_ends.append(len(self._batch_ids))

    def hand_over(self) -> AnswerColumns:
        """Return all answers by query id; the log is empty then.

        Column by column, so that a long run is hardly in memory twice.
        """
        numbers, codes, names = self._numbers, self._codes, self._names
        ids = self._ids()
        self.__init__()
        order = np.argsort(np.array(numbers["query_id"], np.int64), kind="stable")
        columns: dict[str, Any] = {"batch_id": ids[order]}
        del ids
        for name in _TYPE_CODES:
            columns[name] = np.asarray(numbers.pop(name))[order]
        for name, known in names.items():
            columns[name] = Texts(np.asarray(codes.pop(name))[order], tuple(known))
        return AnswerColumns(**columns)

    def _add_text(self, column: str, text: str) -> None:
        known = self._names[column]
        self._codes[column].append(known.setdefault(text, len(known)))

    def _ids(self) -> npt.NDArray[np.bytes_]:
        ends = np.asarray(self._batch_id_ends)
        longest = int(np.diff(ends, prepend=0).max(initial=1))
        found = np.zeros(len(ends), dtype=f"S{longest}")
        for start in range(0, len(ends), _CHUNK):
            part = ends[start : start + _CHUNK].tolist()
            begins = [int(ends[start - 1]) if start else 0, *part[:-1]]
            found[start : start + _CHUNK] = [
                bytes(self._batch_ids[i:j]) for i, j in zip(begins, part, strict=True)
            ]
        return found


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AnswerColumns(Sequence[Answer]):
    """Answers (N) by query id, each field a column of N; for whoever wants rows a sequence.

    `is_right` is 1, 0, or -1 where nothing was judged; `subnet` and `batch_id` are empty where the
    server named none.
    """

    query_id: npt.NDArray[np.int64]
    intended_s: npt.NDArray[np.float64]
    sent_s: npt.NDArray[np.float64]
    finish_s: npt.NDArray[np.float64]
    status: Texts
    reason: Texts
    subnet: Texts
    accuracy: npt.NDArray[np.float64]
    batch_size: npt.NDArray[np.int32]
    queue_s: npt.NDArray[np.float64]
    execution_s: npt.NDArray[np.float64]
    batch_id: npt.NDArray[np.bytes_]
    is_right: npt.NDArray[np.int8]
    attempts: npt.NDArray[np.int32]

    @staticmethod
    def of(answers: Sequence[Answer]) -> AnswerColumns:
        """Return `answers` as columns by query id; columns are returned as they are."""
        if isinstance(answers, AnswerColumns):
            return answers
        log = AnswerLog()
        for answer in answers:
            log.append(answer)
        return log.hand_over()

    @staticmethod
    def joined(parts: Sequence[AnswerColumns]) -> AnswerColumns:
        """Return the answers of several senders together, by query id."""
        if len(parts) == 1:
            return parts[0]
        order = np.argsort(np.concatenate([part.query_id for part in parts]), kind="stable")
        columns: dict[str, Any] = {}
        for field in fields(AnswerColumns):
            values = [getattr(part, field.name) for part in parts]
            is_text = isinstance(values[0], Texts)
            whole = Texts.joined(values) if is_text else np.concatenate(values)
            columns[field.name] = whole[order]
        return AnswerColumns(**columns)

    @property
    def is_ok(self) -> npt.NDArray[np.bool_]:
        """(N,) which came back with an output."""
        is_ok = np.array([name == "ok" for name in self.status.names], dtype=np.bool_)
        return is_ok[self.status.codes]

    def take(self, rows: Any) -> AnswerColumns:
        """Return the rows that an array of indices, a mask or a slice picks."""
        return replace(self, **{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    def __len__(self) -> int:
        return len(self.query_id)

    @overload
    def __getitem__(self, index: int) -> Answer: ...

    @overload
    def __getitem__(self, index: slice) -> AnswerColumns: ...

    def __getitem__(self, index: int | slice) -> Answer | AnswerColumns:
        if isinstance(index, slice):
            return self.take(index)
        place = range(len(self))[index]  # an index below 0 counts from the end
        return next(iter(self.take(slice(place, place + 1))))

    def __iter__(self) -> Iterator[Answer]:
        for start in range(0, len(self), _CHUNK):
            yield from self.take(slice(start, start + _CHUNK))._rows()

    def _rows(self) -> list[Answer]:
        columns = zip(*(getattr(self, field.name).tolist() for field in fields(self)), strict=True)
        return [
            Answer(
                query_id=query_id,
                intended_s=intended_s,
                sent_s=sent_s,
                finish_s=finish_s,
                reply=ReplayReply(
                    status=status,
                    reason=reason,
                    subnet_id=subnet or None,
                    accuracy=accuracy,
                    batch_size=batch_size,
                    queue_s=queue_s,
                    execution_s=execution_s,
                    batch_id=batch_id.decode() or None,
                ),
                is_right=None if is_right == _UNJUDGED else bool(is_right),
                attempts=attempts,
            )
            for (
                query_id,
                intended_s,
                sent_s,
                finish_s,
                status,
                reason,
                subnet,
                accuracy,
                batch_size,
                queue_s,
                execution_s,
                batch_id,
                is_right,
                attempts,
            ) in columns
        ]


def _id_bytes(batch_id: str | None) -> bytes:
    """Return a batch's id as bytes; a very long one is cut and told apart by its digest."""
    text = (batch_id or "").encode()
    if len(text) <= _MAX_ID_BYTES:
        return text
    digest = hashlib.blake2b(text, digest_size=16).hexdigest().encode()
    return text[: _MAX_ID_BYTES - len(digest)].decode(errors="ignore").encode() + digest
