"""What decides a teacher's labels beside the teacher and the shards: all of it goes into the folder's fingerprint."""

from __future__ import annotations

import dataclasses
from typing import Literal

from mdpretrain.data.pipeline import PromptOptions

Precision = Literal["32", "bf16"]
UnknownCamera = Literal["reject", "canonical", "estimate"]
CONSISTENCY = {"flip": ("flip",), "disjoint": ("disjoint_a", "disjoint_b"), "density": ("sparse",)}


@dataclasses.dataclass(frozen=True)
class LabelRequest:
    """One labelling.

    Args:
        prompt: how prompts are drawn; None for a teacher that takes none.
        long_side: the label's long side in pixels; with tiles, the largest that it may have.
        multiple: both sides become multiples of this: the patch size.
        seed: of the prompts.
        flip: the label is the mean of the image's and the mirrored image's depth.
        prompts: the label is the mean over so many prompts.
        consistency: further passes that only judge the label: "flip", "disjoint" (two disjoint halves of the prompt), "density" (a
            quarter of the prompt). A pass that the mean needs anyway is not run twice.
        tile_side: the network sees overlapping crops of this side at the image's own resolution, instead of the whole image.
        precision: "bf16" runs the networks under autocast; alignment stays in float32.
        unknown_camera: of a sample whose camera is not known, where the teacher's depth needs it: "reject" it, write its "canonical"
            depth (1 / C, no metres), or "estimate" the focal length with the teacher's own head.
        whole: self-contained shards with the images, instead of sidecars.

    Raises:
        ValueError: an impossible value, or two that exclude each other.
    """

    prompt: PromptOptions | None
    long_side: int = 518
    multiple: int = 14
    seed: int = 0
    flip: bool = False
    prompts: int = 1
    consistency: tuple[str, ...] = ()
    tile_side: int | None = None
    precision: Precision = "32"
    unknown_camera: UnknownCamera = "reject"
    whole: bool = False

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.consistency) - set(CONSISTENCY)):
            raise ValueError(f"--consistency {unknown[0]}: there are {', '.join(CONSISTENCY)}")
        if self.prompts < 1:
            raise ValueError(f"--prompts {self.prompts}: give at least 1")
        of_prompts = [f"--consistency {name}" for name in ("disjoint", "density") if name in self.consistency]
        of_prompts += [f"--prompts {self.prompts}"] if self.prompts > 1 else []
        if of_prompts and self.prompt is None:
            raise ValueError(f"{of_prompts[0]} is for a teacher with a prompt; give --prompt-count LOW HIGH, or leave it out")
        if self.tile_side is not None and (self.tile_side % self.multiple or self.tile_side < self.multiple):
            raise ValueError(f"--tiles {self.tile_side}: give a multiple of --multiple {self.multiple}")
        if self.tile_side is not None and self.long_side <= self.tile_side:
            raise ValueError(
                f"--tiles {self.tile_side}: with --long-side {self.long_side}, the largest that a label may have, every image fits into "
                "one tile; give a larger --long-side, or leave out --tiles"
            )
        if self.tile_side is not None and self.unknown_camera == "estimate":
            raise ValueError("--unknown-camera estimate reads the focal length off a whole image: leave out --tiles")

    @property
    def mirrors(self) -> bool:
        """Whether there is a pass over the mirrored image."""
        return self.flip or "flip" in self.consistency

    @property
    def further_prompts(self) -> list[str]:
        """The passes with another prompt, by name, in the order they run."""
        judging = [name for kind in ("disjoint", "density") if kind in self.consistency for name in CONSISTENCY[kind]]
        return [*(f"prompt_{number}" for number in range(2, self.prompts + 1)), *judging]

    @property
    def averaged(self) -> list[str]:
        """The passes that the label is the mean of, besides the first."""
        return [*(["flip"] if self.flip else []), *(f"prompt_{number}" for number in range(2, self.prompts + 1))]
