"""``mdpretrain fit`` and ``validate``: LightningCLI with strict stacked recipes, one run folder, and one flag to resume.

runs/NAME/config.yaml        what runs, every default written out
runs/NAME/checkpoints/       step_00001000.ckpt ..., latest
runs/NAME/csv/metrics.csv    one row per logged step; tensorboard/ and wandb/ beside it
runs/NAME/ledger/            with --ledger: every sample that was trained on; `mdpretrain audit runs/NAME` checks them
"""

from __future__ import annotations

import itertools
import logging
import os
import pathlib
import re
import sys
import warnings
from typing import Any, Literal, NoReturn

import mdpretrain.compat  # noqa: F401  (before lightning)

# isort: split
import lightning
import torch
import yaml
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import Logger
from torch import nn

from mdpretrain.data.datamodule import ShardDataModule
from mdpretrain.data.ledger import LEDGER_FOLDER
from mdpretrain.engine.callbacks import ChannelsLast, ProgressLines
from mdpretrain.engine.checkpoint_folder import write_text
from mdpretrain.engine.checkpoint_loading import prepare_loading
from mdpretrain.engine.checkpoint_pace import CheckpointOptions
from mdpretrain.engine.checkpointing import RunCheckpoints
from mdpretrain.engine.csv_log import CsvLog
from mdpretrain.engine.ema import Ema
from mdpretrain.engine.meta_build import building_device, hands_out_parameters
from mdpretrain.engine.owed_validation import OwedValidation
from mdpretrain.engine.preemption import StopAtSignal, StoppedBySignal, cluster_plugins, finish_stop
from mdpretrain.engine.recomputation import ActivationCheckpointing, CompileNetwork
from mdpretrain.engine.step_guard import StepGuard, StepGuardOptions
from mdpretrain.engine.step_seed import StepSeed
from mdpretrain.evaluation.observers import add_options, observers
from mdpretrain.networks.checkpoint_files import FOLDER, find_checkpoint, newest_checkpoint
from mdpretrain.networks.module_config import record_and_build

TRAINER_DEFAULTS: dict[str, Any] = {
    "max_epochs": -1,  # runs are counted in steps
    "use_distributed_sampler": False,  # the stream hands every rank its part itself
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 10,
    "check_val_every_n_epoch": None,
}


class StrictParser(LightningArgumentParser):
    """A parser whose complaints are ValueErrors: the command line prints them as one sentence."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise instead of printing a usage of two hundred options."""
        raise ValueError(readable(message)) from ex


def readable(message: str) -> str:
    """jsonargparse's complaint without its list of union types: ``model: network: Option 'widht' is not accepted``."""
    text = " ".join(message.split())
    text = re.sub(r"Does not validate against any of the Union subtypes Subtypes: \[.*?\] Errors: - ", "", text)
    text = re.sub(r" - Expected a <class 'NoneType'>.*$", "", text)
    return re.sub(r'Parser key "([^"]+)":', r"\1:", text)


class SaveRunConfig(SaveConfigCallback):
    """Writes ``config.yaml`` into the run folder."""

    def save_config(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Replace it in one step; a resumed run writes what it now runs with."""
        if stage == "fit":
            folder = pathlib.Path(trainer.default_root_dir)
            folder.mkdir(parents=True, exist_ok=True)
            write_text(folder / "config.yaml", self.parser.dump(self.config, skip_none=False))


class TrainingCLI(LightningCLI):
    """Joins a task, the data and the engine, as the recipes say."""

    def __init__(self, args: ArgsType = None) -> None:
        super().__init__(
            model_class=lightning.LightningModule,
            datamodule_class=ShardDataModule,
            subclass_mode_model=True,
            save_config_callback=SaveRunConfig,
            save_config_kwargs={"save_to_log_dir": False},
            trainer_defaults=TRAINER_DEFAULTS,
            seed_everything_default=0,
            parser_class=StrictParser,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=args,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Only what a recipe can run."""
        return {
            "fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule", "weights_only"},
            "validate": {"model", "dataloaders", "datamodule", "weights_only"},
        }

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The run's own options; a recipe sets them like any other key."""
        parser.add_argument("--run_dir", type=str, help="folder of this run, e.g. runs/my_teacher")
        parser.add_argument(
            "--resume", action="store_true", help="continue from the newest whole checkpoint of run_dir; start where there is none"
        )
        parser.add_argument("--checkpoint_every_n_steps", type=int, default=1000, help="optimiser steps between checkpoints")
        parser.add_argument("--checkpoint_every_minutes", type=float, default=None, help="also after so many minutes without one")
        parser.add_argument("--keep_checkpoints", type=int, default=2, help="how many of the newest checkpoints stay")
        parser.add_argument("--milestone_every_n_steps", type=int, default=None, help="checkpoints of these steps stay for ever")
        parser.add_argument("--best_metric", type=str, default=None, help="keep the checkpoint where this is best, e.g. val/loss")
        parser.add_argument("--best_direction", type=Literal["min", "max"], default="min", help="which best_metric is better")
        parser.add_argument("--progress_every_s", type=float, default=10.0, help="seconds between two progress lines")
        parser.add_argument("--tensorboard", type=bool, default=True, help="write TensorBoard event files")
        parser.add_argument(
            "--wandb",
            type=Literal["off", "offline", "online"],
            default="offline",
            help="Weights & Biases; only 'online' sends anything",
        )
        parser.add_argument("--channels_last", type=bool, default=False, help="convolutions with channels last: faster, the same sums")
        parser.add_argument("--activation_checkpointing", type=list[str], default=[], help="parts to recompute, e.g. [encoder, decoder]")
        parser.add_argument("--compile", type=bool, default=False, help="compile the network: a slow first step, faster ones after it")
        parser.add_class_arguments(StepGuardOptions, "step_guard")
        parser.add_argument("--ema_decay", type=float, default=0.0, help="keep an average of the weights, e.g. 0.9999; 0 is off")
        parser.add_argument("--ema_validate", type=bool, default=True, help="with ema_decay: validate the averaged weights")
        add_options(parser)
        parser.add_argument("--ledger", type=bool, default=False, help="write down every sample that is trained on")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """As LightningCLI, without its warning about arguments given from Python.

        Raises:
            ValueError: an unknown key or a value of the wrong type, named; a recipe that is not there.
        """
        for path in _recipe_paths(args if isinstance(args, list) else []):
            _check_class_records(yaml.safe_load(path.read_text()), path)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*args parameter is intended to run from within Python.*")
            super().parse_arguments(parser, args)

    def _parse_ckpt_path(self) -> None:
        """``--ckpt_path`` may be a checkpoint, ``latest``, ``best`` or a run folder; nothing of the recipe is read there."""
        options = self.config[self.config["subcommand"]]
        if options.get("ckpt_path"):
            options["ckpt_path"] = str(find_checkpoint(pathlib.Path(options["ckpt_path"])))

    def instantiate_classes(self) -> None:
        """Build everything, remembering how each module was built."""
        self._refuse_overwriting(self.run_dir)
        on_meta = self.subcommand == "fit" and hands_out_parameters(self._get(self.config, "trainer").get("strategy"))

        def build(cls: type, *args: Any, **init_args: Any) -> Any:
            with building_device(on_meta):
                return record_and_build(cls, *args, **init_args)

        self.config_init = self.parser.instantiate(self.config, instantiators=[(build, nn.Module, True)])
        self.datamodule = self._get(self.config_init, "data")
        if self._option("ledger"):
            self.datamodule.write_ledger(self.run_dir / LEDGER_FOLDER)
        self.model = self._get(self.config_init, "model")
        self.trainer = self.instantiate_trainer()

    def instantiate_trainer(self, **kwargs: Any) -> lightning.Trainer:
        """The recipe's trainer with the run's loggers and callbacks."""
        seed = self._option("seed_everything")
        options: StepGuardOptions = self._get(self.config_init, "step_guard")
        guard = StepGuard(options, int(seed)) if options.enabled else None
        decay = self._option("ema_decay")
        callbacks: list[lightning.Callback] = [StepSeed(int(seed)), *([guard] if guard else [])]
        callbacks += [Ema(decay, guard, self._option("ema_validate"))] if decay else []
        callbacks.append(ProgressLines(self._option("progress_every_s")))
        checkpoints = RunCheckpoints(self.run_dir / FOLDER, self._checkpoint_options(), self.recipe_text())
        callbacks += [checkpoints, StopAtSignal(checkpoints), OwedValidation()]
        callbacks += [ChannelsLast()] if self._option("channels_last") else []
        callbacks += [ActivationCheckpointing(parts)] if (parts := self._option("activation_checkpointing")) else []
        callbacks += [CompileNetwork()] if self._option("compile") else []
        callbacks += observers(self._option, self.run_dir)
        self.trainer_defaults = {**self.trainer_defaults, "callbacks": callbacks}
        fitting = self.subcommand == "fit"
        if plugins := cluster_plugins():
            kwargs["plugins"] = [*(self._get(self.config_init, "trainer").plugins or []), *plugins]
        trainer = super().instantiate_trainer(default_root_dir=str(self.run_dir), logger=self._loggers() if fitting else False, **kwargs)
        prepare_loading(trainer, self.run_dir / FOLDER if fitting and self._option("resume") else None)
        return trainer

    @property
    def run_dir(self) -> pathlib.Path:
        """The run's folder.

        Raises:
            ValueError: neither the recipe nor the command line names one.
        """
        if self._option("run_dir") is None:
            raise ValueError("give the run a folder: --run_dir runs/NAME (or run_dir in the recipe)")
        return pathlib.Path(self._option("run_dir"))

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        arguments = super()._prepare_subcommand_kwargs(subcommand)
        if subcommand == "fit" and self._option("resume"):
            newest = newest_checkpoint(self.run_dir)
            arguments["ckpt_path"] = str(newest) if newest is not None else arguments.get("ckpt_path")
            print(f"resuming from {newest}" if newest else f"{self.run_dir} has no checkpoint yet: starting", file=sys.stderr)
        return arguments

    def _refuse_overwriting(self, run_dir: pathlib.Path) -> None:
        if self.subcommand == "fit" and not self._option("resume") and (newest := newest_checkpoint(run_dir)):
            raise ValueError(f"{run_dir} already holds a run ({newest.name}): give --resume to continue it, or another --run_dir")

    def _checkpoint_options(self) -> CheckpointOptions:
        every = {"every_n_steps": "checkpoint_every_n_steps", "every_minutes": "checkpoint_every_minutes", "keep": "keep_checkpoints"}
        same = ("milestone_every_n_steps", "best_metric", "best_direction")
        return CheckpointOptions(**{name: self._option(key) for name, key in (every | {name: name for name in same}).items()})

    def recipe_text(self) -> str:
        """The resolved recipe, as ``config.yaml`` of the run folder has it."""
        return self._parser(self.subcommand).dump(self.config.get(self.subcommand, self.config), skip_none=False)

    def _loggers(self) -> list[Logger]:
        loggers: list[Logger] = [CsvLog(self.run_dir / "csv")]
        if self._option("tensorboard"):
            loggers.append(TensorBoardLogger(self.run_dir, name="tensorboard", version=""))
        if self._option("wandb") != "off":
            offline = self._option("wandb") == "offline"
            if offline:
                os.environ["WANDB_MODE"] = "offline"  # the logger's own flag alone asks for a key in a process that logged before
            loggers.append(WandbLogger(name=self.run_dir.name, save_dir=str(self.run_dir), project="mdpretrain", offline=offline))
        return loggers

    def _option(self, name: str) -> Any:
        return self._get(self.config, name)


class RecipeParser(TrainingCLI):
    """``fit`` up to the point where everything is known to be valid: its ``config`` is the recipe, and nothing is built or run."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {"fit": TrainingCLI.subcommands()["fit"]}

    def instantiate_classes(self) -> None:
        self.model = self.trainer = self.datamodule = None  # type: ignore[assignment]

    def _run_subcommand(self, subcommand: str) -> None:
        """Nothing runs."""


def run_training(arguments: list[str]) -> int:
    """``fit`` or ``validate`` with the arguments that follow."""
    torch.set_float32_matmul_precision("high")
    _quieten()
    try:
        TrainingCLI(arguments)
    except StoppedBySignal as stop:
        return finish_stop(stop)
    return 0


def _recipe_paths(arguments: list[str]) -> list[pathlib.Path]:
    """The files given by ``--config FILE``, ``--config=FILE`` and ``-c FILE``."""
    paths = [after for flag, after in itertools.pairwise(arguments) if flag in ("--config", "-c")]
    paths += [argument.split("=", 1)[1] for argument in arguments if argument.startswith("--config=")]
    for path in paths:
        if not pathlib.Path(path).is_file():
            raise ValueError(f"there is no recipe {path}")
    return [pathlib.Path(path) for path in paths]


def _check_class_records(content: Any, path: pathlib.Path) -> None:
    """A misspelt ``init_args`` beside a ``class_path`` is the one typo that jsonargparse cannot name.

    Raises:
        ValueError: such a key.
    """
    if isinstance(content, dict):
        unknown = sorted(set(content) - {"class_path", "init_args"}) if "class_path" in content else []
        if unknown:
            raise ValueError(f"{path}: {unknown[0]!r} beside class_path {content['class_path']!r}; only init_args may stand there")
    for value in content.values() if isinstance(content, dict) else content if isinstance(content, list) else []:
        _check_class_records(value, path)


def _quieten() -> None:
    """Leave out what Lightning says to everybody; its warnings about this run stay."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*LeafSpec.*",  # Lightning's own use of torch's pytree
        ".*You have overridden `transfer_batch_to_device`.*",  # on purpose: moves without waiting
        ".*DeepSpeed handles gradient clipping internally.*",  # with the same gradient_clip_val; the task's hook only logs
        ".*all_gather_into_tensor.*",  # DeepSpeed's use of torch
        ".*module\\(s\\) in eval mode at the start.*",  # frozen networks, on purpose
        ".*is smaller than the logging interval.*",  # steps are counted over passes
        ".*does not have many workers.*",  # the recipe says how many
        ".*`broadcast_buffers` is deprecated.*",  # its successor still exchanges buffers at the start
        ".*The `srun` command is available.*",  # a machine with SLURM may be used without it
    ):
        warnings.filterwarnings("ignore", message=message)
