"""One cure for mismatched torchvision builds; import this before lightning or timm.

A CPU-only torch beside the ordinary torchvision wheel leaves ``torchvision::nms`` unregistered, and importing torchvision
(which timm and torchmetrics do) then fails. Where torchvision's own operators load, nothing is changed.
"""

from __future__ import annotations

import importlib.util
import pathlib

import torch

_keep_alive: list[object] = []  # a Library unregisters its operators when it is collected


def register_torchvision_operators() -> bool:
    """Load torchvision's operators, or declare the two whose absence breaks its import.

    Returns:
        True if the real operators are there, False if only declarations stand in (``torchvision.ops.nms`` is unusable then).
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        raise ValueError("torchvision is not installed; install the version that matches your torch (see constraints.txt)")
    if _keep_alive:
        return _keep_alive[0] is True
    try:
        torch.ops.load_library(str(pathlib.Path(spec.origin).parent / "_C.so"))
        _keep_alive.append(True)
        return True
    except OSError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _keep_alive.append(library)
        return False


register_torchvision_operators()
