"""SubNetAct: any subnet of a resident supernet, made current in microseconds."""

from subnetact.actuator import Actuator
from subnetact.executor import EagerExecutor, Executor, load_executor
from subnetact.insert import insert_operators
from subnetact.operators import LayerSelect, SubnetNorm, WeightSlice
from subnetact.profiler import measure_profile

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
