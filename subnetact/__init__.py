"""SubNetAct: any subnet of a resident supernet, made current in microseconds."""

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
