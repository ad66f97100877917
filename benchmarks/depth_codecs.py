"""Is now ``benchmarks/codec.py``; runs it with the same arguments."""

from __future__ import annotations

import runpy
from pathlib import Path

runpy.run_path(str(Path(__file__).with_name("codec.py")), run_name="__main__")
