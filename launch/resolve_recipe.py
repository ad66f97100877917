"""Parses training commands as ``mdpretrain fit`` would, builds nothing, and prints the whole recipe of each: what a job will run.

Run by launch/slurm.py in a process of its own (torch takes seconds to import): a JSON list of argument lists on stdin, a JSON list on
stdout of either {"recipe": YAML, "run_dir": folder} or {"error": sentence}.
"""

from __future__ import annotations

import json
import sys

from mdpretrain.training_cli import RecipeParser


def resolve(arguments: list[str]) -> dict[str, str]:
    """The recipe of one ``fit`` command, or the sentence that says what is wrong with it."""
    try:
        parsed = RecipeParser(["fit", *arguments])
        return {"recipe": parsed.recipe_text(), "run_dir": str(parsed.run_dir)}  # a run without a folder is an error
    except (ValueError, OSError) as error:
        return {"error": " ".join(str(error).split())}


if __name__ == "__main__":
    print(json.dumps([resolve(arguments) for arguments in json.load(sys.stdin)]))
