"""One sample in memory <-> its members in a tar (suffix -> bytes)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection

import numpy as np

from data_shards import codecs
from data_shards.bit_png import encode_bits
from data_shards.schema import DEPTH_FIELDS, IMAGE_FORMATS, Sample, SampleMeta, check_depth

META_SUFFIX = "meta.json"
MASK_FIELDS = ("sky", "confidence")
OPTIONAL_FIELDS = (*DEPTH_FIELDS[1:], *MASK_FIELDS)
TRAINING_FIELDS = ("prior", "prompt", "depth_edge", "sky", "confidence")  # what training reads besides image and depth


def check_sample(sample: Sample) -> None:
    """Refuse a sample that no reader could use; decodes the image once.

    Raises:
        ValueError: a damaged image or one of another size than the meta says, a depth map that breaks the conventions or has no
            measured pixel, a mask that does not fit the depth map, a confidence outside [0, 1]; names the key.
    """
    key = sample.meta.key
    if sample.image_format not in IMAGE_FORMATS:
        raise ValueError(f"{key}: unknown image format {sample.image_format!r}; there are {list(IMAGE_FORMATS)}")
    try:
        height, width = codecs.decode_image(sample.image_bytes).shape[:2]
    except ValueError as error:
        raise ValueError(f"{key}: image: {error}") from error
    if (width, height) != tuple(sample.meta.image_size):
        raise ValueError(f"{key}: the image is {width}x{height}, its meta says {'x'.join(map(str, sample.meta.image_size))}")
    check_maps(sample)


def check_maps(sample: Sample) -> None:
    """The part of ``check_sample`` that is about the maps; raises like it."""
    key = sample.meta.key
    for name in DEPTH_FIELDS:
        if (depth := getattr(sample, name)) is not None:
            check_depth(depth, f"{key}: {name}")
            if not np.isfinite(depth).any():
                raise ValueError(f"{key}: {name} has no measured pixel")
    for name in MASK_FIELDS:
        mask = getattr(sample, name)
        if mask is not None and mask.shape != sample.depth.shape:
            raise ValueError(f"{key}: {name} has shape {mask.shape}, the depth map {sample.depth.shape}")
    if sample.sky is not None and sample.sky.dtype != np.bool_:
        raise ValueError(f"{key}: sky must be boolean, got {sample.sky.dtype}")
    if sample.confidence is not None and not bool(np.all((sample.confidence >= 0) & (sample.confidence <= 1))):
        raise ValueError(f"{key}: confidence must lie in [0, 1] everywhere")


def sample_to_members(sample: Sample, container: str = "pco", quantisation: str | None = None) -> dict[str, bytes]:
    """The members of one sample in their fixed order: image, depth maps, masks, meta.json.

    Without ``quantisation`` each depth map that sits exactly on a step (the one in ``meta.encodings[field]['step_m']`` if the
    source set it, else one of ``codecs.KNOWN_STEPS_M``) is stored as lossless ``linear16``, any other as ``log16``. ``container``
    is ``pco`` or ``png``. The written meta carries the parameters of every depth member; those of absent fields are dropped.

    Raises:
        ValueError: see ``check_sample`` and ``codecs.encode_depth``; names the key and the field.
    """
    check_sample(sample)
    return {f"image.{sample.image_format}": sample.image_bytes} | maps_to_members(
        sample, DEPTH_FIELDS + MASK_FIELDS, container, quantisation
    )


def maps_to_members(sample: Sample, fields: Collection[str], container: str = "pco", quantisation: str | None = None) -> dict[str, bytes]:
    """The members of these maps, of those that the sample has, and meta.json; see ``sample_to_members``, which also checks them."""
    members, encodings = {}, {}
    for name in DEPTH_FIELDS:
        depth = getattr(sample, name) if name in fields else None
        if depth is not None:
            declared = sample.meta.encodings.get(name, {}).get("step_m")
            members[f"{name}.{container}"], encodings[name] = _encode(
                depth, container, quantisation, declared, f"{sample.meta.key}: {name}"
            )
    if sample.sky is not None and "sky" in fields:
        members["sky.png"] = encode_bits(sample.sky)
    if sample.confidence is not None and "confidence" in fields:
        members["confidence.png"] = codecs.encode_png(np.rint(sample.confidence * 255).astype(np.uint8))
    meta = dataclasses.replace(sample.meta, encodings=encodings)
    members[META_SUFFIX] = meta_to_bytes(meta)
    return members


def _encode(depth: np.ndarray, container: str, quantisation: str | None, declared_m: float | None, name: str) -> tuple[bytes, dict]:
    try:
        if quantisation == "log16":
            return codecs.encode_depth(depth, "log16", container)
        # A declared step counts only where it is true: a map that was changed after reading would silently lose precision.
        step_m = codecs.find_step(depth, ((declared_m,) if declared_m else ()) + codecs.KNOWN_STEPS_M)
        if quantisation == "linear16":
            return codecs.encode_depth(depth, "linear16", container, step_m=step_m or declared_m)
        if quantisation is not None:
            raise ValueError(f"unknown quantisation {quantisation!r}; there are {list(codecs.QUANTISATIONS)}")
        return codecs.encode_depth(depth, "linear16" if step_m else "log16", container, step_m=step_m)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def members_to_sample(key: str, members: dict[str, bytes], fields: Collection[str] | None = None) -> Sample:
    """Decode the members that ``sample_to_members`` wrote. The image stays encoded, as it came.

    ``fields`` limits the optional maps that are decoded (any of ``OPTIONAL_FIELDS``); by default all that are there. Image, depth
    and meta are always needed, so a reader that skips members on disk passes the rest.

    Raises:
        ValueError: a missing, unknown, damaged or unfitting member; names key and member.
    """
    meta = meta_from_bytes(key, members)
    wanted = set(OPTIONAL_FIELDS if fields is None else fields) | {"depth"}
    if unknown := sorted(wanted - {"depth", *OPTIONAL_FIELDS, "image", "meta"}):
        raise ValueError(f"{key}: unknown field {unknown[0]!r}; there are {['depth', *OPTIONAL_FIELDS]}")
    images = [image_format for image_format in IMAGE_FORMATS if f"image.{image_format}" in members]
    if len(images) != 1:
        raise ValueError(f"{key}: needs exactly one of image.jpg and image.png, has {sorted(members)}")
    depth = _read_depth(key, "depth", members, meta)
    if depth is None:
        raise ValueError(f"{key}: no member depth.pco or depth.png; it has {sorted(members)}")
    sky = _read_mask(key, "sky", members, depth.shape) if "sky" in wanted else None
    confidence = _read_mask(key, "confidence", members, depth.shape) if "confidence" in wanted else None
    return Sample(
        meta=meta,
        image_bytes=members[f"image.{images[0]}"],
        image_format=images[0],
        depth=depth,
        sky=None if sky is None else sky > 127,
        confidence=None if confidence is None else confidence.astype(np.float32) / np.float32(255),
        **{name: _read_depth(key, name, members, meta) for name in DEPTH_FIELDS[1:] if name in wanted},
    )


def members_to_depth(key: str, members: dict[str, bytes]) -> tuple[SampleMeta, np.ndarray | None]:
    """The meta and the depth map alone, of a sample or of a sidecar; None where there is no depth, as in a sidecar's stand-in.

    Raises:
        ValueError: a damaged member; names key and member.
    """
    meta = meta_from_bytes(key, members)
    return meta, _read_depth(key, "depth", members, meta)


def suffixes_for(fields: Collection[str], available: Collection[str]) -> list[str]:
    """Which of the ``available`` member suffixes hold image, depth, meta and the optional ``fields``, for a partial read."""
    wanted = {"image", "depth", "meta", *fields}
    return [suffix for suffix in available if suffix.split(".")[0] in wanted]


def meta_to_bytes(meta: SampleMeta) -> bytes:
    """meta.json: keys sorted, so that equal metas are equal bytes. Raises ValueError for a number that JSON lacks (NaN)."""
    try:
        return (json.dumps(meta.to_json(), sort_keys=True, allow_nan=False, indent=1) + "\n").encode()
    except (ValueError, TypeError) as error:
        raise ValueError(f"{meta.key}: meta.json: {error}") from error


def meta_from_bytes(key: str, members: dict[str, bytes]) -> SampleMeta:
    """The meta of a sample's members; ValueError naming the key if it is missing, damaged or belongs to another key."""
    if META_SUFFIX not in members:
        raise ValueError(f"{key}: no member {META_SUFFIX}; it has {sorted(members)}")
    try:
        record = json.loads(members[META_SUFFIX])
    except ValueError as error:
        raise ValueError(f"{key}: {META_SUFFIX} is not JSON ({error})") from error
    if not isinstance(record, dict):
        raise ValueError(f"{key}: {META_SUFFIX} holds a {type(record).__name__}, expected an object")
    meta = SampleMeta.from_json(record)
    if meta.key != key:
        raise ValueError(f"{key}: {META_SUFFIX} says its key is {meta.key!r}")
    return meta


def _read_depth(key: str, name: str, members: dict[str, bytes], meta: SampleMeta) -> np.ndarray | None:
    suffixes = [f"{name}.{container}" for container in codecs.CONTAINERS if f"{name}.{container}" in members]
    if not suffixes:
        return None
    try:
        if len(suffixes) > 1:
            raise ValueError(f"stored twice, as {suffixes}")
        if name not in meta.encodings:
            raise ValueError("meta.json has no encodings for it")
        return codecs.decode_depth(members[suffixes[0]], meta.encodings[name])
    except ValueError as error:
        raise ValueError(f"{key}: {suffixes[0]}: {error}") from error


def _read_mask(key: str, name: str, members: dict[str, bytes], shape: tuple[int, ...]) -> np.ndarray | None:
    if f"{name}.png" not in members:
        return None
    try:
        mask = codecs.decode_png(members[f"{name}.png"])
    except ValueError as error:
        raise ValueError(f"{key}: {name}.png: {error}") from error
    if mask.shape != shape or mask.dtype != np.uint8:
        raise ValueError(f"{key}: {name}.png is {mask.dtype} {mask.shape}, expected uint8 {shape}")
    return mask
