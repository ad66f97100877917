"""Random changes of colour, in one lookup table and one 3x3 matrix per image."""

from __future__ import annotations

import dataclasses
import math

import cv2
import numpy as np

# Rec. 601: luma, and the two chroma axes I and Q in which a change of hue is a rotation.
RGB_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])
YIQ_TO_RGB = np.linalg.inv(RGB_TO_YIQ)


@dataclasses.dataclass(frozen=True)
class ColourJitter:
    """Strengths of the random colour change; 0 switches one off.

    Args:
        brightness: factor uniform in [1 - brightness, 1 + brightness].
        contrast: factor around mid-grey, same form.
        saturation: factor on the chroma, same form.
        gamma: exponent, same form.
        hue: rotation of the chroma in turns, uniform in [-hue, hue].
    """

    brightness: float = 0.1
    contrast: float = 0.1
    saturation: float = 0.1
    gamma: float = 0.1
    hue: float = 0.05

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not 0 <= value < 1:
                raise ValueError(f"augmentation.colour.{field.name} is {value}; give a number in [0, 1)")

    def __call__(self, image: np.ndarray, rng: np.random.Generator, planes: np.ndarray | None = None) -> np.ndarray:
        """uint8 RGB (H, W, 3) -> float32 RGB (H, W, 3) in [0, 1]; always consumes five numbers of ``rng``.

        The result lies plane by plane in memory, in ``planes``, float32 (3, H, W), if given.
        """
        planes = np.empty((3, *image.shape[:2]), np.float32) if planes is None else planes
        draw = rng.uniform(-1, 1, size=5)
        table = tone_table(1 + draw[0] * self.brightness, 1 + draw[1] * self.contrast, 1 + draw[2] * self.gamma)
        toned = cv2.LUT(image, table)
        if self.saturation == 0 and self.hue == 0:
            cv2.split(toned, list(planes))
        else:
            mixed = cv2.transform(toned, chroma_matrix(1 + draw[3] * self.saturation, draw[4] * self.hue))
            cv2.split(np.clip(mixed, 0, 1, out=mixed), list(planes))
        return planes.transpose(1, 2, 0)


def tone_table(brightness: float, contrast: float, gamma: float) -> np.ndarray:
    """float32 (256,): ``clip(((v * brightness - 1/2) * contrast + 1/2), 0, 1) ** gamma`` for v = code / 255."""
    values = np.arange(256) / 255
    return (np.clip((values * brightness - 0.5) * contrast + 0.5, 0, 1) ** gamma).astype(np.float32)


def chroma_matrix(saturation: float, hue_turns: float) -> np.ndarray:
    """float32 3x3 on RGB: scales chroma by ``saturation`` and turns it by ``hue_turns``; grey stays grey, luma is kept."""
    angle = 2 * math.pi * hue_turns
    turn = saturation * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    change = np.eye(3)
    change[1:, 1:] = turn
    return (YIQ_TO_RGB @ change @ RGB_TO_YIQ).astype(np.float32)


def to_unit_float(image: np.ndarray) -> np.ndarray:
    """uint8 -> float32 in [0, 1] without a change of colour."""
    return image.astype(np.float32) * np.float32(1 / 255)
