"""``compiled``: a loop in machine code where numba is installed (``pip install 'mdpretrain[fast]'``), the same loop in Python where not.

Nothing is allowed to LLVM that would change a float (no ``fastmath``). The machine code is kept beside the module's file, or where
``NUMBA_CACHE_DIR`` says, so that workers and later runs load it instead of compiling it again (a script's is not kept). No loop starts
threads by itself: whoever wants several calls it from several (the interpreter's lock is released), so processes may fork afterwards.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

try:
    numba: Any = importlib.import_module("numba")  # without its types, which an environment without it lacks
except ImportError:
    numba = None

COMPILED = numba is not None
Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """The function in machine code from its first call on; as it is (right, but far too slow to use) without numba."""
    function = inspect.unwrap(function)  # numba compiles the loop, not what checks its types while testing
    if numba is None:
        return function
    options = {"nogil": True, "error_model": "numpy"}
    if function.__module__.partition(".")[0] != "mdpretrain":  # a script: its module's name differs from process to process
        return numba.njit(**options)(function)
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no folder that it may write its cache to
        return numba.njit(**options)(function)
