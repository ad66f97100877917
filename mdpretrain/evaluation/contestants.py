"""What is compared: the names and what stands for each, on the command line and as models in the runner's sense."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping

from data_shards.storage.address import ShardPath, shard_path
from mdpretrain.data.pipeline import SamplePipeline
from mdpretrain.evaluation.models import Facts, predictor_model
from mdpretrain.evaluation.passes import Pass
from mdpretrain.evaluation.runner import Model
from mdpretrain.evaluation.stored_maps import LABELS, SHARDS, KeyedFolders, StoredMaps, StoredModel
from mdpretrain.evaluation.tables import BASELINES, IMAGE, PROMPT, STORED
from mdpretrain.tasks.predictor import Predictor

Compared = dict[str, list[str]]
AVERAGED = "ema:"  # before a network's path: the average of its weights that ema_decay kept


def parse_compared(texts: list[str]) -> Compared:
    """``NAME=WHAT`` texts by name, in order; a name given again adds a folder of stored depth.

    Raises:
        ValueError: a text of another form, a baseline's name, or a network beside anything else under one name.
    """
    found: Compared = {}
    for text in texts:
        name, equals, what = text.partition("=")
        if not equals or not name or not what or what in (LABELS, SHARDS, AVERAGED):
            forms = f"NAME=CHECKPOINT, NAME={AVERAGED}CHECKPOINT, NAME={LABELS}FOLDER or NAME={SHARDS}FOLDER"
            raise ValueError(f"--compare {text!r}: write {forms}")
        if name in BASELINES:
            raise ValueError(f"--compare {text!r}: {name!r} is the name of a baseline; choose another")
        found.setdefault(name, []).append(what)
    for name, parts in found.items():
        kinds = {next((prefix for prefix in (LABELS, SHARDS) if part.startswith(prefix)), "") for part in parts}
        if len(parts) > 1 and (len(kinds) > 1 or "" in kinds):
            raise ValueError(
                f"--compare {name}=...: given {len(parts)} times; only folders of one kind ({LABELS} or {SHARDS}) join under one name"
            )
    return found


def is_stored(parts: list[str]) -> bool:
    """Whether a name stands for folders of stored depth and not for a network."""
    return parts[0].startswith((LABELS, SHARDS))


def network_of(parts: list[str]) -> tuple[pathlib.Path, bool]:
    """The path of what a name stands for, if that is a network, and whether the average of its weights is meant."""
    return pathlib.Path(parts[0].removeprefix(AVERAGED)), parts[0].startswith(AVERAGED)


@dataclasses.dataclass
class Contestants:
    """Networks and stored maps by name; ``names`` in the order in which they were named, the first being the reference."""

    names: list[str]
    networks: dict[str, Predictor]
    stored: dict[str, StoredMaps]

    @property
    def prompted(self) -> list[str]:
        """The networks that read a prompt."""
        return [name for name, network in self.networks.items() if network.needs_prompt]

    def inputs(self) -> dict[str, str]:
        """What each is given, by the titles of the tables' groups."""
        return {name: STORED if name in self.stored else PROMPT if self.networks[name].needs_prompt else IMAGE for name in self.names}

    def network_models(self) -> dict[str, Model]:
        """The networks as the runner calls them."""
        return {name: predictor_model(network) for name, network in self.networks.items()}

    def stored_models(self, one: Pass) -> dict[str, Model]:
        """The stored maps as the images of a pass are seen."""
        frames = one.frames
        view_of = SamplePipeline(frames.image_size, None, None, 0, frames.long_side, frames.multiple, one.cut)
        return {name: StoredModel(maps, view_of) for name, maps in self.stored.items()}


def open_stored(compared: Mapping[str, list[str]], shards: list[ShardPath], facts: Facts) -> dict[str, StoredMaps]:
    """The stored maps among what is compared.

    Raises:
        ValueError: see ``StoredMaps``.
    """
    wanted = {name: parts for name, parts in compared.items() if is_stored(parts)}
    if not wanted:
        return {}
    evaluated = KeyedFolders(shards, "--shards with stored depth to compare")
    found = {}
    for name, parts in wanted.items():
        prefix = LABELS if parts[0].startswith(LABELS) else SHARDS
        folders = [shard_path(part.removeprefix(prefix)) for part in parts]
        found[name] = StoredMaps(name, folders, evaluated, labels=prefix == LABELS)
        what = "pseudo-labels" if prefix == LABELS else "depth"
        facts.append((name, f"{what} of {found[name].joined} of the samples in {', '.join(map(str, folders))}"))
    facts.append(("holes of stored depth", "a pixel that one of these maps lacks counts for no model"))
    return found
