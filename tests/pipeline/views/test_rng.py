from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.records import FIXED_ONE
from pipeline.views import rng
from pipeline.views.rng import fixed, noise_bytes, sample_seed, stream

# Golden values: a store written by any release must replay in every later one. If one of
# these changes, FORMAT_VERSION has to change with it.


def test_words_are_golden():
    words = stream("view", 1, 2)
    assert [words.word() for _ in range(4)] == [
        17018591507156047672,
        18318059661881786490,
        14204317151325547387,
        14202467393395845211,
    ]
    words = stream("pairs", "naïve", "b", 3)
    assert [words.word() for _ in range(2)] == [4142299820971535309, 17258182273191741272]


def test_sample_seeds_are_golden():
    assert sample_seed(0, "n01440764_10026") == 7393159537674292378
    assert sample_seed(1, "n01440764_10026") == 9151941190898066531
    assert sample_seed(0, "ü") == 8703272100850240431


def test_distributions_are_golden():
    words = stream("golden", 0)
    assert [words.uniform(0.08, 1.0) for _ in range(4)] == [11954, 34399, 11251, 30247]
    words = stream("golden", 1)
    assert [words.log_uniform(0.75, 4 / 3) for _ in range(4)] == [84738, 79032, 71467, 80250]
    words = stream("golden", 2)
    assert [words.normal(9, 0.5) for _ in range(4)] == [545799, 518432, 600186, 602086]
    words = stream("golden", 3)
    assert [words.beta(0.8) for _ in range(4)] == [7070, 52308, 35068, 48260]
    words = stream("golden", 4)
    assert [words.beta(1) for _ in range(4)] == [25278, 60808, 49642, 343]
    words = stream("golden", 5)
    assert [words.integer(15) for _ in range(10)] == [6, 12, 14, 13, 14, 12, 9, 6, 13, 10]
    words = stream("golden", 6)
    assert [words.happens(0.5) for _ in range(8)] == [False, *[True] * 3, *[False] * 2, True, False]
    words = stream("golden", 7)
    assert words.permutation(12) == [1, 6, 3, 4, 5, 0, 8, 7, 11, 9, 2, 10]


def test_noise_is_golden():
    assert noise_bytes(0, 3).tolist() == [55451, 2276, 47716]
    assert noise_bytes(2**64 - 1, 6).tolist() == [23547, 36318, 8645, 15397, 1751, 44563]


@given(seed=st.integers(0, 2**64 - 1), count=st.integers(0, 40), more=st.integers(0, 9))
def test_shorter_noise_is_the_beginning_of_longer_noise(seed, count, more):
    noise = noise_bytes(seed, count)
    assert noise.dtype == np.uint16
    assert noise.tolist() == noise_bytes(seed, count + more).tolist()[:count]


@pytest.mark.parametrize("blocks", [1, 2, 7, 1000])
def test_words_do_not_depend_on_how_many_are_fetched_at_once(monkeypatch, blocks):
    plain = stream("chunks", 5)
    expected = [plain.word() for _ in range(100)]
    monkeypatch.setattr(rng, "_BLOCKS", blocks)
    words = stream("chunks", 5)
    assert [words.word() for _ in range(100)] == expected


def test_a_stream_does_not_touch_the_global_generators():
    np.random.seed(3)  # noqa: NPY002 - the global generator is what this is about
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    stream("view", 0).permutation(100)
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002


def test_every_part_of_an_identity_makes_another_stream():
    identities = [
        ("view", 1, 2),
        ("mix", 1, 2),
        ("view", 2, 1),
        ("view", 12),
        ("view", 1, 2, 0),
        ("view", "1", 2),
        ("view", 1, "2"),
        ("view", "1,2"),
        ("view",),
    ]
    firsts = {stream(purpose, *rest).word() for purpose, *rest in identities}
    assert len(firsts) == len(identities)


@given(seed=st.integers(0, 2**63 - 1), key=st.text("aé猫/_0", max_size=20))
def test_a_sample_seed_fits_into_63_bits(seed, key):
    assert 0 <= sample_seed(seed, key) < 2**63


def test_neighboring_keys_share_no_seed():
    seeds = {sample_seed(root, f"key_{i}") for root in range(20) for i in range(500)}
    assert len(seeds) == 10_000


@given(st.integers(-(2**40), 2**40))
def test_fixed_rounds_halves_up(units):
    assert fixed(units / FIXED_ONE) == units
    assert fixed((units + 0.5) / FIXED_ONE) == units + 1
    assert fixed((units + 0.25) / FIXED_ONE) == units


@given(count=st.integers(0, 60), seed=st.integers(0, 99))
def test_a_permutation_holds_each_integer_once(count, seed):
    assert sorted(stream("permutation", seed).permutation(count)) == list(range(count))


def test_all_permutations_are_equally_likely():
    words = stream("sanity", "permutation")
    counts = Counter(tuple(words.permutation(4)) for _ in range(12_000))
    assert len(counts) == 24
    assert all(abs(count - 500) < 5 * math.sqrt(500) for count in counts.values())


def test_integers_are_in_range_and_equally_likely():
    words = stream("sanity", "integer")
    counts = Counter(words.integer(15) for _ in range(15_000))
    assert set(counts) == set(range(15))
    assert all(abs(count - 1000) < 5 * math.sqrt(1000) for count in counts.values())
    assert words.integer(1) == 0


def test_happens_takes_one_word_whatever_the_probability():
    for probability in (0.0, 0.5, 1.0):
        words, twin = stream("happens"), stream("happens")
        words.happens(probability)
        twin.word()
        assert words.word() == twin.word()
    words = stream("happens", 1)
    assert not any(words.happens(0.0) for _ in range(1000))
    assert all(words.happens(1.0) for _ in range(1000))


def moments(values: list[int]) -> tuple[float, float]:
    """Return mean and standard deviation of fixed-point numbers."""
    numbers = np.array(values) / FIXED_ONE
    return float(numbers.mean()), float(numbers.std())


# Of 20,000 draws the mean is within 5 standard errors, that is 0.035 standard deviations.


def test_uniform_has_its_moments_and_ends():
    words = stream("sanity", "uniform")
    values = [words.uniform(0.08, 1.0) for _ in range(20_000)]
    mean, std = moments(values)
    assert abs(mean - 0.54) < 0.035 * std
    assert abs(std / (0.92 / math.sqrt(12)) - 1) < 0.02
    assert fixed(0.08) <= min(values) < fixed(0.081)
    assert fixed(0.999) < max(values) <= fixed(1.0)


def test_log_uniform_is_uniform_in_the_logarithm():
    words = stream("sanity", "log uniform")
    values = [words.log_uniform(0.3, 1 / 0.3) for _ in range(20_000)]
    logs = np.log(np.array(values) / FIXED_ONE)
    assert abs(logs.mean()) < 0.035 * logs.std()
    assert abs(logs.std() / (2 * math.log(1 / 0.3) / math.sqrt(12)) - 1) < 0.02
    assert fixed(0.3) <= min(values)
    assert max(values) <= fixed(1 / 0.3)


def test_normal_has_its_moments_and_tails():
    words = stream("sanity", "normal")
    values = np.array([words.normal(9, 0.5) for _ in range(20_000)]) / FIXED_ONE
    assert abs(values.mean() - 9) < 0.035 * 0.5
    assert abs(values.std() / 0.5 - 1) < 0.03
    within = [(np.abs(values - 9) < sigmas * 0.5).mean() for sigmas in (1, 2, 3)]
    assert within == pytest.approx([0.6827, 0.9545, 0.9973], abs=0.012)


@pytest.mark.parametrize("a", [0.2, 0.8, 1.0])
def test_beta_has_its_moments(a):
    words = stream("sanity", "beta", str(a))
    values = [words.beta(a) for _ in range(20_000)]
    mean, std = moments(values)
    assert abs(mean - 0.5) < 0.035 * std
    assert abs(std / math.sqrt(1 / (4 * (2 * a + 1))) - 1) < 0.02
    assert 0 <= min(values) <= max(values) <= FIXED_ONE


@pytest.mark.parametrize("a", [0.0, -1.0, 1.5])
def test_beta_refuses_what_the_method_cannot_draw(a):
    with pytest.raises(ValueError, match="0 < a <= 1"):
        stream("beta").beta(a)
