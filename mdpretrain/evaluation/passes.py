"""What an evaluation goes through the shards for: each pass has its view of the images, its prompts, and protocols to measure under."""

from __future__ import annotations

import dataclasses
import pathlib

import jsonargparse
import yaml

from data_shards.storage.address import ShardPath
from mdpretrain.data.crops import Cut
from mdpretrain.data.evaluation_stream import EvaluationLoader, evaluation_loader
from mdpretrain.data.pipeline import PromptOptions
from mdpretrain.evaluation.prompt_protocols import PromptProtocol, find_prompt_protocol
from mdpretrain.evaluation.protocols import Protocol, find_protocol


@dataclasses.dataclass(frozen=True)
class Frames:
    """Which images are looked at, and how: the part of a request that all its passes share.

    ``image_size`` (height, width), or None for each whole image with its long side near ``long_side`` and both sides multiples of
    ``multiple``, one image a batch.
    """

    shards: list[ShardPath]
    image_size: tuple[int, int] | None
    long_side: int = 518
    multiple: int = 14
    include: list[str] | None = None
    batch_size: int = 8
    num_workers: int = 0
    seed: int = 0

    def loader(self, prompt: PromptOptions | None, cut: Cut | None = None) -> EvaluationLoader:
        """One pass: the same frames and, of the same kind and number, the same prompts, however often it is asked for."""
        whole = self.image_size is None
        return evaluation_loader(
            self.shards,
            self.image_size,
            1 if whole else self.batch_size,
            prompt,
            self.seed,
            self.num_workers,
            self.include,
            long_side=self.long_side,
            multiple=self.multiple,
            cut=cut,
        )

    def describe(self) -> str:
        """For the report."""
        if self.image_size is None:
            return f"whole images, long side near {self.long_side}, sides multiples of {self.multiple} pixels"
        return f"{self.image_size[0]} × {self.image_size[1]} pixels (height × width), centre crop"


@dataclasses.dataclass(frozen=True)
class Pass:
    """One pass over the frames. ``title`` is the prompt protocol's name, "" for prompts that the command line describes."""

    title: str
    frames: Frames
    cut: Cut | None
    prompt: PromptOptions | None
    protocols: list[Protocol]

    def loader(self) -> EvaluationLoader:
        return self.frames.loader(self.prompt, self.cut)

    def describe_size(self) -> str:
        """For the report."""
        size = self.frames.image_size
        if self.cut is None or size is None:
            return self.frames.describe()
        scaled = "at full size" if self.cut.rows is None else f"resized to {self.cut.rows} rows"
        return f"{scaled}, {self.cut.vertical} {size[0]} × {size[1]} pixels (height × width)"


def plain_pass(frames: Frames, prompt: PromptOptions | None, protocols: list[str], exclude_prompt_pixels: bool = False) -> Pass:
    """The pass of ``--prompt-count`` (or of no prompt) under pixel protocols.

    ``exclude_prompt_pixels``: whatever the protocols say. A prompted network is compared with networks that get no prompt, and the truth
    that it was handed is not to decide between them.
    """
    found = [find_protocol(name) for name in protocols]
    if exclude_prompt_pixels:
        found = [dataclasses.replace(protocol, exclude_prompt_pixels=True) for protocol in found]
    return Pass("", frames, None, prompt, found)


def prompt_pass(name: str, frames: Frames, size_given: bool, count_prompt_pixels: bool) -> Pass:
    """The pass of a named prompt protocol.

    Args:
        name: see ``find_prompt_protocol``.
        frames: as the command line describes them.
        size_given: whether it gave a size of its own, which then takes the place of the protocol's.
        count_prompt_pixels: measure prompt pixels, too, as published tables do.

    Raises:
        ValueError: an unknown protocol, or one without a size of its own where none was given.
    """
    found: PromptProtocol = find_prompt_protocol(name)
    if not size_given and found.image_size is None:
        raise ValueError(f"prompt protocol {name!r} has no image size of its own; give --image-size HEIGHT WIDTH or --long-side PIXELS")
    protocol = found.protocol(own_size=not size_given)
    if count_prompt_pixels:
        protocol = dataclasses.replace(protocol, exclude_prompt_pixels=False)
    own = not size_given
    return Pass(
        name,
        dataclasses.replace(frames, image_size=found.image_size) if own else frames,
        found.cut if own else None,
        found.prompt,
        [protocol],
    )


def read_prompt_options(path: pathlib.Path) -> PromptOptions:
    """The prompts that a recipe or a run's ``config.yaml`` describes under ``data.prompt`` (or a file that is that table alone).

    Raises:
        ValueError: no such file, no prompts in it, or settings that ``PromptOptions`` refuses.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"--prompt {path}: cannot be read as YAML ({error})") from error
    table = content
    for key in ("data", "init_args", "prompt"):
        if isinstance(table, dict) and isinstance(table.get(key), dict):
            table = table[key]
    if not isinstance(table, dict) or "count" not in table:
        raise ValueError(f"--prompt {path}: no data.prompt with a count in it; give a recipe that draws prompts")
    if unknown := sorted(set(table) - {field.name for field in dataclasses.fields(PromptOptions)}):  # an empty table would be passed over
        raise ValueError(f"--prompt {path}: prompts have no setting {unknown[0]!r}; see docs/prompts.md for those there are")
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(PromptOptions, "prompt")
    try:
        options = parser.instantiate_classes(parser.parse_object({"prompt": table})).prompt
    except (jsonargparse.ArgumentError, TypeError) as error:
        raise ValueError(f"--prompt {path}: {' '.join(str(error).split())}") from error
    return dataclasses.replace(options, interpolate=True)  # for the linear baseline
