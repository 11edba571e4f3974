"""Python runs this at its start in processes that a watched program starts, before anything of the program.

Its folder is put into PYTHONPATH for that. A `sitecustomize` that it hides runs after it.
"""

import os
import sys

_HERE = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120  # pathlib would cost every process 5 ms


def _begin() -> None:
    sys.path[:] = [path for path in sys.path if os.path.abspath(path or ".") != _HERE]  # noqa: PTH100
    try:
        from weightdecay.watching.launching import join
    except ImportError:  # another environment's Python
        pass
    else:
        join()
    own = sys.modules.pop("sitecustomize")
    try:
        import sitecustomize  # type: ignore[import-not-found]  # noqa: F401  # the one that this one hides
    except ModuleNotFoundError as error:
        if error.name != "sitecustomize":
            raise
    finally:
        sys.modules.setdefault("sitecustomize", own)


_begin()
