"""The table of optional columns: each entry has what all that walk the table need."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline.columns import COLUMNS, Column, ColumnConfig, Columns, columns_fit
from pipeline.growth import needed_release, to_plain
from pipeline.identity import canonical_json
from pipeline.labelling.ranking import rank_logits
from pipeline.records import TeacherLabels
from pipeline.store import bytes_per_label
from pipeline.store.card import card_text
from pipeline.store.columns import column_fields
from pipeline.store.layout import array_specs
from tests.labelling import every_column, hash_identity
from tests.student.factories import make_manifest

FOUNDING = ("confidence", "margin", "topk")
CLASSES, K = 20, 3
NUMBERED = {column.word for column in COLUMNS.values() if column.listed}


def alone_in(column: Column) -> ColumnConfig:
    """Return the configuration that keeps this column, and those that share its word."""
    return ColumnConfig.from_text(f"{column.word}={K}" if column.word in NUMBERED else column.word)


@pytest.fixture(scope="module")
def labels() -> TeacherLabels:
    logits = torch.from_numpy(np.random.default_rng(0).normal(0, 3, (50, CLASSES)))
    return rank_logits(logits.float(), every_column(K))


def test_the_canonical_form_of_stores_without_columns_is_what_it_always_was() -> None:
    founding = b'{"confidence":false,"margin":false,"topk":0}'
    assert canonical_json(to_plain(ColumnConfig())) == founding


def test_every_field_since_is_left_out_where_nothing_asks_for_it() -> None:
    assert ColumnConfig.words()[:3] == FOUNDING
    for field in dataclasses.fields(ColumnConfig)[3:]:
        assert field.metadata["founding"] == field.default, field.name
        assert needed_release(every_column(K)) > "0.1.0"


def test_every_word_has_columns_and_every_column_a_word() -> None:
    assert {column.word for column in COLUMNS.values()} == set(ColumnConfig.words())
    assert not any(getattr(ColumnConfig(), word) for word in ColumnConfig.words())
    text = every_column(K).to_text()
    assert ColumnConfig.from_text(text) == every_column(K)
    assert set(text.replace("=", ",").split(",")) == {*ColumnConfig.words(), str(K)}


@pytest.mark.parametrize("name", COLUMNS)
def test_a_column_comes_from_logits_in_its_own_type_and_fits_its_labels(
    labels: TeacherLabels, name: str
) -> None:
    column, values = COLUMNS[name], labels.columns[name]
    assert values.dtype == column.dtype
    assert values.shape == ((50, K) if column.listed else (50,))
    if column.holds == "classes":
        assert values.max() < CLASSES
    assert np.unique(values).size > 1
    assert columns_fit(labels.label, labels.columns, CLASSES)
    alone = labels.columns.only(alone_in(column))
    assert columns_fit(labels.label, alone, CLASSES)


@pytest.mark.parametrize("name", COLUMNS)
def test_a_column_has_a_place_in_every_format_and_a_price(name: str) -> None:
    column = COLUMNS[name]
    one = alone_in(column)
    fields = {field.name: field.type for field in column_fields(one)}
    element = fields[name].value_type if column.listed else fields[name]
    assert element == pa.from_numpy_dtype(np.dtype(column.dtype))
    manifest = make_manifest([4], identity=hash_identity(columns=one))
    assert array_specs(manifest, 9)[name].dtype == column.dtype
    plain, more = (bytes_per_label(hash_identity(columns=asked)) for asked in (ColumnConfig(), one))
    assert more - plain >= column.bytes_per_value[1] * (K if column.listed else 1) > 0
    for text in [column.card.format(k=K)] * bool(column.card):
        assert text in card_text(manifest)


def test_classes_that_there_are_not_do_not_fit(labels: TeacherLabels) -> None:
    assert not columns_fit(labels.label, labels.columns, int(labels.label.max()))


def test_an_array_that_is_no_column_is_refused() -> None:
    with pytest.raises(ValueError, match="'entropi' is not a column"):
        Columns({"entropi": np.zeros(3)})
