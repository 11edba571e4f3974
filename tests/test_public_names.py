"""The public surface: what is promised is there, nothing else is, and importing it is cheap."""

from __future__ import annotations

import subprocess
import sys

import pytest

import weightdecay


@pytest.mark.parametrize("name", sorted(weightdecay._PUBLIC))
def test_every_public_name_is_what_its_module_defines(name: str) -> None:
    value = getattr(weightdecay, name)
    assert value.__module__ == weightdecay._PUBLIC[name]
    assert value.__doc__
    assert name in dir(weightdecay)


def test_importing_the_package_loads_no_torch() -> None:
    script = "import sys, weightdecay; print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'plann'"):
        weightdecay.plann  # noqa: B018  # the access is what is tested
