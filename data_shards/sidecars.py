"""Sidecars: folders of shards that hold further fields for the samples of other shards, joined by key while reading.

A sidecar folder has, for every shard ``X.tar`` of the original folder, an ``X.tar`` with the same keys in the same order. Its
samples are members of some fields only, and a meta.json: ``KEY.prior.pco``, ``KEY.confidence.png``, ... An original is never
rewritten, and a sidecar can be made, replaced or left out by itself.

Joining replaces or adds the sidecar's fields. The sidecar's meta.json says how its depth maps are encoded; where it brings
``depth`` itself (a pseudo-label), it also says what kind of label that is. What was about the original's depth is then left out: its
masks, whose size is another depth's (a label's sky is infinitely far), and depth maps that would be misread by what is now said, all of
them where z takes the place of ray, ``depth_edge`` (in the depth's unit) where the unit changes.

A sample to which a sidecar has nothing to add has a *stand-in* there, its meta alone. Where the sidecar is one of labels (any of its
samples has ``depth``), such a sample has no label, and a mixture's row leaves it out (``data_shards.selection``).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any

from data_shards.index import ShardIndex
from data_shards.samples import MASK_FIELDS, META_SUFFIX, OPTIONAL_FIELDS, check_maps, maps_to_members
from data_shards.schema import DEPTH_FIELDS, Sample
from data_shards.storage.address import ShardPath

# What the meta of a sidecar that brings ``depth`` says about it, in place of the original's.
LABEL_FIELDS = ("label_kind", "depth_type", "metric", "teacher", "quality", "canonical")


def sidecar_members(sample: Sample, fields: Collection[str], container: str = "pco", quantisation: str | None = None) -> dict[str, bytes]:
    """The members of a sidecar for ``sample``: the given fields and the meta; ``write_shard`` takes them as (key, members).

    The image is neither written nor looked at. ``container`` and ``quantisation``: see ``samples.sample_to_members``.

    Raises:
        ValueError: a field that cannot stand in a sidecar or that the sample does not have, or an unusable sample.
    """
    if wrong := sorted(set(fields) - {"depth", *OPTIONAL_FIELDS}):
        raise ValueError(f"{sample.meta.key}: a sidecar cannot hold {wrong[0]!r}; it can hold {['depth', *OPTIONAL_FIELDS]}")
    if absent := sorted(name for name in fields if getattr(sample, name) is None):
        raise ValueError(f"{sample.meta.key}: the sample has no {absent[0]} for its sidecar")
    check_maps(sample)
    return maps_to_members(sample, fields, container, quantisation)


def join_members(key: str, members: dict[str, bytes], extra: dict[str, bytes]) -> dict[str, bytes]:
    """A sample's members with those of its sidecar; a label takes the place of the depth and of what was about it.

    Raises:
        ValueError: the sidecar brings an image, or its meta is damaged or tells of another key or image size.
    """
    try:
        meta, other = json.loads(members[META_SUFFIX]), json.loads(extra[META_SUFFIX])
        if (other["key"], other["image_size"]) != (key, meta["image_size"]):
            raise ValueError(f"it is of {other['key']!r} with an image of {other['image_size']}, not {key!r} with {meta['image_size']}")
        brought = {suffix.split(".")[0] for suffix in extra} - {"meta"}
        if "image" in brought:
            raise ValueError("a sidecar holds labels, not images")
        if "depth" not in brought and brought & set(DEPTH_FIELDS) and other["depth_type"] != meta["depth_type"]:
            raise ValueError(f"its maps are of depth type {other['depth_type']}, the sample's of {meta['depth_type']}")
        replaced = set(brought)
        own = meta.get("encodings", {})
        if "depth" in brought:
            joined_meta = meta | {"canonical": False} | {name: other[name] for name in LABEL_FIELDS if name in other}
            replaced |= {*MASK_FIELDS, *_misread(meta, joined_meta)}
            meta = joined_meta
        encodings = {name: encoding for name, encoding in own.items() if name not in replaced}
        encodings |= {name: other["encodings"][name] for name in brought & set(DEPTH_FIELDS)}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{key}: its sidecar does not fit ({error!r})") from error
    kept = {suffix: data for suffix, data in members.items() if suffix.split(".")[0] not in replaced}
    joined = kept | {suffix: data for suffix, data in extra.items() if suffix != META_SUFFIX}
    return joined | {META_SUFFIX: json.dumps(meta | {"encodings": encodings}, sort_keys=True).encode()}


def _misread(meta: dict[str, Any], joined: dict[str, Any]) -> set[str]:
    """Depth fields that were stored under ``meta`` and would mean something else under ``joined``."""
    if meta["depth_type"] != joined["depth_type"]:
        return set(DEPTH_FIELDS)
    units = ((record["metric"], record.get("canonical", False)) for record in (meta, joined))
    return {"depth_edge"} if len(set(units)) > 1 else set()


def check_shards(
    folder: ShardPath | str, shards: Sequence[str], sizes: Sequence[int], sidecar: ShardPath | str, own: dict[str, int]
) -> None:
    """Compare names and numbers of samples: ``own`` maps the sidecar's shards to their sizes.

    Raises:
        ValueError: a shard without its sidecar, or with one of another number of samples; names it.
    """
    for shard, size in zip(shards, sizes, strict=True):
        if shard not in own:
            raise ValueError(f"{sidecar}: has no {shard} for {folder}/{shard}; make the sidecar of every shard")
        if own[shard] != size:
            raise ValueError(f"{sidecar}/{shard}: holds {own[shard]} samples, {folder}/{shard} {size}; make this sidecar again")
    if surplus := sorted(set(own) - set(shards)):
        raise ValueError(f"{sidecar}/{surplus[0]}: is the sidecar of no shard in {folder}; take it away")


def check_keys(folder: ShardPath | str, index: ShardIndex, sidecar: ShardPath | str, own: ShardIndex) -> None:
    """Compare the keys of a shard and its sidecar, in order.

    Raises:
        ValueError: at the first key that differs, naming the shard and both keys.
    """
    for place, (entry, other) in enumerate(zip(index.entries, own.entries, strict=True)):
        if entry.key != other.key:
            raise ValueError(
                f"{sidecar}/{own.shard}: its sample {place} is {other.key!r}, in {folder}/{index.shard} it is {entry.key!r}; "
                "a sidecar has the same keys in the same order: make this one again"
            )
