"""``data-shards preview`` and ``stats``: what is written, and figures against plain numpy."""

from __future__ import annotations

import base64
import dataclasses
import json
import re

import cv2
import numpy as np
import pytest
from shard_samples import full_sample, make_sample
from synthetic_room import room_sample

from data_shards.cli import main
from data_shards.reading import spread
from data_shards.stats import collect, summaries
from data_shards.writer import write_shard


@pytest.fixture
def folder(tmp_path):
    other = make_sample("plain/0", on_grid=False)
    other = dataclasses.replace(other, meta=dataclasses.replace(other.meta, camera=None, metric=False))
    write_shard(tmp_path / "room.tar", [room_sample(n) for n in range(3)])
    write_shard(tmp_path / "plain.tar", [other, full_sample()])
    return tmp_path


def test_preview_is_one_self_contained_page_and_a_sheet(folder, tmp_path):
    output = tmp_path / "deep" / "out"
    assert main(["preview", str(folder), "--output", str(output), "--quiet"]) == 0
    page = (output / "preview.html").read_text()
    assert page.count("<section>") == 5 and "room/002" in page and "up to scale" in page and "camera unknown" in page
    sources = re.findall(r'src="([^"]+)"', page)
    assert len(sources) == 5 and all(source.startswith("data:image/png;base64,") for source in sources) and "http" not in page
    pictures = [cv2.imdecode(np.frombuffer(base64.b64decode(s.split(",")[1]), np.uint8), cv2.IMREAD_COLOR) for s in sources]
    widths = [picture.shape[1] for picture in pictures]
    assert widths[1] > widths[0] == widths[2]  # prior, prompt and depth_edge add panels
    assert all(picture.std() > 10 for picture in pictures)
    sheet = cv2.imread(str(output / "preview.png"))
    assert sheet.shape[0] > 4 * 150 and sheet.std() > 10


def test_preview_shows_damage_instead_of_hiding_it(folder, tmp_path):
    with open(folder / "room.tar", "r+b") as file:
        file.seek(700)
        file.write(b"damage")
    assert main(["preview", str(folder), "--output", str(tmp_path / "out"), "--quiet"]) == 0
    assert 'class="problem"' in (tmp_path / "out" / "preview.html").read_text()


def test_stats_against_numpy(folder):
    figures = summaries(collect([folder], quiet=True))["room"]
    depths = [room_sample(n).depth for n in range(3)]
    pooled = np.concatenate([depth[np.isfinite(depth)] for depth in depths])
    for percent, value in figures["depth_percentiles"].items():
        assert value == pytest.approx(np.percentile(pooled, float(percent)), rel=0.006), percent
    assert figures["depth_percentiles"]["0"] == pooled.min() and figures["depth_percentiles"]["100"] == pooled.max()
    assert figures["valid_fraction"]["mean"] == pytest.approx(np.mean([np.isfinite(depth).mean() for depth in depths]))
    assert figures["samples"] == 3 and figures["groups"] == 1 and figures["camera"] == {"known": 3}
    assert figures["horizontal_field_of_view_degrees"]["mean"] == pytest.approx(np.degrees(2 * np.arctan(192 / 2 / 110)))
    assert figures["image_size"] == {"192x144": 3} and figures["quantisation"] == {"linear16": 3}


def test_stats_table_and_json_agree(folder, tmp_path, capsys):
    assert main(["stats", str(folder), "--json", str(tmp_path / "s.json"), "--quiet"]) == 0
    lines = capsys.readouterr().out.splitlines()
    record = json.loads((tmp_path / "s.json").read_text())
    assert [line.split()[0] for line in lines] == ["source", "made", "room"] and list(record) == ["made", "room"]
    made = record["made"]
    assert made["samples"] == 2 and made["camera"] == {"known": 1, "unknown": 1} and made["unit"] == {"metres": 1, "up to scale": 1}
    assert made["optional_fields"] == dict.fromkeys(("prior", "prompt", "depth_edge", "sky", "confidence"), 1)
    assert made["sky_fraction"]["max"] == pytest.approx(4 / 24) and made["label_kind"] == {"captured": 1, "pseudo": 1}


@pytest.mark.parametrize("verb", [["lint"], ["stats"], ["preview", "--output", "o"]])
def test_wrong_calls_are_one_sentence(tmp_path, monkeypatch, capsys, verb):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cut.tar").write_bytes(b"\0" * 700)
    for place, message in (("missing", "no such folder"), ("cut.tar", "has no index")):
        assert main([*verb, place, "--quiet"]) == 2
        errors = capsys.readouterr().err
        assert message in errors and errors.count("\n") == 1


def test_spread_takes_both_ends():
    assert spread(10, 3).tolist() == [0, 4, 9] and spread(3, 10).tolist() == [0, 1, 2] and spread(5, None).tolist() == [0, 1, 2, 3, 4]
    assert spread(10, 1).tolist() == [0]
    with pytest.raises(ValueError, match="at least 1"):
        spread(10, 0)
