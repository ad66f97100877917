"""Depth that lies in shards as a model: pseudo-labels, or another depth of the same images such as a sensor's, joined by key.

``--compare NAME=labels:FOLDER`` takes what ``mdpretrain label`` wrote (sidecars or whole shards), ``NAME=shards:FOLDER`` any other shards.
A stored map answers where it has depth: what is not in the folder, is a stand-in without depth, has no metres or is along the rays of an
unknown camera is NaN, which the runner counts as unanswered. A canonical label has metres where the evaluated image has a camera.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from data_shards.samples import members_to_depth, meta_from_bytes
from data_shards.schema import Camera, DepthType, LabelKind, SampleMeta
from data_shards.storage.address import ShardPath
from mdpretrain.data.pipeline import SamplePipeline
from mdpretrain.data.resample import ray_to_z, sample_depth
from mdpretrain.data.shard_folder import ShardFolder
from mdpretrain.structures import DepthBatch

LABELS, SHARDS = "labels:", "shards:"


class KeyedFolders:
    """Samples of several folders by their keys.

    Raises:
        ValueError: a folder cannot be opened, or a key is there twice, which leaves open what is joined with what.
    """

    def __init__(self, paths: list[ShardPath], what: str) -> None:
        self.folders = [ShardFolder(path, fields=()) for path in paths]
        self.places: dict[str, tuple[int, int]] = {}
        for number, folder in enumerate(self.folders):
            for index, key in enumerate(folder.keys()):
                if key in self.places:
                    raise ValueError(
                        f"{what}: the key {key!r} is there twice, in {self.folders[self.places[key][0]].path} and {folder.path}"
                    )
                self.places[key] = number, index

    def members(self, key: str, only: list[str]) -> dict[str, bytes]:
        """The members of a sample; raises like ``ShardFolder.read_members``."""
        number, index = self.places[key]
        return self.folders[number].read_members(index, only)[1]


class StoredMaps:
    """The depth maps of some folders.

    Args:
        name: the model's, for messages.
        folders: where the maps lie; labels by sidecars or whole shards, or any shards with the same keys.
        evaluated: the samples that are evaluated.
        labels: refuse maps that are no pseudo-labels.

    Raises:
        ValueError: see ``KeyedFolders``; or the folders have not one key of the evaluated samples.
    """

    def __init__(self, name: str, folders: list[ShardPath], evaluated: KeyedFolders, labels: bool) -> None:
        self.name = name
        self.maps = KeyedFolders(folders, f"--compare {name}")
        self.evaluated = evaluated
        self.labels = labels
        self.joined = len(self.maps.places.keys() & evaluated.places.keys())
        if not self.joined:
            where = ", ".join(map(str, folders))
            raise ValueError(
                f"--compare {name}: {where} has none of the keys of the evaluated shards; give the folder made from these shards"
            )

    def depth_m(self, key: str, view_of: SamplePipeline) -> Float[np.ndarray, "H W"] | None:
        """The z-depth of one sample in metres, seen as the evaluated image is; None where the folders have none.

        Raises:
            ValueError: a damaged member, a map of an image of another size, or no pseudo-label where labels were named.
        """
        if key not in self.maps.places:
            return None
        meta, depth = members_to_depth(key, self.maps.members(key, ["depth", "meta"]))
        evaluated = meta_from_bytes(key, self.evaluated.members(key, ["meta"]))
        self._check(meta, evaluated, stand_in=depth is None)
        depth_m = None if depth is None else z_depth_m(meta, depth, evaluated.camera)
        return None if depth_m is None else sample_depth(depth_m, view_of.fixed_view(meta.image_size), meta.image_size)

    def _check(self, meta: SampleMeta, evaluated: SampleMeta, stand_in: bool) -> None:
        if meta.image_size != evaluated.image_size:
            sizes = [f"{width} x {height}" for width, height in (meta.image_size, evaluated.image_size)]
            raise ValueError(f"--compare {self.name}: {meta.key} is of an image of {sizes[0]} pixels, the evaluated one has {sizes[1]}")
        if self.labels and not stand_in and meta.label_kind != LabelKind.PSEUDO:
            kind = meta.label_kind.value
            raise ValueError(f"--compare {self.name}: the depth of {meta.key} is {kind} and no pseudo-label; write {SHARDS}FOLDER for it")


def z_depth_m(meta: SampleMeta, depth: Float[np.ndarray, "H W"], camera: Camera | None) -> Float[np.ndarray, "H W"] | None:
    """A stored map as z-depth in metres, or None where it has none.

    Args:
        meta: the map's own.
        depth: the map, of the type and unit that ``meta`` says.
        camera: of the evaluated image; a canonical map (depth in units of f_px / W) has metres by it.
    """
    if meta.canonical:
        return None if camera is None else depth * np.float32(camera.fx / meta.image_size[0])
    if not meta.metric:
        return None
    if meta.depth_type == DepthType.Z:
        return depth
    return None if meta.camera is None else ray_to_z(depth, meta.camera, meta.image_size)


class StoredModel:
    """``StoredMaps`` as the runner calls it: batch -> depth in metres [B, 1, H, W], NaN where there is none.

    Args:
        maps: what is read.
        view_of: the pipeline whose fixed view the evaluated images have.
    """

    def __init__(self, maps: StoredMaps, view_of: SamplePipeline) -> None:
        self.maps = maps
        self.view_of = view_of

    def __call__(self, batch: DepthBatch) -> Float[Tensor, "B 1 H W"]:
        answer = torch.full(batch.depth.shape, torch.nan)
        for index, key in enumerate(batch.key):
            depth = self.maps.depth_m(key, self.view_of)
            if depth is not None:
                answer[index, 0] = torch.from_numpy(depth)
        return answer.to(batch.depth.device)
