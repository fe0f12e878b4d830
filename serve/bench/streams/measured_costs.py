"""What iterations of SmolLM2-135M's shapes take here, measured for the figures of chunking.

Chunks of a prompt cost what the linear layers' curve says, which an assumed one decides. Weights
are random, since time does not depend on their values, so no files are needed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from serve.bench.decoder.random_decoder import random_checkpoint
from serve.bench.rows import Tell
from slackfit.profile import LatencyProfile
from subnetact.decoding.linear_forms import has_form
from subnetact.decoding.stream_executor import StreamExecutor
from subnetact.profiling.iteration_profiler import measure_iterations
from subnetact.threads import computing_with
from supernet.definition import SupernetDefinition, define_supernet

_DECODES = (1, 2, 4, 8, 16)
_ROOM = 512 * (max(_DECODES) + 2)
_QUALITIES = (0.5, 1.0)
_REPEATS = 3
_FORMS = ("half", "packed", "views")  # the fastest in float32 that is to be had


def measured_here(
    tell: Tell, definition: SupernetDefinition | None = None, **settings: Any
) -> LatencyProfile:
    """Return a profile with `iterations` of half and full width, in one thread; a minute or two.

    `definition` is another decoder, `settings` are those of `measure_iterations`, which says what
    is raised. Qualities are made up.
    """
    drawn = random_checkpoint(definition or define_supernet("smollm2_135m"))
    subnets = zip(drawn.subnets, _QUALITIES, strict=True)
    checkpoint = replace(
        drawn,
        accuracy_source="made_up: weights are random",
        subnets=tuple(replace(subnet, accuracy=quality) for subnet, quality in subnets),
    )
    packing = next(form for form in _FORMS if has_form(form))
    tell(f"measuring iterations of {checkpoint.name} with random weights, {packing}")
    with computing_with(1):
        return measure_iterations(
            StreamExecutor(checkpoint, capacity_tokens=_ROOM, packing=packing),
            checkpoint,
            decodes=_DECODES,
            progress=lambda done, total: tell(f"measured {done} of {total}"),
            **{"repeats": _REPEATS, **settings},
        )
