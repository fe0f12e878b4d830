"""SubNetAct: any subnet of a resident supernet, made current in microseconds.

A name is imported when it is first used, so that what needs no torch comes without it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from subnetact.executor import Executor
    from subnetact.load import load_executor
    from subnetact.profiling.profiler import measure_profile
    from subnetact.views.actuator import Actuator
    from subnetact.views.eager_executor import EagerExecutor
    from subnetact.views.insert import insert_operators
    from subnetact.views.operators import LayerSelect, SubnetNorm, WeightSlice

__all__ = [
    "Actuator",
    "EagerExecutor",
    "Executor",
    "LayerSelect",
    "SubnetNorm",
    "WeightSlice",
    "insert_operators",
    "load_executor",
    "measure_profile",
]

_HOMES = {
    "Actuator": "subnetact.views.actuator",
    "EagerExecutor": "subnetact.views.eager_executor",
    "Executor": "subnetact.executor",
    "LayerSelect": "subnetact.views.operators",
    "SubnetNorm": "subnetact.views.operators",
    "WeightSlice": "subnetact.views.operators",
    "insert_operators": "subnetact.views.insert",
    "load_executor": "subnetact.load",
    "measure_profile": "subnetact.profiling.profiler",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
