"""The label card: figures from the indexes alone, thresholds as a row reads them, chosen samples, one page that needs nothing else."""

from __future__ import annotations

import base64
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
from label_folders import write_labels
from storage_servers import nginx
from tiny_shards import CAMERA, HEIGHT, WIDTH, make_sample, plane_depth, write_folder

from data_shards import colour
from data_shards.index import load_index
from data_shards.mixture import MixtureSource
from data_shards.schema import DepthType
from data_shards.selection import combine, examine
from data_shards.shard_table import write_table
from data_shards.storage.storage import default_storage
from data_shards.writer import write_shard
from mdpretrain.cli import main
from mdpretrain.labeling.card import command
from mdpretrain.labeling.card.charts import chart, chart_png, kept_shares
from mdpretrain.labeling.card.label_table import LabelTable, read_label_table, read_thresholds, reject_reasons
from mdpretrain.labeling.card.page import panel_html
from mdpretrain.labeling.card.shown import FARTHEST, LEAST_CONSISTENT, MEDIAN, RANDOM, LabelReader, choose

CONSISTENCY = {f"desk/{n:04d}": n / 10 for n in range(9)}  # of ten; the last has no label
CONSISTENCY |= {"street/0000": 0.95, "street/0001": None}


@pytest.fixture
def originals(tmp_path: Path) -> Path:
    folder = tmp_path / "originals"
    folder.mkdir()
    for shard, source, numbers in (("desk-0", "desk", range(6)), ("desk-1", "desk", range(6, 10)), ("street-0", "street", range(2))):
        write_shard(folder / f"{shard}.tar", [make_sample(f"{source}/{n:04d}", source) for n in numbers])
    return folder


def figures() -> dict[str, dict[str, float | None]]:
    return {
        key: {"consistency": value, "abs_rel_aligned": None if value is None else 0.3 - value / 4, "near_m": 2.0, "own": 1.0}
        for key, value in CONSISTENCY.items()
    }


@pytest.fixture(params=[False, True], ids=["sidecars", "whole"])
def labels(originals: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    return write_labels(originals, tmp_path / "labels", figures(), whole=request.param)


def picture_of(uri: str) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(base64.b64decode(uri.split(",", 1)[1]), np.uint8), cv2.IMREAD_COLOR)


class Page(HTMLParser):
    """Text, pictures and tables of a page; every tag must be closed."""

    VOID = ("meta", "img", "br")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.pictures: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(html)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "img":
            self.pictures.append(dict(attrs)["src"] or "")
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        if self.open and {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


def test_the_card_is_one_page_with_counts_thresholds_and_pictures(labels: Path, originals: Path, tmp_path: Path, capsys) -> None:
    output = tmp_path / "out" / "card.html"
    output.parent.mkdir()
    call = ["label-report", str(labels), "--shards", str(originals), "--output", str(output), "--samples", "1", "--quiet"]
    assert main([*call, "--figures", "consistency=0.35,", "abs_rel_aligned=,0.2"]) == 0
    assert "11 labels of 2 sources; consistency [0.35, null], abs_rel_aligned [null, 0.2] keep 6 (54.5 %)" in capsys.readouterr().out
    html = output.read_text()
    page = Page(html)
    assert "http" not in html.replace("http://www.w3.org", "") and "$" not in re.sub(r"base64,[^\"]*", "", html)
    rows = {row[0]: row[1:] for row in page.rows if row}
    assert rows["desk"] == ["9", "55.6 %", "55.6 %", "55.6 %", "5"]
    assert rows["street"] == ["2", "50.0 %", "50.0 %", "50.0 %", "1"] and rows["all"][-1] == "6"
    assert rows["no metric z-depth to draw a prompt from"] == ["1"]
    assert (
        "figures: {consistency: [0.35, null], abs_rel_aligned: [null, 0.2]}" in html
        and "fedcba98" in html
        and "request.prompt.count" in html
    )
    photos = [picture_of(uri) for uri in page.pictures if uri.startswith("data:image/jpeg")]
    assert len(photos) == 5 * (4 + 2) and {photo.shape for photo in photos} == {(HEIGHT, WIDTH, 3)}  # desk: one a group; street has two
    assert sum(uri.startswith("data:image/png") for uri in page.pictures) == 2 and all(uri.startswith("data:") for uri in page.pictures)
    assert html.count("left out by the thresholds") > 0 and output.stat().st_size < 1e6


def test_thresholds_keep_what_a_row_of_a_mixture_draws(originals: Path, tmp_path: Path) -> None:
    folder = write_labels(originals, tmp_path / "labels", figures())
    table = read_label_table(folder, quiet=True)
    for texts in (["consistency=0.4,"], ["consistency=0.2,0.7"], ["abs_rel_aligned=,0.2", "consistency=0.3,0.8"], ["near_m=2,2"]):
        thresholds = read_thresholds(texts, table)
        row = MixtureSource(str(originals), sidecars=[str(folder)], figures=thresholds)
        paths = sorted(originals.glob("*.tar"))
        places = combine(row, [examine(row, load_index(path), [load_index(folder / path.name)]) for path in paths]).places
        every = [entry.key for path in paths for entry in load_index(path).entries]
        assert [key for key, kept in zip(table.keys, table.kept(thresholds)) if kept] == [every[place] for place in places]
    assert table.unlabelled == {"desk": 1} and table.sources == ["desk", "street"]
    assert list(table.columns) == ["abs_rel_aligned", "consistency", "near_m", "own"]
    assert reject_reasons(table) == [("no metric z-depth to draw a prompt from", 1)]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("consistency", "write NAME=LOW,HIGH"),
        ("consistency=0.5", "write NAME=LOW,HIGH"),
        ("sharp=0,1", "no label of .* has a figure 'sharp'; there are abs_rel_aligned, consistency, near_m, own"),
        ("consistency=a,1", "no two numbers"),
        ("consistency=1,0", "the first bound must not be above the second"),
    ],
)
def test_wrong_thresholds_are_one_sentence(originals: Path, tmp_path: Path, text: str, sentence: str) -> None:
    table = read_label_table(write_labels(originals, tmp_path / "labels", figures()), quiet=True)
    with pytest.raises(ValueError, match=sentence):
        read_thresholds([text], table)


def test_folders_that_do_not_fit_are_refused(originals: Path, tmp_path: Path, capsys) -> None:
    folder = write_labels(originals, tmp_path / "labels", figures())
    assert main(["label-report", str(originals), "--shards", str(originals), "--quiet"]) == 2
    assert "its indexes hold no figures of labels" in capsys.readouterr().err
    assert main(["label-report", str(folder), "--shards", str(write_folder(tmp_path / "other", [2])), "--quiet"]) == 2
    assert "has no desk-0.tar, which" in capsys.readouterr().err
    assert main(["label-report", str(folder), "--shards", str(originals), "--samples", "-1", "--quiet"]) == 2
    assert "--samples -1" in capsys.readouterr().err


def test_a_label_is_read_with_the_sample_it_was_made_of(labels: Path, originals: Path) -> None:
    table = read_label_table(labels, quiet=True)
    shown = LabelReader(table, originals).read(table.keys.index("desk/0007"))
    truth = plane_depth(CAMERA, WIDTH, HEIGHT)
    np.testing.assert_allclose(shown.source_depth, truth, rtol=1e-3)
    assert np.isnan(shown.label[:3, :4]).all() and shown.unit == "m" and shown.factor == 1
    np.testing.assert_allclose(shown.label[3:], 1.1 * truth[3:], rtol=1e-3)
    assert shown.confidence is not None and np.allclose(np.unique(shown.confidence), [0.25, 0.75], atol=0.003)
    assert (shown.image[..., 0] == 2 * np.arange(WIDTH) + 1).all()
    pictures = [picture_of(uri) for uri in Page(panel_html(table, shown, "worst", True)).pictures]
    assert [picture.shape for picture in pictures] == 5 * [(HEIGHT, WIDTH, 3)]
    expected = colour.colour_log_ratio(np.full((1, 1), math.log(1.1), np.float32))[0, 0]
    assert np.abs(pictures[3][20:, 20:, ::-1].astype(int) - expected).max() < 12  # jpeg


def test_depth_without_unit_is_brought_to_the_labels_scale(tmp_path: Path) -> None:
    """A source up to scale, along rays: the panel shows its z-depth times one factor."""
    rays = np.hypot((np.arange(WIDTH) + 0.5 - CAMERA.cx)[None] / CAMERA.fx, (np.arange(HEIGHT) + 0.5 - CAMERA.cy)[:, None] / CAMERA.fy)
    depth = (plane_depth(CAMERA, WIDTH, HEIGHT) * np.sqrt(1 + rays**2) * 7).astype(np.float32)
    folder = write_folder(tmp_path / "rays", [6], "desk", depth=depth, depth_type=DepthType.RAY, metric=False)
    table = read_label_table(write_labels(folder, tmp_path / "labels", {"desk/0003": {"consistency": 1.0}}), quiet=True)
    shown = LabelReader(table, folder).read(0)
    assert shown.factor == pytest.approx(1.1 / 7, rel=1e-3)
    np.testing.assert_allclose(shown.source_depth[3:], shown.label[3:], rtol=2e-3)


def table_of(consistency: list[float], error: list[float] | None = None) -> LabelTable:
    count = len(consistency)
    columns = {"consistency": np.array(consistency)} | ({} if error is None else {"abs_rel_aligned": np.array(error)})
    keys = [f"s/{n}" for n in range(count)]
    return LabelTable(Path("x"), [], keys, np.array(["s"] * count, dtype=object), np.zeros((count, 2), np.int64), columns, {}, {}, [])


def test_shown_samples_are_the_worst_the_median_and_seeded_ones() -> None:
    values = [0.5, 0.9, 0.1, 0.7, math.nan, 0.3, 0.8, 0.6, 0.2]
    table = table_of(values, [0.1, 0.2, 0.15, 0.9, 0.05, 0.01, 0.8, 0.12, math.nan])
    chosen = choose(table, "s", 2, seed=0)
    groups = {why: [row for own, row in chosen if own == why] for why in (LEAST_CONSISTENT, FARTHEST, MEDIAN, RANDOM)}
    assert groups[LEAST_CONSISTENT] == [2, 8] and groups[FARTHEST] == [3, 6] and groups[MEDIAN] == [0, 7]
    assert len({row for _, row in chosen}) == 8 and chosen == choose(table, "s", 2, seed=0)
    assert {tuple(choose(table, "s", 2, seed=seed)) for seed in range(5)} != {tuple(chosen)}
    assert len(choose(table, "s", 50, seed=0)) == 9
    assert {why for why, _ in choose(table_of([math.nan] * 3), "s", 1, 0)} == {RANDOM}


def test_kept_shares_are_those_of_the_rule() -> None:
    values, bounds = np.random.default_rng(0).random(200).round(2), np.linspace(0, 1, 21)
    for better, rule in (("higher", np.greater_equal), ("lower", np.less_equal)):
        expected = [rule(values, bound).sum() / 250 for bound in bounds]
        assert kept_shares(values, 250, better, bounds).tolist() == expected


def test_drawings_depend_on_the_figures_alone_and_bear_any_of_them() -> None:
    columns = {"consistency": np.ones(3), "near_m": np.array([1.0, np.nan, 1.0]), "abs_rel": np.zeros(3), "own": np.array([-3.0, 5.0, 1e6])}
    limits = {"consistency": (0.5, None), "abs_rel": (None, 0.1)}
    assert chart_png(columns, limits) == chart_png(columns, limits)
    titles = [axes.get_title(loc="left") for axes in chart(columns | {"far_m": np.full(3, np.nan)}, limits).axes]
    assert [title.split()[0] for title in titles if title] == list(columns) and "1 without" in " ".join(titles)


def test_a_full_page_says_what_it_leaves_out(originals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "PAGE_BYTES", 2 * command.CHART_BYTES + 1)
    folder = write_labels(originals, tmp_path / "labels", figures())
    table = read_label_table(folder, quiet=True)
    content = command.label_card(table, originals, {}, quiet=True)
    assert sum(map(len, content.panels.values())) == 1 and content.left_out == 10


def test_remote_folders(originals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    default_storage.cache_clear()
    write_labels(originals, tmp_path / "labels", figures())
    write_table(originals)
    output = tmp_path / "card.html"
    with nginx(tmp_path, tmp_path / "nginx") as server:
        call = ["label-report", f"{server.address}/labels", "--shards", f"{server.address}/originals", "--output", str(output), "--quiet"]
        assert main([*call, "--samples", "1"]) == 0
    default_storage.cache_clear()
    assert "fedcba98" in output.read_text() and "no metric z-depth" in output.read_text()
