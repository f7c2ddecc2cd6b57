from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from numpy.typing import NDArray

from pipeline.columns import COLUMNS, LOG_STEPS, ColumnConfig
from pipeline.labelling.ranking import rank_logits
from tests.labelling import every_column

EVERYTHING = every_column(5)


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the probabilities, in float64, by the book."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


@st.composite
def logit_batches(draw: st.DrawFn) -> NDArray[np.float32]:
    """Draw (N, C) logits in coarse steps, so that many are equal, with zeros of both signs."""
    random = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    step = draw(st.sampled_from([1.0, 0.25, 1e-3]))
    shape = (draw(st.integers(1, 20)), draw(st.integers(5, 40)))
    values = np.round(random.normal(0, draw(st.sampled_from([0.5, 4.0])), shape) / step) * step
    return np.where(random.random(shape) < 0.5, values, -values).astype(np.float32)


@given(logits=logit_batches())
def test_labels_are_the_same_whatever_else_is_stored(logits: NDArray[np.float32]) -> None:
    alone = rank_logits(torch.from_numpy(logits), ColumnConfig())
    among = rank_logits(torch.from_numpy(logits), EVERYTHING)
    assert_array_equal(alone.label, logits.argmax(axis=1))
    assert_array_equal(among.label, alone.label)
    assert alone.columns == {}
    assert among.columns.keys() == COLUMNS.keys()


@given(logits=logit_batches())
def test_the_top_classes_are_those_of_a_plain_sort_equal_ones_by_number(
    logits: NDArray[np.float32],
) -> None:
    found = rank_logits(torch.from_numpy(logits), EVERYTHING)
    for row, ranked in zip(logits.tolist(), found.columns["topk_label"].tolist(), strict=True):
        assert (
            ranked == sorted(range(len(row)), key=lambda position: (-row[position], position))[:5]
        )
    assert_array_equal(found.columns["topk_label"][:, 0], found.label)


@given(logits=logit_batches())
def test_stored_probabilities_are_off_by_half_a_step_at_most(
    logits: NDArray[np.float32],
) -> None:
    found = rank_logits(torch.from_numpy(logits), EVERYTHING)
    prob = softmax(logits)
    top = np.take_along_axis(prob, found.columns["topk_label"].astype(np.int64), axis=1)
    half = 0.5 / 255 + 1e-12  # the last bits of two float64 softmaxes differ
    assert np.abs(top[:, 0] - found.columns["confidence"] / 255).max() <= half
    assert np.abs(top[:, 0] - top[:, 1] - found.columns["margin"] / 255).max() <= half


@given(logits=logit_batches())
def test_stored_logarithms_are_off_by_half_a_step_at_most_and_so_is_their_rest(
    logits: NDArray[np.float32],
) -> None:
    found = rank_logits(torch.from_numpy(logits), EVERYTHING).columns
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    log = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    order = np.argsort(-log, axis=1, kind="stable")
    ranked = np.take_along_axis(log, order, axis=1)
    half, most = 0.5 / LOG_STEPS + 1e-9, 65535 / LOG_STEPS
    expected = np.minimum(-ranked[:, :5], most)
    assert np.abs(found["topk_logprob"] / LOG_STEPS - expected).max() <= half
    with np.errstate(divide="ignore"):
        rest = np.minimum(-np.log(np.exp(ranked[:, :4:-1]).sum(axis=1)), most)
    assert np.abs(found["topk_rest"] / LOG_STEPS - rest).max() <= half
    assert (np.diff(found["topk_logprob"].astype(int), axis=1) >= 0).all()


def test_a_rest_that_is_far_below_rounding_is_exact() -> None:
    logits = torch.tensor([[100.0, 0.0, -1.0, -40.0]])
    found = rank_logits(logits, ColumnConfig(topk=1)).columns
    assert found["topk_rest"].tolist() == [round(64 * (100 - math.log(1 + math.exp(-1))))]
    whole = rank_logits(logits, ColumnConfig(topk=4)).columns
    assert whole["topk_rest"].tolist() == [65535]
    assert whole["topk_logprob"].tolist() == [[0, 6400, 6464, 8960]]


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("", ColumnConfig()),
        ("confidence,margin,topk=5", ColumnConfig(confidence=True, margin=True, topk=5)),
        (" topk=255 , margin", ColumnConfig(margin=True, topk=255)),
    ],
)
def test_words_name_columns(text: str, columns: ColumnConfig) -> None:
    assert ColumnConfig.from_text(text) == columns
