"""A student's row chooses labels by their figures: what is drawn changes with the recipe, and the labels stay as they are."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import yaml
from label_folders import write_labels
from stream_runs import make_module
from tiny_shards import write_folder

from data_shards.cli import main
from data_shards.mixture import MixtureSource
from data_shards.schema import LABEL_KINDS, LabelKind
from mdpretrain.data.source_reader import SourceReader
from mdpretrain.labeling.quality import FIGURES

# 12 samples: the figures of the first ten, of which one has no second pass and one nothing measured; two have no label
CONSISTENCY = [0.9, 0.2, 0.6, None, 0.95, 0.7, 0.59, 0.8, 0.61, 1.0]
ABS_REL = [0.05, 0.05, 0.2, 0.05, None, 0.21, 0.1, 0.3, 0.19, 0.0]
ROW = {"consistency": (0.6, None), "abs_rel_aligned": (None, 0.2)}
KEPT = [f"one/{n:04d}" for n in (0, 2, 8, 9)]


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    originals = write_folder(tmp_path / "one", [5, 7], "one")
    pairs = enumerate(zip(CONSISTENCY, ABS_REL, strict=True))
    figures = {
        f"one/{n:04d}": dict.fromkeys(FIGURES, 0.5) | {"consistency": consistency, "abs_rel_aligned": error}
        for n, (consistency, error) in pairs
    }
    return originals, write_labels(originals, tmp_path / "labels", figures)


def content_of(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_a_row_draws_the_labels_within_its_bounds_and_others_without_relabelling(folders: tuple[Path, Path], tmp_path: Path) -> None:
    originals, labels = folders
    before = content_of(labels)
    filtered = MixtureSource(str(originals), sidecars=[str(labels)], figures=ROW)
    assert SourceReader(filtered).keys() == KEPT
    module = make_module(tmp_path, train=[filtered], steps_per_epoch=4)
    module.setup("fit")
    batches = list(module.train_dataloader())
    assert {key for batch in batches for key in batch.key} == set(KEPT)
    for batch in batches:
        assert set(batch.label_kind.tolist()) == {LABEL_KINDS.index(LabelKind.PSEUDO)}
        assert batch.confidence is not None and 0.2 < float(batch.confidence.mean()) < 0.8
    stricter = MixtureSource(str(originals), sidecars=[str(labels)], figures={"consistency": (0.9, None)})
    assert SourceReader(stricter).keys() == [f"one/{n:04d}" for n in (0, 4, 9)]
    assert len(SourceReader(MixtureSource(str(originals), sidecars=[str(labels)]))) == 10
    assert content_of(labels) == before


def test_mix_counts_what_a_row_leaves_out(folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    originals, labels = folders
    recipe = tmp_path / "recipe.yaml"
    row = {"path": str(originals), "sidecars": [str(labels)], "figures": {name: list(bounds) for name, bounds in ROW.items()}}
    data = {"train": [row], "val": [], "image_size": [12, 16], "batch_size": 4}
    recipe.write_text(yaml.safe_dump({"data": data, "trainer": {"max_steps": 5}}))
    assert main(["mix", str(recipe), "--quiet"]) == 0
    out = capsys.readouterr().out
    assert "4 of 12" in out and "2 of its 12 samples have no label" in out
    row["figures"] = {"consistency": [1.1, None]}
    recipe.write_text(yaml.safe_dump({"data": data, "trainer": {"max_steps": 5}}))
    assert main(["mix", str(recipe), "--quiet"]) == 2
    assert "none of its 12 samples passes" in capsys.readouterr().err


def test_the_mixture_recipes_example_of_thresholds_can_be_used(folders: tuple[Path, Path]) -> None:
    """The commented line of recipes/mixtures/pseudo_labels.yaml names figures that labels have."""
    text = (Path(__file__).resolve().parents[2] / "recipes/mixtures/pseudo_labels.yaml").read_text()
    lines = [line.split("#", 1)[1].strip() for line in text.splitlines() if line.strip().startswith("#") and "figures: {" in line]
    assert len(lines) == 1
    row = yaml.safe_load(lines[0].removeprefix("- "))
    originals, labels = folders
    assert set(row["figures"]) <= set(FIGURES)
    assert SourceReader(MixtureSource(str(originals), sidecars=[str(labels)], figures=row["figures"])).keys()
