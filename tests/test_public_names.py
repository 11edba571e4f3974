"""The public surface: what is promised is there, nothing else is, and importing it is cheap."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from types import ModuleType

import pytest

import weightdecay
from weightdecay import errors


def seen_by_type_checkers() -> dict[str, str]:
    """Public name -> module, of the imports that only type checkers and editors read."""
    (block,) = (
        node
        for node in ast.parse(inspect.getsource(weightdecay)).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    imports = [(node.module, alias) for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert all(alias.asname == alias.name for _, alias in imports)  # or a strict checker takes it for private
    return {alias.name: str(module) for module, alias in imports}


@pytest.mark.parametrize("name", sorted(weightdecay._PUBLIC))
def test_every_public_name_is_what_its_module_defines(name: str) -> None:
    value = getattr(weightdecay, name)
    assert value.__module__ == weightdecay._PUBLIC[name]
    assert value.__doc__
    assert name in dir(weightdecay)


def test_type_checkers_see_every_name_from_where_it_is_defined() -> None:
    modules = dict.fromkeys(weightdecay._MODULES, "weightdecay")
    assert seen_by_type_checkers() == weightdecay._PUBLIC | modules
    assert sorted(weightdecay.__all__) == sorted([*weightdecay._PUBLIC, *weightdecay._MODULES, "__version__"])


def test_every_error_that_a_user_can_catch_is_public() -> None:
    defined = {
        name for name, value in vars(errors).items() if inspect.isclass(value) and value.__module__ == errors.__name__
    }
    assert defined - {"ProcessGroupError"} <= set(weightdecay.__all__)  # of the processes that a run starts itself


@pytest.mark.parametrize("name", weightdecay._MODULES)
def test_a_public_module_offers_each_of_its_names_with_a_docstring(name: str) -> None:
    module: ModuleType = getattr(weightdecay, name)
    assert inspect.ismodule(module)
    assert module.__doc__
    assert all(hasattr(module, public) for public in getattr(module, "__all__", ()))


def test_importing_the_package_loads_no_torch() -> None:
    script = "import sys, weightdecay; print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"


def test_schedules_load_no_torch_either() -> None:
    script = "import sys, weightdecay; weightdecay.schedules.Linear(0.1, 0.0, steps=3); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'plann'"):
        getattr(weightdecay, "plann")  # noqa: B009  # to a type checker it is an error already
