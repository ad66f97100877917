"""Every source states its facts once; the catalogue in docs/sources.md is what the records say."""

from __future__ import annotations

import configparser
import dataclasses
import subprocess
import sys
import urllib.parse

import pytest

from data_shards.cli import main
from data_shards.schema import DepthType, LabelKind
from data_shards.sources.catalogue import BEGIN, END, as_markdown, as_text, update
from data_shards.sources.record import SourceRecord, TrustTier
from data_shards.sources.registry import SOURCES


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_agrees_with_its_record(name):
    source_class = SOURCES[name]
    record = source_class.record
    assert "record" in vars(source_class) and source_class.name == name, "a source inherits no facts of another"
    defaults = {field.name: field.default for field in dataclasses.fields(source_class)}
    for option, stated in [("licence", record.licence), ("label_kind", record.label_kind), ("depth_type", record.depth_type)]:
        if option in defaults and stated is not None:
            assert defaults[option] == stated
    if "metric" in defaults and record.metric is not None:
        assert defaults["metric"] == record.metric
    for address in (record.homepage, record.licence_url):
        assert not address or (urllib.parse.urlsplit(address).scheme in ("http", "https") and urllib.parse.urlsplit(address).netloc)
    if record.licence != "unknown":
        assert record.licence_url, "a licence that we name has an address"


def test_the_document_holds_the_catalogue(repository):
    text = (repository / "docs/sources.md").read_text()
    start, stop = text.index(BEGIN), text.index(END) + len(END) + 1
    assert text[start:stop] == as_markdown(), "run: data-shards sources --update docs/sources.md"


def test_command_lists_and_prints(capsys):
    assert main(["sources"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(SOURCES) + 1 and "\n".join(lines) == as_text()
    (row,) = [line for line in lines if line.startswith("icl_nuim ")]
    assert row.split()[1:5] == ["rendered", "exact", "z", "yes"]
    assert main(["sources", "--markdown"]) == 0
    assert capsys.readouterr().out == as_markdown()


def test_the_catalogue_needs_no_optional_library(repository):
    """What the extra 'sources' installs is asked for when a source is made, not when it is listed."""
    config = configparser.ConfigParser()
    config.read(repository / "setup.cfg")
    modules = config["options.extras_require"]["sources"].split()
    assert {"h5py", "OpenEXR"} <= set(modules)
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({modules})); from data_shards.sources.catalogue import as_text; print(as_text())"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=repository, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == as_text()


def test_update_replaces_only_the_catalogue(tmp_path):
    path = tmp_path / "sources.md"
    path.write_text(f"before\n\n{BEGIN}\nold\n{END}\nafter\n")
    update(path)
    assert path.read_text() == f"before\n\n{as_markdown()}after\n"
    path.write_text("no marks")
    with pytest.raises(ValueError, match="lacks the lines"):
        update(path)
    with pytest.raises(ValueError, match="no such file"):
        update(tmp_path / "nowhere.md")


def test_a_record_refuses_what_would_break_the_table():
    record = SOURCES["icl_nuim"].record
    assert record.label() == {"label_kind": LabelKind.RENDERED, "depth_type": DepthType.Z, "metric": True}
    texts = ({"unit": "mm | cm"}, {"layout": "image<X>.jpg"}, {"layout": "two\nlines"}, {"camera": ""})
    for changes in (*texts, {"trust_tier": TrustTier.SENSOR}):
        with pytest.raises(AssertionError, match="ICL-NUIM"):
            dataclasses.replace(record, **changes)
    with pytest.raises(AssertionError, match="only the user"):
        SOURCES["simple"].record.label()
    assert isinstance(record, SourceRecord)
