"""How stored records grow: founding values, canonical forms, and fields of later releases."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError, StoreError
from pipeline.growth import RELEASE, from_plain, grown, needed_release, settle, to_plain
from pipeline.identity import (
    AugmentConfig,
    ColumnConfig,
    MixConfig,
    StoreIdentity,
    TeacherIdentity,
    canonical_json,
    different_fields,
    read_json,
)
from pipeline.views.draw import RAND_AUGMENT
from pipeline.views.fingerprints import different_fingerprints, fingerprints, what_they_watch
from tests.labelling import hash_identity


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    """A record inside another."""

    size: float = 1.0

    def __post_init__(self) -> None:
        settle(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Today:
    """Settings as the first release had them."""

    name: str = "a"
    pair: tuple[float, float] = (0.5, 1.0)
    kind: Literal["x", "y"] = "x"
    inner: Inner = field(default_factory=Inner)
    path: Path | None = None

    def __post_init__(self) -> None:
        settle(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """A number of each kind."""

    whole: int = 0
    real: float = 0.0

    def __post_init__(self) -> None:
        settle(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class LaterInner(Inner):
    """With a field of release 0.4.0, whose default is no longer what was done before."""

    edge: int = grown(founding=0, since="0.4.0", default=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Later(Today):
    """Settings with fields of later releases."""

    inner: LaterInner = field(default_factory=LaterInner)
    turns: int = grown(founding=1, since="0.3.0")
    more: Inner = grown(founding=Inner(), since="0.10.0", default_factory=Inner)


values = st.builds(
    Today,
    name=st.text(),
    pair=st.tuples(st.floats(0, 1), st.integers(0, 9)),
    kind=st.sampled_from(["x", "y"]),
    inner=st.builds(Inner, size=st.floats(0, 1)),
)


@given(record=values)
def test_what_an_older_release_stored_reads_as_founding_values_and_keeps_its_form(
    record: Today,
) -> None:
    stored = json.loads(json.dumps(to_plain(record)))
    later = from_plain(Later, stored, "it")
    assert (later.turns, later.inner.edge, later.more) == (1, 0, Inner())
    assert to_plain(later) == stored
    assert from_plain(Today, stored, "it") == record


def test_a_changed_default_does_not_change_what_older_files_mean() -> None:
    assert Later().inner.edge == 2
    assert to_plain(Later())["inner"]["edge"] == 2
    assert from_plain(Later, to_plain(Today()), "it").inner.edge == 0


@pytest.mark.parametrize(
    ("later", "release", "name"),
    [
        (Later(turns=3, inner=LaterInner(edge=0)), "0.3.0", "it.turns"),
        (Later(), "0.4.0", "it.inner.edge"),
        (Later(more=Inner(size=3)), "0.10.0", "it.more"),
    ],
)
def test_a_field_of_a_later_release_is_refused_by_its_name_and_release(
    later: Later, release: str, name: str
) -> None:
    assert needed_release(later) == release
    with pytest.raises(StoreError, match=rf"{name} is not known .* teacher-labels {release} or"):
        from_plain(Today, to_plain(later), "it", needed_release(later))


def test_a_value_of_a_later_release_is_refused_with_the_values_that_are_known() -> None:
    stored = {**to_plain(Today()), "kind": "z"}
    with pytest.raises(StoreError, match=r"it\.kind is 'z'; use 'x' or 'y'; a newer release"):
        from_plain(Today, stored, "it")


def test_a_field_that_was_there_from_the_start_must_be_there() -> None:
    stored = to_plain(Today())
    del stored["pair"]
    with pytest.raises(StoreError, match=r"it\.pair is missing"):
        from_plain(Today, stored, "it")


@pytest.mark.parametrize("stored", [5, None, ["x"], {"inner": 5, **{}}])
def test_what_is_no_record_is_refused(stored: Any) -> None:
    with pytest.raises(StoreError, match=r"^it"):
        from_plain(Today, stored, "it")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "z"}, r"`kind` is 'z'; use 'x' or 'y'"),
        ({"name": 5}, r"`name` is 5; use a text"),
        ({"pair": (1,)}, r"`pair` is \(1,\); use a list of 2 values, each a number"),
        ({"pair": (True, 1)}, r"`pair` is \(True, 1\)"),
        ({"inner": {"size": 1}}, r"`inner` is \{'size': 1\}; give Inner\(\.\.\.\)"),
        ({"path": 5}, r"`path` is 5; use a path or nothing"),
        ({"pair": (0.5, float("inf"))}, r"`pair` is \(0.5, inf\); use finite numbers"),
        ({"name": 10**5000}, r"`name` is too large; use finite numbers"),
        ({"inner": 10**5000}, r"`inner` is too large; give Inner"),
    ],
)
def test_a_value_of_another_type_is_refused_when_a_record_is_built(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Today(**settings)


@given(value=st.one_of(st.floats(), st.integers(), st.sampled_from([10**40, -(10**39)])))
def test_a_record_that_can_be_built_can_be_stored_and_read_back(value: float) -> None:
    try:
        record = Numbers(real=value) if isinstance(value, float) else Numbers(whole=value)
    except ConfigError:
        return
    assert from_plain(Numbers, read_json(canonical_json(to_plain(record))), "it") == record


@pytest.mark.parametrize(
    ("field_", "value"), [("classes", -1), ("classes", 1 << 16), ("batch_views", 0)]
)
def test_a_teacher_of_impossible_numbers_is_refused(field_: str, value: int) -> None:
    change: dict[str, Any] = {field_: value}
    with pytest.raises(ConfigError, match=f"`{field_}` is {value}"):
        replace(hash_identity().teacher, **change)


def test_an_unknown_name_with_a_newline_does_not_break_a_message_in_two() -> None:
    stored = {**to_plain(Today()), "a\n  b": 1}
    with pytest.raises(StoreError, match=r"it\.'a\\n  b' is not known"):
        from_plain(Today, stored, "it")
    assert different_fields({"a\n  b": 1}, {}) == ["'a\\n  b': 1 / None"]


def test_equal_settings_have_one_form() -> None:
    given_as_json: Any = {"pair": [0, 1], "path": "/a"}
    settled = Today(**given_as_json)
    assert (settled.pair, settled.path) == ((0.0, 1.0), Path("/a"))
    assert json.dumps(to_plain(settled)["pair"]) == "[0.0, 1.0]"
    assert AugmentConfig(hflip=1) == AugmentConfig(hflip=1.0)


@pytest.mark.parametrize(
    ("config", "field_", "value"),
    [
        (AugmentConfig, "policy", "rand-augmentt"),
        (AugmentConfig, "crop", "middle"),
        (MixConfig, "group_size", "16"),
        (ColumnConfig, "confidence", 1),
    ],
)
def test_every_configuration_of_a_store_checks_its_types(
    config: Any, field_: str, value: object
) -> None:
    with pytest.raises(ConfigError, match=f"`{field_}` is"):
        config(**{field_: value})


def test_a_teacher_of_an_unknown_precision_is_refused() -> None:
    teacher = hash_identity().teacher
    with pytest.raises(ConfigError, match="`precision` is 'fp8'; use 'fp32' or 'bf16' or 'fp16'"):
        replace(teacher, precision="fp8")
    assert isinstance(teacher, TeacherIdentity)


def test_an_identity_in_another_form_than_the_canonical_one_is_refused() -> None:
    stored = hash_identity().to_json()
    stored["augment"] = {**stored["augment"], "hflip": 1}
    with pytest.raises(StoreError, match=r"canonical form \(augment\.hflip: 1\.0 / 1\)"):
        StoreIdentity.from_json(stored)


def test_an_identity_of_this_release_needs_no_later_one() -> None:
    assert hash_identity().needs == "0.1.0"
    assert tuple(map(int, RELEASE.split("."))) >= (0, 1, 0)


def test_fingerprints_are_of_what_an_identity_can_reach() -> None:
    identity = hash_identity()
    assert {f"op.{op}" for op in RAND_AUGMENT["rand-augment"]} <= fingerprints(identity).keys()
    assert "op.grayscale" not in fingerprints(identity)
    plain = replace(identity, augment=AugmentConfig(policy="none", erase_probability=0.0))
    plain = replace(plain, mix=MixConfig(probability=0.0))
    names = set(fingerprints(plain))
    assert not any(name.startswith("op.") for name in names)
    assert names.isdisjoint({"erase", "draw.mixing"})
    assert {"resize.down", "draw.views", "draw.pairs", "decode.jpeg"} <= names
    three = replace(plain, augment=AugmentConfig(policy="three-augment", erase_probability=0.0))
    assert {"op.grayscale", "op.color", "op.gaussian-blur"} <= fingerprints(three).keys()


def test_what_one_release_alone_watches_is_no_difference() -> None:
    ours = {"a": 1, "b": 2, "c": 3}
    assert different_fingerprints(ours, {"b": 2, "d": 4}) == []
    assert different_fingerprints(ours, {"a": 5, "b": 6, "c": 3}) == ["a", "b"]


def test_each_fingerprint_says_what_it_watches() -> None:
    identity = hash_identity()
    text = what_they_watch(identity, fingerprints(identity))
    assert "op.rotate (the operation rotate)" in text
    assert "unknown here" not in text
    assert what_they_watch(identity, ["op.zoom"]) == "op.zoom (unknown here)"
