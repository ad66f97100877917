"""The options of ``mdpretrain label``, on the command line and in a strict YAML file."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from data_shards.cli_verb import path_or_address
from mdpretrain.labeling.requests import CONSISTENCY
from mdpretrain.tasks.predictor import add_weights_option


def label_parser() -> argparse.ArgumentParser:
    """All options; each is also a key of a ``--config`` file, without the dashes in front and with _ for -."""
    parser = argparse.ArgumentParser(
        prog="mdpretrain label",
        description="Write a teacher's depth beside shards as sidecars (or as whole shards), or a prior's.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", type=Path, action="append", help="YAML with these options as keys; the command line comes after it")
    parser.add_argument(
        "--checkpoint", type=Path, help="the teacher (or, --as prior, a network without prompt): a run, a file, a model folder"
    )
    parser.add_argument("--prior-model", type=Path, help="--as prior: a depth model's folder as transformers' save_pretrained writes it")
    parser.add_argument(
        "--as", dest="kind", choices=("pseudo", "prior"), default="pseudo", help="prior: sidecars with inverse depth for StoredPrior"
    )
    parser.add_argument("--shards", type=path_or_address, help="folder of shards to label, local or http(s)://, s3://, gs://")
    parser.add_argument("--sidecars", type=path_or_address, nargs="+", default=[], help="folders that join the samples, e.g. stored priors")
    parser.add_argument("--output", type=Path, help="folder to write; the same call continues an interrupted one")
    parser.add_argument("--whole", action=_SWITCH, default=False, help="self-contained shards with the images instead of sidecars")
    _add_teacher_options(parser)
    run = parser.add_argument_group("how it runs (decides no label, but for rounding)")
    run.add_argument("--batch-size", type=int, default=8)
    run.add_argument("--decode-threads", type=int, default=2, help="read and decode ahead of the network")
    run.add_argument("--encode-threads", type=int, default=2, help="encode and write behind it")
    run.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: the GPU where there is one)")
    run.add_argument("--task-id", type=int, help="label only the share of this task, counted from 0 (default: SLURM's job array)")
    run.add_argument("--num-tasks", type=int, help="how many tasks share the shards; the last to end completes the folder")
    run.add_argument("--quiet", action=_SWITCH, default=False, help="no progress bar")
    return parser


_SWITCH = argparse.BooleanOptionalAction


def _add_teacher_options(parser: argparse.ArgumentParser) -> None:
    labels = parser.add_argument_group("what the labels are (all of it goes into the folder's fingerprint)")
    labels.add_argument("--prompt-count", type=int, nargs=2, metavar=("LOW", "HIGH"), help="points of a prompted teacher's prompt")
    labels.add_argument("--without-prior", action=_SWITCH, default=False, help="let a teacher work from its prompt alone")
    labels.add_argument(
        "--long-side", type=int, default=518, help="long side of the label in pixels; with --tiles, the largest (default 518)"
    )
    labels.add_argument("--multiple", type=int, default=14, help="both sides become multiples of this: the patch size (default 14)")
    labels.add_argument("--seed", type=int, default=0, help="of the prompts")
    labels.add_argument("--flip", action=_SWITCH, default=False, help="the mean of the image's and the mirrored image's depth")
    labels.add_argument("--prompts", type=int, default=1, metavar="N", help="the mean over N prompts")
    labels.add_argument(
        "--consistency",
        nargs="*",
        default=[],
        metavar="PASS",
        help=f"passes that judge the label: {', '.join(CONSISTENCY)} (also with commas)",
    )
    labels.add_argument(
        "--tiles", type=int, metavar="SIDE", help="show the network overlapping crops of this side at the image's resolution"
    )
    labels.add_argument("--precision", choices=("32", "bf16"), help="of the networks (default: bf16 on a GPU, else 32)")
    labels.add_argument(
        "--unknown-camera",
        choices=("reject", "canonical", "estimate"),
        default="reject",
        help="where the depth needs the camera: leave the sample out, write depth without metres, or use the teacher's own focal length",
    )
    add_weights_option(parser)


def parse_label_options(argv: Sequence[str]) -> argparse.Namespace:
    """The options of a call, those of its ``--config`` files included.

    Raises:
        ValueError: a file that cannot be read, an unknown key (named, with the file), or a required option that is nowhere.
    """
    parser = label_parser()
    files = parser.parse_args(list(argv)).config or []
    given = [argument for file in files for argument in _arguments_of(file, parser)]
    options = parser.parse_args([*given, *argv])
    if (options.checkpoint is None) == (options.prior_model is None):
        raise ValueError("give --checkpoint, or for --as prior --prior-model, and one of them only")
    for name in ("shards", "output"):
        if getattr(options, name) is None:
            raise ValueError(f"--{name} is missing: give it, or write `{name}:` into the --config file")
    options.consistency = tuple(name for part in options.consistency for name in part.split(",") if name)
    return options


def _arguments_of(file: Path, parser: argparse.ArgumentParser) -> list[str]:
    """A file's keys as the command line would have them, so that one parser checks both."""
    try:
        content = yaml.safe_load(file.read_text())
    except OSError as error:
        raise ValueError(f"{file}: cannot be read ({error.strerror})") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{file}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{file}: holds no options; write one `key: value` a line")
    options = {name.removeprefix("--").replace("-", "_"): action for action in parser._actions for name in action.option_strings}
    known = sorted(name for name in options if len(name) > 1 and name not in ("help", "config") and not name.startswith("no_"))
    arguments: list[str] = []
    for key, value in content.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            raise ValueError(
                f"{file}: unknown key {key!r}" + (f"; do you mean {near[0]!r}?" if near else f"; there are {', '.join(known)}")
            )
        arguments += _argument(file, str(key), value)
    return arguments


def _argument(file: Path, key: str, value: Any) -> list[str]:
    option = "--" + key.replace("_", "-")
    if value is None:
        return []
    if isinstance(value, bool):
        return [option if value else f"--no-{key.replace('_', '-')}"]
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(one, str | int | float) for one in values):
        raise ValueError(f"{file}: {key} is {value!r}; give a value, or a list of values")
    return [option, *map(str, values)]
