"""Images beyond what can be decoded: the urgent first, the hopeless not at all."""

from __future__ import annotations

import asyncio
import contextlib
import io
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from serve.models import image_decoder
from serve.models.image_decoder import ImageDecoder
from serve.models.limits import RefusedError

GREY = (1, 4, 6)  # (C, H, W)


def encoded(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


class Work:
    """Stands for decoding: takes `cost_s` per file on a clock that only it moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 0.0
        self.cost_s = 0.01
        self.order: list[bytes] = []
        self.gate = threading.Event()  # the thread waits for it before each job
        self.gate.set()
        monkeypatch.setattr(image_decoder, "decode_images", self._decode)

    def decoder(self, **options: Any) -> ImageDecoder:
        settings = {"max_pixels": 1000, "max_waiting": 1000, "num_threads": 1, **options}
        return ImageDecoder(clock=lambda: self.now_s, **settings)

    def _decode(self, files: Any, shape: Any, *, max_pixels: int) -> np.ndarray:
        assert self.gate.wait(10)
        self.order += files
        self.now_s += self.cost_s * len(files)
        return np.zeros((len(files), *shape), dtype=np.uint8)


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    return Work(monkeypatch)


def run(work: Work, use: Callable[[ImageDecoder], Any], **options: Any) -> Any:
    async def main() -> Any:
        decoder = work.decoder(**options)
        try:
            return await asyncio.wait_for(use(decoder), 20)
        finally:
            decoder.close()

    return asyncio.run(main())


async def ended(*waiting: asyncio.Future[Any]) -> list[str]:
    results = await asyncio.gather(*waiting, return_exceptions=True)
    return [r.reason if isinstance(r, RefusedError) else "ok" for r in results]


async def begin(decoder: ImageDecoder, file: bytes, **times: float) -> asyncio.Future[Any]:
    """Ask for one file, and let the decoder take it in."""
    task = asyncio.ensure_future(decoder.decode([file], GREY, **times))
    await asyncio.sleep(0)
    return task


def test_the_most_urgent_is_decoded_first(work: Work):
    async def use(decoder: ImageDecoder) -> list[str]:
        work.gate.clear()
        asked = [await begin(decoder, b"first", deadline_s=9.0)]
        while not decoder._running:
            await asyncio.sleep(0.001)
        asked += [
            await begin(decoder, name, deadline_s=at_s)
            for name, at_s in ((b"late", 3.0), (b"soon", 1.0), (b"middle", 2.0))
        ]
        work.gate.set()
        return await ended(*asked)

    assert run(work, use) == ["ok"] * 4
    assert work.order == [b"first", b"soon", b"middle", b"late"]


def test_what_is_too_late_when_its_turn_comes_is_not_decoded(work: Work):
    async def use(decoder: ImageDecoder) -> list[str]:
        work.gate.clear()
        asked = [await begin(decoder, b"first")]
        while not decoder._running:
            await asyncio.sleep(0.001)
        asked += [await begin(decoder, b"doomed", deadline_s=1.0, until_s=0.005)]
        asked += [await begin(decoder, b"last", deadline_s=2.0, until_s=1.0)]
        work.gate.set()
        return await ended(*asked)

    assert run(work, use) == ["ok", "infeasible", "ok"]
    assert work.order == [b"first", b"last"]


def test_what_would_wait_too_long_is_refused_at_once(work: Work):
    async def use(decoder: ImageDecoder) -> list[str]:
        await decoder.decode([b"sized"], GREY)  # what a file takes is known now
        work.gate.clear()
        asked = [await begin(decoder, b"sized", deadline_s=1.0) for _ in range(6)]
        with pytest.raises(RefusedError) as caught:
            await decoder.decode([b"sized"], GREY, deadline_s=1.0, until_s=work.now_s + 0.05)
        assert caught.value.reason == "infeasible"
        assert caught.value.retry_after_s == pytest.approx(0.07, rel=0.2)
        asked += [  # more urgent than all that wait: it is next
            await begin(decoder, b"sized", deadline_s=0.5, until_s=work.now_s + 0.05)
        ]
        work.gate.set()
        return await ended(*asked)

    assert run(work, use) == ["ok"] * 7


def test_an_idle_decoder_takes_a_file_whatever_was_predicted(work: Work):
    """One file that took for ever must not keep all others out for good."""

    async def use(decoder: ImageDecoder) -> str:
        work.cost_s = 100.0
        await decoder.decode([b"x"], GREY)
        work.cost_s = 0.001
        return (await ended(await begin(decoder, b"x", until_s=work.now_s + 0.1)))[0]

    assert run(work, use) == "ok"


def test_a_client_that_goes_away_is_not_decoded(work: Work):
    async def use(decoder: ImageDecoder) -> list[str]:
        work.gate.clear()
        asked = [await begin(decoder, b"first")]
        gone = await begin(decoder, b"gone")
        gone.cancel()
        await asyncio.sleep(0)
        asked += [await begin(decoder, b"last")]
        work.gate.set()
        return await ended(*asked)

    assert run(work, use) == ["ok", "ok"]
    assert work.order == [b"first", b"last"]


def test_images_that_wait_are_bounded(work: Work):
    async def use(decoder: ImageDecoder) -> list[str]:
        work.gate.clear()
        first = await begin(decoder, b"first")
        while not decoder._running:
            await asyncio.sleep(0.001)
        waits = [await begin(decoder, b"waits") for _ in range(3)]
        with pytest.raises(RefusedError, match="too many images wait"):
            await decoder.decode([b"one more"], GREY)
        work.gate.set()
        before = await ended(first, *waits)
        return [*before, *await ended(await begin(decoder, b"again"))]

    assert run(work, use, max_waiting=3) == ["ok"] * 5


def test_at_2_5_times_its_capacity_what_is_decoded_is_in_time(work: Work):
    """First come, first served had decoded every image, each of them too late."""
    slo_s, num = 0.2, 400

    async def use(decoder: ImageDecoder) -> int:
        work.gate.clear()
        asked: list[asyncio.Future[Any]] = []
        await asyncio.sleep(0)
        due_s = [i * work.cost_s / 2.5 for i in range(num)]
        in_time = 0

        async def ask(arrival_s: float) -> None:
            nonlocal in_time
            until_s = arrival_s + slo_s
            with contextlib.suppress(RefusedError):
                await decoder.decode([b"file"], GREY, deadline_s=until_s, until_s=until_s)
                in_time += 1

        # Virtual time: the clock moves when a file is decoded; what has arrived by then is asked.
        work.gate.set()
        next_index = 0
        while next_index < num or any(not task.done() for task in asked):
            if next_index < num and due_s[next_index] <= work.now_s:
                asked.append(asyncio.ensure_future(ask(due_s[next_index])))
                next_index += 1
                await asyncio.sleep(0)
            elif all(task.done() for task in asked):
                work.now_s = due_s[next_index]
            else:
                await asyncio.sleep(0.0005)
        return in_time

    in_time = run(work, use)
    possible = num / 2.5  # as many as can be decoded while they come
    assert in_time >= 0.9 * possible


@pytest.mark.parametrize("num_threads", [1, 4])
def test_files_become_samples(num_threads: int, rng: np.random.Generator):
    pixels = [rng.integers(0, 256, (4, 6), dtype=np.uint8) for _ in range(20)]

    async def main() -> list[np.ndarray]:
        decoder = ImageDecoder(max_pixels=1000, max_waiting=100, num_threads=num_threads)
        try:
            return await asyncio.gather(*(decoder.decode([encoded(p)], GREY) for p in pixels))
        finally:
            decoder.close()

    for got, expected in zip(asyncio.run(main()), pixels, strict=True):
        np.testing.assert_array_equal(got[0, 0], expected)
