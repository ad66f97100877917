"""Parses training commands as ``mdpretrain fit`` would, builds nothing, and prints the whole recipe of each: what a job will run.

Run by launch/slurm.py in a process of its own (torch takes seconds to import): a JSON list of argument lists on stdin, a JSON list on
stdout of either {"recipe": YAML} or {"error": sentence}.
"""

from __future__ import annotations

import json
import sys
from typing import NoReturn

from mdpretrain.training_cli import TrainingCLI


class Parsed(Exception):
    """Carries the recipe out of the command line before it builds anything."""


class ParseOnly(TrainingCLI):
    """The training command line up to the point where everything is known to be valid."""

    def before_instantiate_classes(self) -> NoReturn:
        """Stop here."""
        if self._option("run_dir") is None:
            raise ValueError("give the run a folder: --run-dir runs/NAME (or run_dir in the recipe)")
        raise Parsed(self._parser(self.subcommand).dump(self.config[self.subcommand], skip_none=False))


def resolve(arguments: list[str]) -> dict[str, str]:
    """The recipe of one ``fit`` command, or the sentence that says what is wrong with it."""
    try:
        ParseOnly(["fit", *arguments])
    except Parsed as parsed:
        return {"recipe": str(parsed)}
    except (ValueError, OSError) as error:
        return {"error": " ".join(str(error).split())}
    raise AssertionError("the command line stops before it builds anything")


if __name__ == "__main__":
    print(json.dumps([resolve(arguments) for arguments in json.load(sys.stdin)]))
