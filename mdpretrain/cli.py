"""The command line: ``mdpretrain fit | validate | label | evaluate | predict | export | plan | sweep | ...`` (HELP lists all verbs).

``fit`` and ``validate`` are LightningCLI with stacked, strict YAML recipes; the other verbs are plain functions of their
rooms, imported when called. A user's mistake ends in one sentence on stderr and exit code 2; ``--debug`` (or
MDPRETRAIN_DEBUG=1) shows the traceback instead.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable

from mdpretrain.engine.stop_request import listening

HELP = """usage: mdpretrain VERB [options]

  fit          train: mdpretrain fit --config A.yaml [--config B.yaml ...] [--key value ...] [--resume]
  validate     the validation loss of a checkpoint: the same options and --ckpt_path
  label        write a teacher's pseudo-labels as shards
  evaluate     metrics, baselines and a report
  predict      depth, colours and a point cloud from one image
  consolidate  one small file (.safetensors) from a run's newest checkpoint, also from a DeepSpeed folder
  import-weights  released PromptDA, Depth Anything V2 or MetricAnything student weights -> a checkpoint
  export       a checkpoint -> a folder to give away, an ONNX file, transformers' or a release's own format
  replay       compute a skipped step of a run anew: mdpretrain replay RUN/incidents/step_XXXXXXXX.json
  plan         what a run will take: memory, time, passes, the batch script
  bench        measure strategies on this machine and recommend one: mdpretrain bench strategy RECIPE
  audit        prove what a run was trained on: nothing lost, nothing repeated
  sweep        a recipe at several values of an option, over seeds: the curve, its law and its band

`mdpretrain VERB --help` lists a verb's options. --debug shows tracebacks of user errors.
"""

# numpy and scipy only do small things here (Delaunay, colour matrices), and their BLAS would start a thread a core that spins while
# torch needs the cores: training with prompts was ten times slower. Read when numpy is first imported, so it stands before that.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# verb -> module and function; each takes the arguments after the verb and returns an exit code
COMMANDS = {
    "fit": ("mdpretrain.training_cli", "run_training"),
    "validate": ("mdpretrain.training_cli", "run_training"),
    "label": ("mdpretrain.labeling.command", "label_command"),
    "evaluate": ("mdpretrain.evaluation.command", "evaluate_command"),
    "predict": ("mdpretrain.evaluation.command", "predict_command"),
    "consolidate": ("mdpretrain.engine.consolidate", "consolidate_command"),
    "import-weights": ("mdpretrain.export.command", "import_weights_command"),
    "export": ("mdpretrain.export.command", "export_command"),
    "replay": ("mdpretrain.replay_command", "replay_command"),
    "plan": ("mdpretrain.planning.command", "plan_command"),
    "bench": ("mdpretrain.planning.bench_strategy", "bench_command"),
    "audit": ("mdpretrain.data.audit_command", "audit_command"),
    "sweep": ("mdpretrain.sweeps.command", "sweep_command"),
}


def main(argv: list[str] | None = None) -> int:
    """Run one verb.

    Args:
        argv: Arguments without the program's name; those of the process when left out. Training on several local processes
            starts the others from the process's own arguments, so it needs ``argv`` to be left out.

    Returns:
        0, or 2 after a user's mistake.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = os.environ.get("MDPRETRAIN_DEBUG", "") not in ("", "0")
    if "--debug" in arguments:
        arguments.remove("--debug")
        debug = True
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0 if arguments else 2
    verb = arguments[0]
    if verb not in COMMANDS:
        print(f"mdpretrain: there is no verb {verb!r}; there are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    try:
        if verb == "fit":
            with listening():  # before torch is imported, which takes seconds: a signal that finds no handler kills
                return _command(verb)(arguments)
        return _command(verb)(arguments if verb == "validate" else arguments[1:])
    except (ValueError, OSError) as error:
        if debug:
            raise
        print(f"mdpretrain {verb}: {one_sentence(error)}", file=sys.stderr)
        return 2


def one_sentence(error: Exception) -> str:
    """An error as one line, with the file's name where the system only said 'No such file'."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return text or type(error).__name__


def _command(verb: str) -> Callable[[list[str]], int]:
    module, function = COMMANDS[verb]
    return getattr(importlib.import_module(module), function)


if __name__ == "__main__":
    sys.exit(main())
