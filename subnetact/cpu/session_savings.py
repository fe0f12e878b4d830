"""What each compiled subnet saves over views, and what it costs to load: for residency policies."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from statistics import median

import numpy as np

from slackfit.residency import Candidate, Savings
from subnetact.cpu.compiled_session import CompiledSession
from supernet.served_form import ServedForm

Run = Callable[[ServedForm, np.ndarray], object]


def measure_session_savings(
    forms: Iterable[ServedForm],
    open_session: Callable[[ServedForm], CompiledSession],
    num_bytes: dict[str, int],
    run_on_views: Run,
    samples: np.ndarray,
    prepare: Callable[[ServedForm, np.ndarray], np.ndarray],
    *,
    repeats: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> Savings:
    """Time every form's session and its subnet on views, on one batch, in turn.

    A float session saves its int8 form as well, which it serves where that has none of its own;
    of the two the better one counts. Seconds are medians of `repeats` runs after one to warm up. A
    session that is no faster than views is no candidate. Holds one session at a time; one that
    can't be opened raises what `open_session` raises.
    """
    wanted = tuple(forms)
    saved_s: dict[str, dict[str, float]] = {}
    load_s: dict[str, float] = {}
    for form in wanted:
        start_s = clock()
        session = open_session(form)
        load_s[form.form_id] = clock() - start_s
        inputs = prepare(form, samples)
        calls = (lambda: run_on_views(form.twin, samples), lambda: session.run(inputs))  # noqa: B023
        runs_s: list[list[float]] = [[], []]
        for _ in range(1 + repeats):
            for call, taken_s in zip(calls, runs_s, strict=True):
                start_s = clock()
                call()
                taken_s.append(clock() - start_s)
        on_views_s, on_graph_s = (median(taken_s[1:]) for taken_s in runs_s)
        if on_graph_s < on_views_s:
            users = [f.form_id for f in wanted if form in (f, f.twin)]
            saved_s[form.form_id] = dict.fromkeys(users, on_views_s - on_graph_s)
    return Savings(
        Candidate(i, ServedForm.parse(i).subnet_id, num_bytes[i], load_s[i], saved)
        for i, saved in saved_s.items()
    )
