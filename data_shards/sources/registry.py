"""The table of raw sources, and how their options are read from the command line.

To add a data set: write ``data_shards/sources/NAME.py`` with a dataclass that follows ``sources.base.Source`` (its fields are its
options; ``input_path: Path`` if it reads a folder) and add one row below. A module is imported when its source is asked for, so what
one source needs cannot break another.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data_shards.sources.base import Source

CLASSES = {
    "argoverse2": "data_shards.sources.argoverse2:Argoverse2",
    "arkit": "data_shards.sources.arkit:Arkit",
    "arkitscenes": "data_shards.sources.arkitscenes:ArkitScenes",
    "blended_mvs": "data_shards.sources.blended_mvs:BlendedMvs",
    "booster": "data_shards.sources.booster:Booster",
    "colmap": "data_shards.sources.colmap:Colmap",
    "depth_png_list": "data_shards.sources.depth_png_list:DepthPngList",
    "dgp": "data_shards.sources.dgp:Dgp",
    "diode": "data_shards.sources.diode:Diode",
    "driving_stereo": "data_shards.sources.driving_stereo:DrivingStereo",
    "eth3d": "data_shards.sources.eth3d:Eth3d",
    "hypersim": "data_shards.sources.hypersim:Hypersim",
    "ibims1": "data_shards.sources.ibims1:Ibims1",
    "icl_nuim": "data_shards.sources.icl_nuim:IclNuim",
    "irs": "data_shards.sources.irs:Irs",
    "kitti_object": "data_shards.sources.kitti_object:KittiObject",
    "kitti_raw": "data_shards.sources.kitti_raw:KittiRaw",
    "kitti_stereo": "data_shards.sources.kitti_stereo:KittiStereo",
    "matterport3d": "data_shards.sources.matterport3d:Matterport3d",
    "megadepth": "data_shards.sources.megadepth:MegaDepth",
    "mid_air": "data_shards.sources.mid_air:MidAir",
    "middlebury": "data_shards.sources.middlebury:Middlebury",
    "mvs_synth": "data_shards.sources.mvs_synth:MvsSynth",
    "nuscenes": "data_shards.sources.nuscenes:NuScenes",
    "nyu_v2": "data_shards.sources.nyu_v2:NyuV2",
    "paired_depth": "data_shards.sources.paired_depth:PairedDepth",
    "record3d": "data_shards.sources.record3d:Record3d",
    "redwood": "data_shards.sources.redwood:Redwood",
    "rendered": "data_shards.sources.rendered:RenderedSource",
    "replica": "data_shards.sources.replica:Replica",
    "scannet": "data_shards.sources.scannet:ScanNet",
    "scannetpp": "data_shards.sources.scannetpp:ScanNetPp",
    "seven_scenes": "data_shards.sources.seven_scenes:SevenScenes",
    "simple": "data_shards.sources.simple:Simple",
    "sintel": "data_shards.sources.sintel:Sintel",
    "spring": "data_shards.sources.spring:Spring",
    "sr300": "data_shards.sources.sr300:Sr300",
    "stray_scanner": "data_shards.sources.stray_scanner:StrayScanner",
    "sun_rgbd": "data_shards.sources.sun_rgbd:SunRgbd",
    "synthia": "data_shards.sources.synthia:Synthia",
    "synthia_sf": "data_shards.sources.synthia_sf:SynthiaSf",
    "tartanair": "data_shards.sources.tartanair:TartanAir",
    "tartanair_v2": "data_shards.sources.tartanair_v2:TartanAirV2",
    "taskonomy": "data_shards.sources.taskonomy:Taskonomy",
    "tum": "data_shards.sources.tum:Tum",
    "unreal_stereo_4k": "data_shards.sources.unreal_stereo_4k:UnrealStereo4K",
    "virtual_kitti": "data_shards.sources.virtual_kitti:VirtualKitti",
    "waymo": "data_shards.sources.waymo:Waymo",
}
INPUT_FIELD = "input_path"
TRUE_WORDS, FALSE_WORDS = ("true", "yes", "1"), ("false", "no", "0")


class _LazyClasses(Mapping[str, type]):
    """name -> source class; imports the class's module at the first look."""

    def __getitem__(self, name: str) -> type:
        module, _, attribute = CLASSES[name].partition(":")
        return getattr(importlib.import_module(module), attribute)

    def __iter__(self) -> Iterator[str]:
        return iter(CLASSES)

    def __len__(self) -> int:
        return len(CLASSES)


SOURCES: Mapping[str, type] = _LazyClasses()


def make_source(name: str, input_path: Path | str | None, options: Mapping[str, str]) -> Source:
    """The source ``name`` with its options parsed from text.

    Raises:
        ValueError: an unknown source or option (naming those that exist), a value of the wrong type, a missing or superfluous input.
    """
    if name not in SOURCES:
        raise ValueError(f"unknown source {name!r}{_suggestion(name, SOURCES)}; there are {', '.join(SOURCES)}")
    try:
        source_class = SOURCES[name]
    except ImportError as error:
        raise ValueError(f"source {name!r} cannot be loaded ({error}); install what it needs") from error
    fields = option_types(source_class)
    arguments: dict[str, Any] = {}
    for option, text in options.items():
        if option not in fields:
            raise ValueError(f"source {name!r} has no option {option!r}{_suggestion(option, fields)}; it has {', '.join(fields) or 'none'}")
        arguments[option] = _parse(f"option {option!r} of source {name!r}", fields[option], text)
    takes_input = INPUT_FIELD in {field.name for field in dataclasses.fields(source_class)}
    if takes_input and input_path is None:
        raise ValueError(f"source {name!r} reads a folder: give it with --input")
    if not takes_input and input_path is not None:
        raise ValueError(f"source {name!r} reads no folder: leave --input {input_path} out")
    return source_class(Path(input_path), **arguments) if input_path is not None else source_class(**arguments)


def option_types(source_class: type) -> dict[str, type]:
    """Option name -> type (int, float, bool, str or Path), in the order of the dataclass's fields."""
    hints = typing.get_type_hints(source_class)
    return {field.name: hints[field.name] for field in dataclasses.fields(source_class) if field.init and field.name != INPUT_FIELD}


def _parse(what: str, kind: type, text: str) -> Any:
    if kind is bool:
        if text.lower() in TRUE_WORDS + FALSE_WORDS:
            return text.lower() in TRUE_WORDS
        raise ValueError(f"{what}: {text!r} is neither true nor false")
    if kind not in (int, float, str, Path):
        raise ValueError(f"{what} cannot be set from the command line (its type is {kind})")
    try:
        return kind(text)
    except ValueError as error:
        raise ValueError(f"{what}: {text!r} is not {'a whole number' if kind is int else 'a number'}") from error


def _suggestion(word: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
