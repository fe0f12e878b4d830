"""What `import slackfit` needs and offers."""

from __future__ import annotations

import subprocess
import sys

import slackfit

_IMPORT = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ImportError("blocked: " + name)
sys.meta_path.insert(0, Refuse())
import slackfit
print(*sorted({{m.split(".")[0] for m in sys.modules}} - set(sys.stdlib_module_names)))
"""


def test_the_package_imports_with_numpy_alone():
    blocked = {"torch", "ray", "grpc", "scipy", "pydantic", "pyarrow", "matplotlib", "typer"}
    code = _IMPORT.format(blocked=blocked)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert {"numpy", "slackfit"} <= loaded
    assert loaded <= {"numpy", "slackfit", "__main__", "__mp_main__", "sitecustomize"} | {
        name for name in loaded if name.startswith("_")
    }


def test_every_public_name_exists_and_the_list_is_sorted():
    assert all(hasattr(slackfit, name) for name in slackfit.__all__)
    assert len(set(slackfit.__all__)) == len(slackfit.__all__)
