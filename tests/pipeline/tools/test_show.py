"""Sheets of views: the pixels that replay gives, with all that is known of them."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

from pipeline.errors import ConfigError, ReplayError
from pipeline.identity import MixConfig
from pipeline.records import FIXED_ONE, MixKind, PartRows
from pipeline.store import LabelStore, PartEntry, open_store
from pipeline.tools import (
    DrawnView,
    KeptSamples,
    ViewChoice,
    draw_views,
    save_sheet,
    show_views,
    thin_store,
)
from pipeline.tools import show as module
from pipeline.views.mixing import mix_images, normalize
from pipeline.views.ops import OPERATIONS
from student import PlanConfig, open_replay
from tests.labelling import digit_shard, every_column, hash_identity, write_hash_store
from tests.pipeline.store.test_card import run_cli

NAMES = tuple(f"digit \x85 {n}".replace("\x85", "\u202e") for n in range(10))
ALL = ViewChoice(count=1024)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("show")
    paths = [
        digit_shard(root / "digits-0.tar", 17, broken=(3,)),
        digit_shard(root / "digits-1.tar", 6, first=17),
    ]
    half = MixConfig(probability=0.6)
    identity = hash_identity(mix=half, columns=every_column(3))
    write_hash_store(root / "s.parquet", paths, views=6, per_part=4, identity=identity)
    write_hash_store(root / "plain.parquet", paths, views=6, per_part=4)
    return root


@pytest.fixture
def store(folder: Path) -> LabelStore:
    return open_store(folder / "s.parquet")


def drawn(store: LabelStore, choice: ViewChoice = ALL) -> tuple[DrawnView, ...]:
    return draw_views(store, [str(Path(store.root.name).parent / "digits-*.tar")], choice)


def replayed(location: Path, shards: str) -> dict[tuple[str, int], np.ndarray]:
    """Return the levels of every view that the student sees, rounded, by key and view."""
    plan = PlanConfig(seed=0, epochs=6, batch_size=8)
    batches = open_replay(location, [shards], plan)
    views = batches.store.identity.augment
    found = {}
    for batch in (batches[item] for item in range(len(batches))):
        images = mix_images(normalize(batch.pixels, views.mean, views.std), batch.mix)
        scale, shift = (torch.tensor(one).view(3, 1, 1) * 255 for one in (views.std, views.mean))
        levels = (images * scale + shift).permute(0, 2, 3, 1).numpy()
        for row, key in enumerate(batch.keys):
            found[key, int(batch.view[row])] = levels[row]
    return found


@pytest.mark.parametrize("subset", [False, True])
def test_views_are_those_that_replay_gives(
    tmp_path: Path, folder: Path, store: LabelStore, subset: bool
) -> None:
    location, shards = folder / "s.parquet", str(folder / "digits-*.tar")
    if subset:
        location = tmp_path / "thin.parquet"
        thin_store(store, location, kept=KeptSamples(sample_share=0.6))
    views = draw_views(open_store(location), [shards], ALL)
    expected = replayed(location, shards)
    assert len(views) == open_store(location).manifest.rows
    seen = set()
    for one in views:
        assert one.pixels is not None
        if (one.key, one.view) in expected:  # the last batch of an epoch may be short
            seen.add(one.mix.kind)
            assert np.abs(one.pixels - expected[one.key, one.view]).max() < 0.51
        if one.mix.kind is MixKind.NONE:
            assert (one.pixels == one.own).all()
            assert one.partner is None
        else:
            assert one.partner is not None
    assert seen == set(MixKind)
    assert len({(one.key, one.view) for one in views} & expected.keys()) > len(views) / 2


def test_labels_and_probabilities_are_the_stores(store: LabelStore) -> None:
    found = {(one.key, one.view): one for one in drawn(store)}
    digested = 0
    for entry in store.manifest.parts:
        rows = store.read_part(entry)
        for row, key in enumerate(rows.keys):
            for column in range(entry.part.views):
                one = found[key, entry.part.first_view + column]
                assert (one.label, one.target) == (rows.label[row, column], rows.target[row])
                assert one.confidence is not None
                assert round(one.confidence * 255) == rows.columns["confidence"][row, column]
                assert bool(one.digests) == rows.has_digest[row, column]
                digested += bool(one.digests)
    assert digested > 20


@pytest.mark.parametrize(
    ("groups", "rows", "columns"),
    [
        ([1], 1, 1),
        ([1] * 3, 1, 3),
        ([1] * 4, 2, 2),
        ([1] * 8, 2, 4),
        ([1] * 13, 3, 5),
        ([1] * 16, 4, 4),
        ([1] * 24, 4, 6),
        ([1] * 32, 4, 8),
        ([1] * 99, 13, 8),
        ([2] * 7, 4, 4),
        ([2] * 16, 4, 8),
        ([3] * 4, 4, 3),
        ([2, 4, 2, 1], 3, 4),
        ([17], 3, 8),
        ([17, 2], 3, 8),
    ],
)
def test_rows_of_a_sheet_are_filled_and_part_no_group(
    groups: list[int], rows: int, columns: int
) -> None:
    corners = module._corners(groups)
    assert len(set(corners)) == sum(groups)
    assert corners == sorted(corners)
    assert (1 + corners[-1][0], 1 + max(column for _, column in corners)) == (rows, columns)
    for group in groups:
        (_, column), *_ = of_group = corners[:group]
        del corners[:group]
        assert len({row for row, _ in of_group}) == 1 or (group > columns and column == 0)


def test_the_original_of_each_view_stands_before_it_in_its_row(store: LabelStore) -> None:
    views = drawn(store, ViewChoice(count=7))
    groups = module._groups(views, original=True)
    assert len({one.key for one in views}) == 7
    assert [[cell.lines[0] for cell in group] for group in groups] == [
        [one.key, f"{one.key}, view {one.view}"] for one in views
    ]
    parted = (views[0], views[1], replace(views[0], view=99))
    assert [len(group) for group in module._groups(parted, original=True)] == [3, 2]


def test_the_sheets_tiles_are_the_views(store: LabelStore) -> None:
    views = drawn(store, ViewChoice(count=12))
    sheet = np.asarray(show_views(views))
    side, scale = module._NARROWEST, 8  # of 16 pixels, so that a tile has 128
    columns = 4  # of twelve, so that no row is cut short
    heights = {
        top
        for top in range(len(sheet) - 128)
        if views[0].pixels is not None
        and (sheet[top : top + 128, 12:140] == views[0].pixels.repeat(8, 0).repeat(8, 1)).all()
    }
    assert heights == {12}
    assert sheet.shape[1] == 12 + columns * (side + 12)
    step = next(
        step
        for step in range(1, len(sheet))
        if views[columns].pixels is not None
        and (sheet[12 + step :, 12:140][:128:scale, ::scale] == views[columns].pixels).all()
    )
    for number, one in enumerate(views):
        row, column = divmod(number, columns)
        tile = sheet[12 + row * step :, 12 + column * (side + 12) :][:128, :128]
        assert one.pixels is not None
        assert (tile == one.pixels.repeat(scale, 0).repeat(scale, 1)).all()


def test_an_omitted_and_a_rejected_sample_are_shown_as_such(
    tmp_path: Path, folder: Path, store: LabelStore
) -> None:
    whole = {(one.key, one.view): one for one in drawn(store)}
    thin_store(store, tmp_path / "thin.parquet", kept=KeptSamples(sample_share=0.5))
    thin = open_store(tmp_path / "thin.parquet")
    rows = thin.read_part(thin.manifest.parts[0])
    omitted = next(key for key, _ in whole if key in rows_of_shard(store) and key not in rows.keys)
    choice = ViewChoice(keys=(omitted, "digit_0003", rows.keys[0]), views=(0, 1))
    views = draw_views(thin, [str(folder / "digits-*.tar")], choice)
    assert len(views) == 6
    for one in views:
        words = " ".join(one.caption())
        if one.key == "digit_0003":
            assert (one.pixels, one.label) == (None, None)
            assert "rejected: it is damaged" in words
            continue
        assert one.pixels is not None
        assert (one.pixels == whole[one.key, one.view].pixels).all()
        assert (one.label is None) == (one.key == omitted) == ("a subset omits it" in words)
    assert show_views(views, original=True).size[0] > 300


def test_true_disagreements_come_before_those_that_name_the_partner(
    store: LabelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    partner = {(one.key, one.view): one.partner_target for one in drawn(store) if one.view % 2}
    read = type(store).read_part

    def read_part(self: LabelStore, entry: PartEntry) -> PartRows:
        rows = read(self, entry)
        label = rows.label.copy()
        for row, column in np.ndindex(label.shape):
            named = partner.get((rows.keys[row], rows.part.first_view + column))
            label[row, column] = label[row, column] if named is None else named
        return replace(rows, label=label)

    monkeypatch.setattr(type(store), "read_part", read_part)
    views = drawn(store, ViewChoice(disagree=True, count=1024))
    named = [one.names_partner for one in views]
    assert 10 < sum(named) < len(named) / 2
    assert named == sorted(named)
    few = drawn(store, ViewChoice(disagree=True, count=16))
    assert not any(one.names_partner for one in few)
    assert {(one.key, one.view) for one in few} <= {(one.key, one.view) for one in views}
    assert len({one.shard for one in few}) == 2  # from all over
    doubtful = drawn(store, ViewChoice(disagree=True, high_entropy=True, count=1024))
    assert {one.names_partner for one in doubtful} == {True, False}


def test_disagreements_of_a_subset_are_all_found(
    tmp_path: Path, store: LabelStore, folder: Path
) -> None:
    thin_store(store, tmp_path / "thin.parquet", kept=KeptSamples(sample_share=0.5))
    thin = open_store(tmp_path / "thin.parquet")
    shards, wrong = [str(folder / "digits-*.tar")], ViewChoice(disagree=True, count=1024)
    every = draw_views(thin, shards, ALL)
    assert len(draw_views(thin, shards, wrong)) == sum(one.label != one.target for one in every)


COLORS = {
    "black": (25, 25, 25),
    "gray": (92, 101, 115),
    "red": (176, 0, 32),
    "brown": (140, 90, 0),
}


@pytest.mark.parametrize(
    ("target", "label", "partner", "color"),
    [
        (3, 3, None, "black"),
        (3, 3, 4, "black"),
        (3, 5, None, "red"),
        (3, 5, 4, "red"),
        (3, 4, 4, "brown"),
        (-1, 5, 4, "gray"),  # who knows
        (-1, 4, 4, "gray"),
        (3, None, 4, "gray"),  # a subset omits it
    ],
)
def test_a_mistake_is_red_and_the_partners_class_brown(
    target: int, label: int | None, partner: int | None, color: str
) -> None:
    view = DrawnView(
        shard="s", key="k", view=0, names=None, target=target, label=label, partner_target=partner
    )
    sheet = np.asarray(show_views([view]))
    inks = {word: (sheet == ink).all(axis=2) for word, ink in COLORS.items()}
    assert [word for word, where in inks.items() if where.any()] == [color]
    rows = np.flatnonzero(inks[color].any(axis=1))
    assert rows[0] < 12 + 128 + 40  # the lines below the tile, and not what they mean alone
    legend = module._legend([view])
    assert set(legend) == {COLORS[color]} - {COLORS["gray"]}
    assert all(text.startswith(f"{color}: ") for text in legend.values())


def test_colors_of_texts_are_said_at_the_bottom(store: LabelStore) -> None:
    wrong = next(one for one in drawn(store) if one.label != one.target)
    right = replace(wrong, label=wrong.target)
    sheets = [np.asarray(show_views([one]))[12 + 128 :] for one in (right, wrong)]  # no tile
    found = [
        [color for color in COLORS.values() if (sheet == color).all(axis=2).any()]
        for sheet in sheets
    ]
    color = module._color(wrong)
    assert found == [[module._INK], [color]]
    for sheet, one in zip(sheets, (module._INK, color), strict=True):
        last = np.flatnonzero((sheet == one).all(axis=2).any(axis=1))[-1]
        assert last > len(sheet) - 2 * module._GAP  # below the tile and its lines


def test_an_image_mixed_in_is_spoken_of_only_where_there_is_one(store: LabelStore) -> None:
    views = drawn(store)
    mixed = [one for one in views if one.mix.kind is not MixKind.NONE]
    assert "mixed" in module._legend(mixed)[module._WRONG]
    plain = [one for one in views if one.mix.kind is MixKind.NONE]
    assert "mixed" not in " ".join(module._legend(plain).values())
    sheet = np.asarray(show_views([replace(plain[0], label=plain[0].target)], original=True))
    blacks = (sheet == COLORS["black"]).all(axis=2)[12 + 176 : -30]
    grays = (sheet == COLORS["gray"]).all(axis=2)[12 + 176 : -30]
    assert grays[:, :188].any()  # the original's text is no judgement
    assert not blacks[:, :188].any()
    assert blacks[:, 188:].any()


def rows_of_shard(store: LabelStore) -> tuple[str, ...]:
    return store.read_part(store.manifest.parts[0]).keys


def test_a_view_with_another_digest_than_is_stored_is_refused(
    monkeypatch: pytest.MonkeyPatch, store: LabelStore
) -> None:
    read = type(store).read_part
    monkeypatch.setattr(
        type(store),
        "read_part",
        lambda self, entry: replace(rows := read(self, entry), digest=rows.digest ^ 1),
    )
    with pytest.raises(ReplayError, match=r"view 0 of 'digit_.* has digest .* these are not"):
        drawn(store, ViewChoice(views=(0,)))


def test_views_are_chosen_by_key_view_class_truth_and_doubt(store: LabelStore) -> None:
    every = drawn(store)
    keys = ViewChoice(keys=("digit_0018", "digit_0001"), views=(5, 2))
    found = [(one.key, one.view) for one in drawn(store, keys)]
    assert found == [(key, view) for key in ("digit_0001", "digit_0018") for view in (2, 5)]
    fours = drawn(store, ViewChoice(target=4, count=1024))
    assert {one.key for one in fours} == {one.key for one in every if one.target == 4}
    wrong = drawn(store, ViewChoice(disagree=True, count=1024))
    assert len(wrong) == sum(one.label != one.target for one in every)
    spread = drawn(store, ViewChoice())
    assert len(spread) == 16
    assert {one.shard for one in spread} == {"digits-0.tar", "digits-1.tar"}
    doubtful = drawn(store, ViewChoice(high_entropy=True, count=10))
    most = sorted(one.confidence or 0 for one in every)[9]
    assert all((one.confidence or 0) <= most + 0.1 for one in doubtful)


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        (ViewChoice(keys=("digit_0001", "absent")), "`keys` has 'absent', which none"),
        (ViewChoice(views=(99,)), "no view of .* is as asked for"),
        (ViewChoice(target=77), "no view of .* is as asked for"),
    ],
)
def test_what_is_not_there_is_said(store: LabelStore, choice: ViewChoice, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        drawn(store, choice)


def test_doubt_needs_probabilities(folder: Path) -> None:
    with pytest.raises(ConfigError, match="`high_entropy` needs probabilities"):
        drawn(open_store(folder / "plain.parquet"), ViewChoice(high_entropy=True))


def test_operations_are_shown_with_what_their_arguments_mean() -> None:
    words = [
        OPERATIONS[name].in_words(argument)
        for name, argument in (
            ("rotate", -(29 << 16)),
            ("color", FIXED_ONE // 4),
            ("posterize", 3),
            ("solarize", 128),
            ("invert", 0),
        )
    ]
    assert words == ["rotate -29", "color 0.25", "posterize 3", "solarize 128", "invert"]


def test_letters_that_a_font_lacks_are_drawn_by_another_or_written_without_their_marks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = "G\u00e4nsebl\u00fcmchen, Gr\u00f6\u00dfe \u00c9, \u4e2d"
    own = ImageFont.load_default(12)
    assert bytes(own.getmask("\u00e4")) == bytes(own.getmask("\u00fc"))  # the same empty box
    assert module._in_letters_of(own, name) == "Ganseblumchen, Grosse E, ?"
    assert module._in_letters_of(own, "plain (1)") == "plain (1)"

    real, there = ImageFont.truetype, True

    def truetype(path: object, *rest: object, **more: object) -> object:
        if path != "DejaVuSans.ttf":
            return real(path, *rest, **more)  # Pillow's own
        if not there:
            raise OSError("cannot open resource")
        return path

    monkeypatch.setattr(ImageFont, "truetype", truetype)
    assert module._font("plain").getname() == own.getname()
    assert module._font(name) == "DejaVuSans.ttf"
    there = False
    assert module._font(name).getname() == own.getname()


def test_captions_name_classes_mixing_and_draws_escaped(store: LabelStore) -> None:
    views = [replace(one, names=NAMES) for one in drawn(store)]
    texts = [" | ".join(one.caption()) for one in views]
    assert all("truth: " in text and "crop " in text for text in texts)
    kinds = {one.mix.kind: text for one, text in zip(views, texts, strict=True)}
    assert "not mixed" in kinds[MixKind.NONE]
    assert "mixup: " in kinds[MixKind.MIXUP]
    assert "CutMix: " in kinds[MixKind.CUTMIX]
    assert "pixels verified" in " ".join(texts)
    assert [("verified" in text) for text in texts] == [bool(one.digests) for one in views]
    assert not all(one.digests for one in views)
    lines = module._wrapped(views[0].caption(), 100, module._font())
    assert "\\u202e" in "".join(lines)
    assert "\u202e" not in "".join(lines)
    assert all(module._font().getlength(line) <= 100 for line in lines)


@pytest.mark.parametrize(
    ("line", "fitted"),
    [
        ("dogs_n02097130_giant_schnauzer", ["dogs_n02097130_", "giant_schnauzer"]),
        ("of the image translate-y -0.429", ["of the image", "translate-y -0.429"]),
        ("and 61% of circle_circle", ["and 61% of", "circle_circle"]),
        ("dogs_n0209, view 14", ["dogs_n0209,", "view 14"]),
        ("a Boston_bullterrierdog", ["a Boston_", "bullterrierdog"]),
        ("red rubber-erasers-stiff", ["red rubber-", "erasers-stiff"]),
        ("W" * 20, ["W" * 9, "W" * 9, "WW"]),
    ],
)
def test_a_line_breaks_between_words_and_parts_of_names(line: str, fitted: list[str]) -> None:
    class Even:
        def getlength(self, text: str) -> float:
            return len(text)

        def getmask(self, text: str) -> object:
            return None

    width = 9 if line[0] == "W" else 18
    assert module._wrapped([line], width, Even()) == fitted


def test_what_the_page_shows_runs(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (Path(__file__).resolve().parents[3] / "docs" / "TOOLS.md").read_text()
    commands = [line for line in text.splitlines() if line.startswith("label-store show ")]
    assert len(commands) == 2
    monkeypatch.chdir(tmp_path)
    named = {
        "teacher.parquet": folder / "s.parquet",
        "cifar10-test-{000000..000001}.tar": folder / "digits-{0..1}.tar",
        "cifar10-test-000000.tar": folder / "digits-0.tar",
        "ship_0001": "digit_0001",
    }
    for line in commands:
        words = [named.get(word, word) for word in shlex.split(line)]
        assert run_cli(monkeypatch, *words[1:]) == 0
    assert {one.name for one in tmp_path.iterdir()} == {"wrong.png", "ship.png"}
    sources = re.findall(r"```py\n(.*?)```", text, flags=re.DOTALL)
    (source,) = [one for one in sources if "draw_views" in one]
    for name, real in named.items():
        source = source.replace(f'"{name}"', repr(str(real)))
    names: dict[str, object] = {}
    exec(compile(source, "TOOLS.md", "exec"), names)
    assert len(names["views"]) == 12


def test_the_command_writes_a_sheet_whole(
    tmp_path: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "k.png"
    arguments = ["show", str(folder / "s.parquet"), "--shards", str(folder / "digits-*.tar")]
    more = ["--key", "digit_0005", "--views", "0-3,5", "--original", "--out", str(out)]
    assert run_cli(monkeypatch, *arguments, *more) == 0
    assert "5 views" in capsys.readouterr().out
    with Image.open(out) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
    assert [one.name for one in tmp_path.iterdir()] == ["k.png"]
    with pytest.raises(ConfigError, match=r"ends in \.png"):
        save_sheet(Image.new("RGB", (1, 1)), tmp_path / "k.jpg")
    # Before anything is read, and so before the store, which is not there, is missed.
    absent = ["show", "absent.parquet", "--shards", "absent.tar", "--out", str(out) + ".jpg"]
    assert run_cli(monkeypatch, *absent) == 1
    assert "ends in .png" in capsys.readouterr().err
