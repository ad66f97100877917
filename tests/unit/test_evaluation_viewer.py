"""What the report's point cloud viewer is given."""

from __future__ import annotations

import numpy as np
import pytest

from mdpretrain.evaluation.point_cloud import viewer_data


def test_viewer_data_describes_the_same_points_after_subsampling():
    depth = np.full((400, 600), 2.0, dtype=np.float32)
    image = np.zeros((400, 600, 3), dtype=np.uint8)
    data = viewer_data({"truth": depth}, image, np.array([[500.0, 0, 300], [0, 500.0, 200], [0, 0, 1]]))
    step = 3
    assert (data["width"], data["height"]) == (200, 133) and data["width"] * data["height"] <= 40_000
    column = 10
    x_viewer = (column - data["camera"]["cx"]) / data["camera"]["fx"]
    assert x_viewer == pytest.approx((column * step + 1 + 0.5 - 300) / 500)
