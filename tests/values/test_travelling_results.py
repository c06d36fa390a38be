"""Results that go on to other programs: a repr of one line, rows for pandas, tables in notebooks, more in JSON."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from html.parser import HTMLParser
from itertools import product

import numpy
import pandas
import pytest
import torch

import shortgpt
from shortgpt import Comparison, Scores
from shortgpt.errors import OutputError
from shortgpt.values import kinds
from shortgpt.values.comparison import Row
from tests import json_docs
from tests.support import Playback

BLOCKS = 4


@pytest.fixture(scope="module")
def scores() -> Scores:
    stream = torch.randn(BLOCKS + 1, 24, 8, generator=torch.Generator().manual_seed(0)).cumsum(0)
    ids = torch.arange(24).reshape(4, 6)
    return shortgpt.score(Playback(stream, name="<b>a & b</b>"), [{"input_ids": row[None]} for row in ids])


def test_json_holds_what_follows_from_the_sums_and_passes_it_over_when_read(scores: Scores) -> None:
    chosen = scores.choosing([1, 3])
    document = json.loads(chosen.to_json())
    sums, counts = numpy.array(scores.sums[0]), numpy.array(scores.counts[0])
    means = sums.sum(0) / counts.sum()
    assert [row["value"] for row in document["blocks"]] == pytest.approx(list(means))
    rank = numpy.argsort(numpy.argsort(means)) + 1
    assert [row["rank"] for row in document["blocks"]] == list(rank)
    assert [row["chosen"] for row in document["blocks"]] == [False, True, False, True]
    assert [row["stderr"] for row in document["blocks"]] == list(scores.stderr)
    document["blocks"] = "whatever another program made of it"
    assert Scores.from_json(json.dumps(document)) == chosen


def test_the_stability_of_a_block_is_how_often_it_would_go(scores: Scores) -> None:
    sums, counts = numpy.array(scores.sums[0]), numpy.array(scores.counts[0])
    often = numpy.zeros(BLOCKS)
    for draw in product(range(4), repeat=4):  # every resample of four sequences there is
        means = sums[list(draw)].sum(0) / counts[list(draw)].sum()
        often[numpy.argsort(means)[:2]] += 1 / 4**4
    assert scores.inclusion(2) == pytest.approx(list(often), abs=0.05)
    assert sum(scores.inclusion(2)) == pytest.approx(2)


def test_rows_are_the_table_that_pandas_takes(scores: Scores) -> None:
    frame = pandas.DataFrame(scores.choosing([0]).rows())
    assert list(frame["score"]) == list(scores.values)
    assert list(frame["chosen"]) == [1, 0, 0, 0]
    assert set(frame["calibration"]) == {"token batches"}
    both = Comparison((Row("x", scores), Row("y", error="broken")), scores.criteria)
    assert both.rows[0].model == "x"
    assert [row["model"] for row in both.rows()] == ["x"] * BLOCKS + ["y"]
    assert pickle.loads(pickle.dumps(both)).rows() == both.rows()


def test_a_repr_is_one_short_line(scores: Scores) -> None:
    many = replace(scores, sums=(scores.sums[0] * 1000,), counts=(scores.counts[0] * 1000,))
    for value in (many, Comparison((Row("x", many),)), many.calibration, many.plan(1)):
        text = repr(value)
        assert text.startswith(type(value).__name__ + "(")
        assert "\n" not in text
        assert len(text) <= 160


def test_a_notebook_shows_tables_and_no_markup_of_a_name(scores: Scores) -> None:
    class Tags(HTMLParser):
        seen: set[str] = set()

        def handle_starttag(self, tag: str, attrs: object) -> None:
            self.seen.add(tag)

    html = scores._repr_html_()
    assert html is not None
    reader = Tags()
    reader.feed(html)
    assert reader.seen == {"table", "caption", "thead", "tbody", "tr", "th", "td"}
    assert "&lt;b&gt;a &amp; b&lt;/b&gt;" in html
    assert scores.calibration._repr_html_() is None


def test_a_picture_is_a_figure(scores: Scores) -> None:
    from matplotlib.figure import Figure

    assert isinstance(scores.plot(marked=(1,)), Figure)
    with pytest.raises(OutputError, match="no picture of a CalibrationInfo"):
        scores.calibration.plot()


def test_every_kind_that_is_a_document_is_known_by_its_name() -> None:
    known = json_docs.kinds()
    for name, target in kinds.KINDS.items():
        assert known[name].__name__ == target.rpartition(":")[2]
    pictured_or_tabled = {kind.__name__ for kind in known.values() if "tables" in vars(kind)}
    assert pictured_or_tabled <= {target.rpartition(":")[2] for target in kinds.KINDS.values()}
