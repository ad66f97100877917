"""`mdpretrain plan`: arithmetic by hand, memory and time per strategy, sources from shards and told, warnings, script, sentences."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import subprocess

import pytest
import torch
import yaml
from shard_parts import write_folder
from test_fake_step import allocator_peak
from training_parts import STUDENT_NETWORK, build
from training_runs import recipe as run_recipe
from training_runs import write_recipe

from data_shards.mixture import MixtureSource
from mdpretrain.cli import main
from mdpretrain.engine.gpus import GPUS, gpu_named, gpu_of_device
from mdpretrain.losses.table import LossTable
from mdpretrain.networks.blank_batch import blank_batch
from mdpretrain.networks.fake_step import StepCost
from mdpretrain.planning.advice import warnings_of
from mdpretrain.planning.costs import ImageCost, PriorCost, image_cost
from mdpretrain.planning.memory import CONTEXT_BYTES, USABLE, largest_batch, memory_use
from mdpretrain.planning.plan import Cluster, make_plan
from mdpretrain.planning.recipe import PlannedRun, read_recipe
from mdpretrain.planning.report import report
from mdpretrain.planning.sbatch import limit_hours
from mdpretrain.planning.sources import plan_sources

PLAIN = StepCost(1, 10**13, 2 * 10**13, 40 * 10**9, 2 * 10**9)
RECOMPUTED = StepCost(1, 10**13, 3 * 10**13, 10 * 10**9, 2 * 10**9)
COST = ImageCost(10**9, 10**9, False, PLAIN, RECOMPUTED, None, ())
H200 = gpu_named("h200")


def planned(**changes) -> PlannedRun:
    """A run with round numbers."""
    run = PlannedRun(
        recipes=("r.yaml",),
        settings=(),
        run_dir="runs/r",
        network={},
        loss={},
        prior=None,
        image_size=(1000, 1000),
        batch_size=32,
        accumulate=1,
        max_steps=1000,
        precision="bf16-mixed",
        strategy="DDPStrategy",
        stage=None,
        nodes=2,
        devices=8,
        num_workers=4,
        sources=(MixtureSource("a", 3.0), MixtureSource("b", 1.0)),
        checkpoint_every=1000,
        keep_checkpoints=2,
        keeps_ema=False,
    )
    return dataclasses.replace(run, **changes)


def made(monkeypatch: pytest.MonkeyPatch, run: PlannedRun, cost: ImageCost = COST, told: dict | None = None, **cluster):
    """A plan whose costs per image are given instead of counted."""
    monkeypatch.setattr("mdpretrain.planning.plan.image_cost", lambda run: cost)
    return make_plan(run, Cluster(**{"nodes": 2, "gpus_per_node": 8, "gpu": H200, "utilisation": 0.5, **cluster}), told or {})


def test_memory_per_strategy_is_the_table_of_the_docstring():
    run, processes = planned(), 16
    use = {name: memory_use(run, COST, name, 2, processes, False) for name in ("ddp", "zero1", "zero2", "zero3", "zero2_offload")}
    giga = {
        name: [round(value / 1e9, 4) for value in (u.weights, u.gradients, u.optimiser, u.activations, u.host)] for name, u in use.items()
    }
    assert giga["ddp"] == [4, 4, 8, 2 * 38 + 2, 0]
    assert giga["zero1"] == [2, 2, 0.75, 2 * 38, 0]
    assert giga["zero2"] == [2, 0.125, 0.75, 2 * 38, 0]
    assert giga["zero3"] == [0.125 + 2, 0.125, 0.75, 2 * 38, 0]
    assert giga["zero2_offload"] == [2, 0.125, 0, 2 * 38, 0.75]
    assert use["ddp"].total == pytest.approx(94e9 + CONTEXT_BYTES)
    assert memory_use(dataclasses.replace(run, keeps_ema=True), COST, "ddp", 2, 16, False).ema == 4e9
    full = memory_use(dataclasses.replace(run, precision="32-true"), COST, "zero2", 1, 16, False)
    assert (full.weights, full.gradients, full.optimiser) == (4e9, 0.25e9, 0.75e9)
    half_frozen = dataclasses.replace(COST, trainable=5 * 10**8)
    part = memory_use(run, half_frozen, "ddp", 1, 16, False)
    assert (part.weights, part.gradients, part.optimiser) == (4e9, 2e9, 4e9)


def test_weights_gradients_and_optimiser_are_those_of_a_real_run_to_the_byte_and_activations_near():
    """A step of the real network in plain torch, by the sizes of what it holds and by the allocator's account of what it made."""
    loss = {"class_path": "mdpretrain.losses.table.LossTable", "init_args": {"terms": {"default": [{"name": "distance_balanced"}]}}}
    run = planned(network=STUDENT_NETWORK, loss=loss, image_size=(96, 128), precision="32-true")
    cost = image_cost(run)
    network, table = build(STUDENT_NETWORK).train(), LossTable(**loss["init_args"])
    optimizer = torch.optim.AdamW(network.parameters())
    batch = blank_batch(3, 96, 128)

    def step() -> None:
        table(network(batch), batch)[0].backward()

    step()
    optimizer.step()
    for parameter in network.parameters():
        parameter.grad.zero_()
    use = memory_use(run, cost, "ddp", 3, 1, False)
    parameters = list(network.parameters())
    assert use.weights == sum(parameter.nbytes for parameter in parameters)
    assert use.gradients == sum(parameter.grad.nbytes for parameter in parameters)
    moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    assert use.optimiser == sum(moment.nbytes for moment in moments)
    measured = allocator_peak(step)
    assert use.activations == pytest.approx(measured, rel=0.25), f"{use.activations} planned, {measured} measured"


def test_a_priors_weights_and_passes_count_and_its_memory_only_where_it_is_the_larger():
    light, heavy = (PriorCost(10**9, StepCost(1, 5 * 10**12, 0, peak, 0)) for peak in (10**9, 50 * 10**9))
    with_light, with_heavy = (dataclasses.replace(COST, prior=prior) for prior in (light, heavy))
    assert with_light.activation_bytes(2, False, True) == COST.activation_bytes(2, False, True)
    assert with_heavy.activation_bytes(2, False, True) == 100 * 10**9
    assert with_light.model_flops == 3.5 * 10**13 and with_light.step_flops(True) == 4.5 * 10**13
    assert memory_use(planned(), with_light, "ddp", 1, 16, False).weights == 8e9


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("strategy", ["ddp", "zero2", "zero3"])
def test_the_largest_batch_fits_and_one_more_does_not(strategy, checkpointing):
    run, limit = planned(), USABLE * H200.memory_bytes
    most = largest_batch(run, COST, strategy, 16, checkpointing, H200.memory_bytes)
    assert most >= 1
    assert memory_use(run, COST, strategy, most, 16, checkpointing).total <= limit
    assert memory_use(run, COST, strategy, most + 1, 16, checkpointing).total > limit
    if not checkpointing:  # 38 GB of one image
        assert largest_batch(run, COST, strategy, 16, checkpointing, gpu_named("l4").memory_bytes) == 0


def test_time_is_arithmetic_over_the_stated_part_of_the_peak(monkeypatch):
    plan = made(monkeypatch, planned())
    step = 2 * 3e13 / (0.5 * 989.4e12)
    assert plan.images == 2 and plan.chosen.step_s == pytest.approx(step)
    assert plan.samples_per_s == pytest.approx(32 / step) and plan.seconds == pytest.approx(1000 * step)
    by_name = {row.name: row for row in plan.rows}
    assert by_name["ddp", True].step_s == pytest.approx(step * 4 / 3)
    # a ring over two nodes: 2 (n - 1) / n of 4 bytes a gradient, and ZeRO in bfloat16 half of it
    assert plan.chosen.network_bytes == 4e9 and by_name["zero2", False].network_bytes == 2e9
    slow = made(monkeypatch, planned(), network_gbit=8.0)  # 4 s for the gradients, of which two thirds of the step are hidden
    assert slow.chosen.step_s == pytest.approx(step + 4 - 2 / 3 * step)
    assert any("nodes' network needs 4.00 s" in text for text in warnings_of(slow))
    assert plan.loader_cores_per_node == pytest.approx(32 / step / 2 * 0.05)
    assert plan.checkpoint_bytes == 12e9


def test_what_fits_is_recommended_with_the_least_work(monkeypatch):
    assert made(monkeypatch, planned()).recommended.name == ("ddp", False)
    wide = dataclasses.replace(COST, plain=StepCost(1, 10**13, 2 * 10**13, 44 * 10**9, 2 * 10**9))
    bigger = made(monkeypatch, planned(batch_size=48), wide)  # three images, 126 GB: beside DDP's 21 too much, beside ZeRO-1's 9 not
    assert bigger.recommended.name == ("zero1", False) and not bigger.chosen.fits
    assert "use ZeRO-1" in warnings_of(bigger)[0]
    biggest = made(monkeypatch, planned(batch_size=160))
    assert biggest.recommended.name == ("ddp", True)
    none = made(monkeypatch, planned(batch_size=32 * 16))
    assert none.recommended is None and "set data.batch_size" in warnings_of(none)[0]
    heavy = dataclasses.replace(COST, recomputed=StepCost(1, 10**13, 3 * 10**13, 30 * 10**9, 2 * 10**9))
    hopeless = made(monkeypatch, planned(), heavy, gpu=gpu_named("l4"))
    assert "no strategy makes one image fit" in warnings_of(hopeless)[0]


def test_what_will_not_work_is_said(monkeypatch):
    def said(text: str, *args, **options) -> bool:
        return any(text in warning for warning in warnings_of(made(monkeypatch, *args, **options)))

    assert said("batch_size 33 does not divide over 16 processes, and training refuses it: set 32 or 48", planned(batch_size=33))
    assert said("ZeRO-3 is not needed: DDP fits", planned(strategy="DeepSpeed", stage=3))
    assert said("activation checkpointing is not needed", planned(), dataclasses.replace(COST, checkpointing=True))
    assert said("data too slow: decoding needs about", planned(), cpu_ms_per_sample=2000.0)
    assert said("keep the shards on node-local disks", planned(), bytes_per_sample=1e9)
    assert said("source a is shown 240 times", planned(), told={"a": 100})
    assert said("not known for a, b", planned())
    assert said("no trainer.max_steps", planned(max_steps=None))
    assert said("the recipe says 4 x 8 GPUs", planned(nodes=4))
    assert said("a checkpoint comes every", planned(checkpoint_every=100_000))
    assert said("a checkpoint of 12 GB every 12 s keeps the disks busy", planned(checkpoint_every=100))
    assert said("there is one: use ddp", planned(strategy="DeepSpeed", stage=2, batch_size=2), nodes=1, gpus_per_node=1)
    little = dataclasses.replace(COST, plain=StepCost(1, 10**10, 2 * 10**10, 10**9, 0))
    assert said("ruled by kernel launches", planned(), little) and not said("ruled by kernel launches", planned())
    quiet = made(monkeypatch, planned(), told={"a": 10**6, "b": 10**6})
    assert warnings_of(quiet) == [] and "No warnings" in report(quiet)


def test_sources_follow_the_mixture_by_what_is_told():
    rows = (MixtureSource("x/a", 3.0), MixtureSource("x/b", 1.0, max_passes=2.0), MixtureSource("s3://bucket/c", 1.0))
    plan = plan_sources(rows, {"a": 1000, "b": 50}, 5000)
    a, b, c = plan.sources
    assert (b.draws, b.passes) == (100, 2.0)  # it leaves after its two passes, and the others share its part three to one
    assert a.draws + b.draws + c.draws == 5000 and a.draws == pytest.approx(3 * c.draws, rel=0.02) and a.passes == a.draws / 1000
    assert c.samples is None and c.passes is None and "remote" in c.origin and a.origin == "told"
    ends = plan_sources((MixtureSource("a", 1.0, max_passes=1.0),), {"a": 10}, 11).ends_early
    assert ends is not None and "ends after 10 samples" in ends
    with pytest.raises(ValueError, match="--source-samples d: the mixture has a, b, c"):
        plan_sources(rows, {"d": 1}, 10)


def test_the_command_plans_a_recipe_with_its_shards(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]):
    write_folder(tmp_path / "train", 22)
    write_folder(tmp_path / "val", 2, first=100)
    file = write_recipe(tmp_path / "run.yaml", {**run_recipe(tmp_path), "run_dir": "runs/tiny"})
    options = ["--nodes", "1", "--gpus-per-node", "2", "--gpu", "4090"]
    outputs = ["--json", str(tmp_path / "plan.json"), "--sbatch", str(tmp_path / "job.sh")]
    assert main(["plan", file, *options, *outputs, "--set", "trainer.max_steps=11"]) == 0
    text = capsys.readouterr().out
    assert "4 images of 48 x 64 over 2 GPUs = 2 per GPU; 11 steps, 44 samples" in text and "2.00 passes on average" in text
    record = json.loads((tmp_path / "plan.json").read_text())
    assert record["sources"] == [{"name": "train", "share": 1.0, "samples": 22, "drawn": 44, "passes": 2.0}]
    with torch.device("meta"):
        content = yaml.safe_load(pathlib.Path(file).read_text())["model"]["init_args"]["network"]
        from mdpretrain.networks.module_config import build_module

        assert record["parameters"] == sum(parameter.numel() for parameter in build_module(content).parameters())
    assert record["backward_flops"] > record["forward_flops"] > 0
    assert record["recommended"] == "DDP" and len(record["memory"]) == 10 and all(row["fits"] for row in record["memory"])
    script = (tmp_path / "job.sh").read_text()
    assert "#SBATCH --job-name=tiny\n" in script and "#SBATCH --ntasks-per-node=2\n" in script and "#SBATCH --time=1:00:00\n" in script
    assert f"fit --config {file} --trainer.max_steps 11 --trainer.accelerator gpu" in script and "--resume" in script
    assert subprocess.run(["bash", "-n", str(tmp_path / "job.sh")], check=False).returncode == 0
    (tmp_path / "site.yaml").write_text("{partition: fast, time: '0:30:00', nodes: 2, gpus_per_node: 1, modules: [cuda/13]}")
    assert main(["plan", file, "--cluster", str(tmp_path / "site.yaml"), "--gpu", "4090", "--sbatch", str(tmp_path / "job.sh")]) == 0
    script = (tmp_path / "job.sh").read_text()
    assert (
        all(f"#SBATCH --{option}\n" in script for option in ("partition=fast", "time=0:30:00", "nodes=2"))
        and "module load cuda/13" in script
    )
    assert "4 images of 48 x 64 over 2 GPUs" in capsys.readouterr().out

    assert main(["plan", file, "--nodes", "1", "--gpus-per-node", "3", "--gpu", "4090"]) == 1
    assert "does not divide over 3 processes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("time", "hours"),
    [("90", 1.5), ("30:36", 0.51), ("2:30:00", 2.5), ("1-12", 36), ("1-12:30", 36.5), ("2-00:00:36", 48.01), ("UNLIMITED", float("inf"))],
)
def test_time_limits_are_read_as_slurm_reads_them(time: str, hours: float) -> None:
    assert limit_hours(time) == pytest.approx(hours)


def test_a_recipe_without_its_mixture_is_planned_and_told_what_it_lacks(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], repository: pathlib.Path
):
    content = yaml.safe_load((repository / "recipes/debug/student_depthmap.yaml").read_text())
    del content["data"]["train"], content["data"]["val"]
    (tmp_path / "bare.yaml").write_text(yaml.safe_dump(content))
    assert main(["plan", str(tmp_path / "bare.yaml"), "--gpu", "4090", "--nodes", "1", "--gpus-per-node", "1"]) == 0
    printed = capsys.readouterr().out
    assert "M parameters" in printed and "the recipe names no data" in printed
    with pytest.raises(ValueError, match="no source"):
        plan_sources([], {"hypersim": 3}, 10)


def test_mistakes_are_sentences(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], repository: pathlib.Path):
    debug = str(repository / "recipes/debug/student_depthmap.yaml")
    for arguments, sentence in (
        ([debug, "--gpu", "h2000"], "--gpu h2000: not in the table"),
        ([str(tmp_path / "none.yaml")], "there is no recipe"),
        ([debug, "--source-samples", "train"], "--source-samples train: write NAME=N"),
        ([debug, "--set", "data.batchsize=3"], "batchsize"),
        ([debug, "--mfu", "40"], "--mfu between 0 and 1"),
    ):
        assert main(["plan", *arguments]) == 2
        assert sentence in capsys.readouterr().err
    twice = {"data": {"train": [{"path": "x/train"}, {"path": "y/train"}]}}
    (tmp_path / "twice.yaml").write_text(yaml.safe_dump(twice))
    with pytest.raises(ValueError, match="train"):
        read_recipe([debug, str(tmp_path / "twice.yaml")])


def test_devices_are_found_by_what_the_driver_calls_them():
    names = {
        "NVIDIA H200": "h200",
        "NVIDIA H100 80GB HBM3": "h100",
        "NVIDIA H100 PCIe": "h100-pcie",
        "NVIDIA A100-SXM4-80GB": "a100-80",
        "NVIDIA A100-SXM4-40GB": "a100-40",
        "NVIDIA L40S": "l40s",
        "NVIDIA L4": "l4",
        "NVIDIA GeForce RTX 4090": "4090",
        "NVIDIA B200": "b200",
    }
    assert {name: gpu_of_device(name).name for name in names} == names
    assert gpu_of_device("NVIDIA L40") is None or gpu_of_device("NVIDIA L40").name != "l40s"
    assert gpu_of_device("Tesla V100-SXM2-16GB") is None
    assert all(gpu.bf16_tflops > 0 and gpu.memory_mib > 20_000 for gpu in GPUS.values())
