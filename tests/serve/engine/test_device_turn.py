"""Turns on one device: the most urgent first, nobody starved, no turn lost."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from serve.engine.device_turn import DeviceLostError, DeviceSlot, DeviceTurn

pytestmark = pytest.mark.alone


class Now:
    def __init__(self) -> None:
        self.s = 0.0

    def __call__(self) -> float:
        return self.s


class Model:
    """An engine's side, without a thread: asks for the device and runs batches on it."""

    def __init__(self, turn: DeviceTurn, now: Now, batch_s: float, slo_s: float) -> None:
        self.due_s: float | None = None
        self.slot = turn.slot(lambda: self.due_s)
        self._now, self._batch_s, self._slo_s = now, batch_s, slo_s
        self.num_batches = 0

    def want(self, due_s: float | None) -> None:
        self.due_s = due_s

    def run(self, *, comes_back: bool) -> None:
        with self.slot:
            self._now.s += self._batch_s
            self.num_batches += 1
            self.slot.comes_back = comes_back


def choose(turn: DeviceTurn, *waiting: Model) -> Model:
    """Return whom the turn goes to when these wait."""
    chosen = turn._next([model.slot for model in waiting])
    return next(model for model in waiting if model.slot is chosen)


def serve(turn: DeviceTurn, now: Now, until_s: float, next_due: Callable[[Model], float], *models):
    """Keep every model wanting the device until `until_s` of virtual time."""
    while now.s < until_s:
        for model in models:
            model.want(next_due(model))
        chosen = choose(turn, *models)
        chosen.run(comes_back=False)


def test_the_most_urgent_query_goes_first():
    now = Now()
    turn = DeviceTurn(clock=now)
    a, b = (Model(turn, now, 0.01, 1.0) for _ in range(2))
    a.want(3.0)
    b.want(2.0)
    assert choose(turn, a, b) is b
    a.want(1.0)
    assert choose(turn, a, b) is a
    a.want(None)
    assert choose(turn, a, b) is b


def test_overloaded_model_does_not_starve_one_with_a_long_slo():
    """The head of an overloaded queue is always about to expire: EDF alone would never end it."""
    now = Now()
    turn = DeviceTurn(clock=now, lead_s=0.1)
    greedy, patient = Model(turn, now, 0.02, 0.05), Model(turn, now, 0.005, 10.0)
    due = {id(greedy): 0.021, id(patient): 0.9}
    serve(turn, now, 10.0, lambda model: now.s + due[id(model)], greedy, patient)
    assert greedy.slot.member.used_s == pytest.approx(patient.slot.member.used_s, abs=0.13)
    assert patient.num_batches == pytest.approx(4 * greedy.num_batches, rel=0.1)


def test_credit_for_idle_time_is_bounded():
    now = Now()
    turn = DeviceTurn(clock=now, lead_s=0.1)
    busy, idle = Model(turn, now, 0.01, 0.05), Model(turn, now, 0.01, 10.0)
    serve(turn, now, 60.0, lambda model: now.s + 0.01, busy)
    idle.want(100.0)
    idle.run(comes_back=False)
    assert busy.slot.member.used_s - idle.slot.member.used_s <= 0.1
    busy.want(now.s)
    assert choose(turn, busy, idle) is busy, "a minute of idling does not buy a minute alone"


def test_a_model_that_keeps_the_device_is_charged_as_it_goes():
    """Alone it may keep it for minutes: who comes then would have minutes of credit otherwise."""
    now = Now()
    turn = DeviceTurn(clock=now, lead_s=0.1)
    alone, comer = Model(turn, now, 0.01, 0.05), Model(turn, now, 0.01, 0.05)
    alone.want(now.s)
    with alone.slot:
        for _ in range(1000):
            now.s += 0.01
            alone.slot.keep()
        comer.want(now.s + 0.05)
        turn._order.ask(comer.slot.member)
        now.s += 0.01
    assert alone.slot.member.used_s == pytest.approx(10.01)
    assert comer.slot.member.used_s == pytest.approx(10.0 - turn._order.lead_s)


def test_engine_that_comes_back_takes_part_in_the_choice():
    """Else two engines would alternate, whatever is due when: only the other one waits."""
    now = Now()
    turn = DeviceTurn(clock=now)
    urgent, other = Model(turn, now, 0.001, 1.0), Model(turn, now, 0.001, 1.0)
    urgent.want(1.0)
    other.want(2.0)
    urgent.slot.__enter__()
    done = threading.Event()

    def second() -> None:
        other.run(comes_back=False)
        done.set()

    thread = threading.Thread(target=second, daemon=True)
    thread.start()
    while not turn._waiting:
        pass
    for _ in range(3):
        urgent.slot.comes_back = True
        urgent.slot.__exit__()
        assert not done.is_set()
        urgent.slot.__enter__()
    urgent.slot.comes_back = True
    urgent.slot.__exit__()
    urgent.slot.leave()  # it does not come back after all
    assert done.wait(10)
    thread.join(10)


def test_no_turn_is_lost_between_threads():
    turn = DeviceTurn(lead_s=0.0)
    running: list[int] = []
    counts = [0] * 4

    def work(index: int, slot: DeviceSlot) -> None:
        for round_ in range(300):
            with slot:
                running.append(index)
                assert running == [index], "two had the device"
                running.clear()
                counts[index] += 1
                slot.comes_back = round_ % 3 != 0 and round_ != 299
        slot.leave()

    slots = [turn.slot(lambda i=i: [0.5, None, 1.0, 0.25][i]) for i in range(4)]
    threads = [
        threading.Thread(target=work, args=(i, slot), daemon=True) for i, slot in enumerate(slots)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert counts == [300] * 4


def test_device_that_hangs_is_lost_for_all():
    turn = DeviceTurn()
    hung, waits = turn.slot(lambda: 1.0), turn.slot(lambda: 2.0)
    hung.__enter__()
    failures: list[BaseException] = []

    def wait() -> None:
        try:
            with waits:
                pass
        except DeviceLostError as error:
            failures.append(error)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    hung.lose()
    thread.join(10)
    assert len(failures) == 1
    with pytest.raises(DeviceLostError), waits:
        pass
