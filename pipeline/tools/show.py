"""Shows views as teacher and student see them, with their labels: what was stored, and its pixels.

A view is redrawn by the code that labelled it and that replays it, and compared with its digests
where it has some. A sheet is a picture of many.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unicodedata import normalize

import numpy as np
from numpy.typing import NDArray

from pipeline.classes import class_text
from pipeline.columns import COLUMNS
from pipeline.errors import REJECTION_WORDS, ConfigError, RejectionReason, ReplayError, ShardError
from pipeline.files.cache import CacheConfig, ShardFile
from pipeline.files.local import expand_shards
from pipeline.files.local import replace as replace_file
from pipeline.growth import require, settle
from pipeline.labelling.redraw import PartViews, mixed_mask
from pipeline.records import FIXED_ONE, MixKind, MixParams, PartRows, Pixels, ViewParams
from pipeline.shards.index import Shard, match_shards, open_known_shard
from pipeline.store import LabelStore, PartEntry
from pipeline.store.card import printable
from pipeline.tools.target import ShowProgress
from pipeline.tools.verify import check_fingerprints
from pipeline.views.apply import image_size
from pipeline.views.draw import draw_view
from pipeline.views.ops import OPERATIONS
from pipeline.views.pairing import Pairing

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "Drawing",
    "DrawnView",
    "ViewChoice",
    "ViewIndex",
    "doubt_of",
    "draw_views",
    "save_sheet",
    "show_views",
]

_MOST = 1024  # views on a sheet
_COUNT = 16  # where no number of views is given
_ASKED = 32  # disagreements that are looked at for each that is shown

_GAP, _LINE, _LETTERS = 12, 15, 12  # pixels: between tiles, from line to line, of letters
_WIDEST = 8  # cells of a row
_SMALLEST = 128  # side of a tile that is not enlarged
_NARROWEST = 176  # side of a cell, for its text
_PAPER, _INK = (250, 250, 250), (25, 25, 25)
_GRAY = (92, 101, 115)  # nothing to judge: an original, no label, or no truth
_WRONG, _PARTNERS = (176, 0, 32), (140, 90, 0)  # a label of neither image, of the one mixed in
_BOXES = ((0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (240, 228, 66))


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewChoice:
    """Which views to look at; all that is given must hold.

    >>> ViewChoice(keys=("digit_0003",), views=tuple(range(16))).most
    1024
    """

    keys: tuple[str, ...] = ()
    """Samples by their keys; all by default."""
    views: tuple[int, ...] | None = None
    """Views by their numbers; all by default."""
    disagree: bool = False
    """Those that the teacher calls otherwise than the truth, which is known; last those in which
    it names the image that is mixed in, which is often the larger part."""
    target: int | None = None
    """Those of one true class."""
    high_entropy: bool = False
    """Those of which the teacher is least sure, by the probabilities that are stored, first."""
    count: int | None = None
    """As many, spread over the store: 16, or all of the keys."""

    def __post_init__(self) -> None:
        settle(self)
        fits = self.count is None or 1 <= self.count <= _MOST
        require(self, "count", fits, f"use 1..{_MOST}")

    @property
    def most(self) -> int:
        """How many views to show at most."""
        return self.count or (_MOST if self.keys else _COUNT)

    @property
    def asked(self) -> int:
        """How many views to choose those from."""
        return self.most * (_ASKED if self.disagree and not self.high_entropy else 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnView:
    """A view of a sample: its pixels, and all that is known of it.

    What a rejected sample lacks is None, as is the label of one that a subset omits.
    """

    shard: str
    key: str
    view: int
    target: int  # true class, -1 if unknown
    names: tuple[str, ...] | None  # of all classes
    rejection: RejectionReason | None = None
    label: int | None = None  # the teacher's class
    columns: Mapping[str, NDArray[Any]] = field(default_factory=dict)  # what else is stored of it
    original: Pixels | None = None  # the image as decoded, (H, W, 3)
    params: ViewParams | None = None
    mix: MixParams = field(default_factory=MixParams.none)
    partner: str | None = None  # key of the sample that is mixed in
    partner_target: int | None = None
    own: Pixels | None = None  # (S, S, 3), before mixing
    pixels: Pixels | None = None  # (S, S, 3), as teacher and student get it, not normalized
    digests: tuple[str, ...] = ()  # those that are stored, and were found again

    @property
    def confidence(self) -> float | None:
        """The teacher's probability of its label, where one is stored."""
        if "confidence" in self.columns:
            return float(self.columns["confidence"])
        found = self.columns.get("topk_logprob")
        return None if found is None else math.exp(float(found[0]))

    @property
    def names_partner(self) -> bool:
        """Whether the teacher's class is not the image's own, but that of the image mixed in."""
        wrong = self.label is not None and 0 <= self.target != self.label
        return wrong and self.label == self.partner_target

    def caption(self) -> tuple[str, ...]:
        """Return what there is to say of the view, in lines."""
        lines = [f"{self.key}, view {self.view}", f"truth: {_class(self.target, self.names)}"]
        if self.rejection is not None:
            return *lines, f"rejected: {REJECTION_WORDS[self.rejection]}"
        sure = "" if self.confidence is None else f" ({self.confidence:.0%})"
        if self.label is None:
            lines.append("no label: a subset omits it")
        else:
            lines.append(f"teacher: {_class(self.label, self.names)}{sure}")
        proof = [f"{' and '.join(self.digests)} verified"] if self.digests else []
        return *lines, self._mixing(), *self._drawn(), *proof

    def _mixing(self) -> str:
        if self.mix.kind is MixKind.NONE:
            return "not mixed"
        own, name = self.mix.lam / FIXED_ONE, "mixup" if self.mix.box is None else "CutMix"
        other = _class(-1 if self.partner_target is None else self.partner_target, self.names)
        return f"{name}: {own:.0%}, and {1 - own:.0%} of {self.partner}, {other}"

    def _drawn(self) -> Iterator[str]:
        if self.params is None:
            return
        crop, erase = self.params.crop, self.params.erase
        flipped = ", flipped" if self.params.hflip else ""
        yield f"crop {crop.width} x {crop.height} at {crop.left}, {crop.top}{flipped}"
        if self.params.ops:
            yield ", ".join(OPERATIONS[one.op].in_words(one.argument) for one in self.params.ops)
        if erase is not None:
            yield f"erased {erase.width} x {erase.height} at {erase.left}, {erase.top}"


def _class(number: int, names: Sequence[str] | None) -> str:
    return "unknown" if number < 0 else class_text(number, names)


def draw_views(
    store: LabelStore,
    shards: Sequence[str],
    choice: ViewChoice = ViewChoice(),
    *,
    cache: CacheConfig | None = None,
    show: ShowProgress = lambda done, total: None,
) -> tuple[DrawnView, ...]:
    """Redraw views of a store as teacher and student see them, with their labels.

    Views come in the order of the store, or with ``high_entropy`` the least sure first; with
    ``disagree`` those in which the teacher names the image mixed in come last. Those of shards that
    are not given are left out. ``show`` is called with the parts that were looked at.

    Raises ``ConfigError`` for keys and views that are not there, and if none is as asked for;
    ``ReplayError`` for a view that has another digest than is stored, ``IdentityError`` if this
    machine makes other pixels.

    >>> store = open_store("teacher.parquet")
    >>> views = draw_views(store, ["digits-{0..1}.tar"], ViewChoice(disagree=True, count=4))
    >>> [view.label != view.target for view in views]
    [True, True, True, True]
    """
    same_floats = check_fingerprints(store)
    files = match_shards(store.manifest.shards, expand_shards(shards, cache), subset=True)
    chosen = _choose(store, files, choice, show)
    if not chosen:
        raise ConfigError(
            f"no view of {store.root} is as asked for; ask for other keys, views or classes"
        )
    drawing = Drawing(store, files, floats=same_floats)
    return tuple(drawing.draw(one) for one in chosen)


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewIndex:
    """A view that was chosen. The sample is the index in the shard."""

    shard: int
    sample: int
    view: int
    doubt: float = 0.0  # entropy of the teacher's probabilities, in bits


def _choose(
    store: LabelStore, files: Mapping[int, ShardFile], choice: ViewChoice, show: ShowProgress
) -> list[ViewIndex]:
    entries = [
        entry
        for entry in store.manifest.of_shards(files).parts
        if choice.views is None
        or any(entry.part.first_view <= view < entry.part.end_view for view in choice.views)
    ]
    found, missing, last = [], set(choice.keys), -1
    for done, entry in enumerate(entries, start=1):
        if choice.keys and not missing and entry.part.shard != last:
            break  # a key names one sample, so no other shard has them
        rows, last = store.read_part(entry), entry.part.shard
        others = _without_labels(choice, rows, files, store)
        missing -= {*rows.keys, *others}
        found += _chosen_rows(choice, rows, store)
        found += [
            ViewIndex(shard=entry.part.shard, sample=index, view=view)
            for index in others.values()
            for view in _views_of(choice, entry)
        ]
        show(done, len(entries))
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ConfigError(
            f"`keys` has {min(missing)!r}{more}, which none of the given shards has at these "
            "views; check keys and views"
        )
    found = _some(sorted(found, key=lambda one: (one.shard, one.sample, one.view)), choice)
    return _neither_first(store, found, choice.most) if choice.asked > choice.most else found


def _views_of(choice: ViewChoice, entry: PartEntry) -> list[int]:
    views = range(entry.part.first_view, entry.part.end_view)
    return [view for view in views if choice.views is None or view in choice.views]


def _without_labels(
    choice: ViewChoice, rows: PartRows, files: Mapping[int, ShardFile], store: LabelStore
) -> dict[str, int]:
    """Return the samples without rows that keys name, rejected or omitted, by key."""
    if choice.disagree or choice.high_entropy:
        return {}
    wanted = set(choice.keys) - set(rows.keys)
    found = {one.key: one.index for one in rows.rejections if one.key in wanted}
    if rows.omitted and wanted - found.keys():  # of whose keys the store knows nothing
        number = rows.part.shard
        shard = open_known_shard(files[number], store.manifest.by_shard[number])
        found |= {one.key: n for n, one in enumerate(shard.samples) if one.key in wanted}
    return found


def _chosen_rows(choice: ViewChoice, rows: PartRows, store: LabelStore) -> list[ViewIndex]:
    views = np.arange(rows.part.first_view, rows.part.end_view)
    kept = np.ones(rows.label.shape, np.bool_)
    if choice.keys:
        kept &= np.isin(np.array(rows.keys, object), choice.keys)[:, None]
    if choice.views is not None:
        kept &= np.isin(views, choice.views)
    if choice.target is not None:
        kept &= (rows.target == choice.target)[:, None]
    if choice.disagree:
        kept &= (rows.label != rows.target[:, None]) & (rows.target >= 0)[:, None]
    doubt = _required_doubt(rows, store) if choice.high_entropy else np.zeros(rows.label.shape)
    samples = np.flatnonzero(rows.accepted)
    # Thinned before there is an object for each: a part may have a hundred thousand views.
    chosen = np.argwhere(kept)[_kept_of(doubt[kept], choice)]
    return [
        ViewIndex(
            shard=rows.part.shard,
            sample=int(samples[row]),
            view=int(views[column]),
            doubt=float(doubt[row, column]),
        )
        for row, column in chosen.tolist()
    ]


def _required_doubt(rows: PartRows, store: LabelStore) -> NDArray[np.float64]:
    found = doubt_of(rows)
    if found is None:
        raise ConfigError(
            f"`high_entropy` needs probabilities, and {store.root} has none; label with `keep` "
            "topk=5 or confidence"
        )
    return found


def doubt_of(rows: PartRows) -> NDArray[np.float64] | None:
    """Return the entropy of the probabilities that are stored, in bits, (N, V); None for none.

    All other classes count as one, so it is a lower bound.
    """
    columns = {name: COLUMNS[name].read(values) for name, values in rows.columns.items()}
    if "topk_logprob" in columns:
        logs = [columns["topk_logprob"], columns["topk_rest"][..., None]]
        share = np.exp(np.concatenate(logs, axis=-1).astype(np.float64))
    elif "confidence" in columns:
        sure = columns["confidence"].astype(np.float64)
        share = np.stack([sure, 1 - sure], axis=-1)
    else:
        return None
    bits: NDArray[np.float64] = -(share * np.log2(np.maximum(share, 1e-12))).sum(-1)
    return bits


def _some(found: list[ViewIndex], choice: ViewChoice) -> list[ViewIndex]:
    doubt = np.array([one.doubt for one in found])
    return [found[n] for n in _kept_of(doubt, choice).tolist()]


def _kept_of(doubt: NDArray[np.float64], choice: ViewChoice) -> NDArray[np.int64]:
    """Return which of N views to keep: the most doubtful first, or some from all over."""
    if choice.high_entropy:
        return np.argsort(-doubt, kind="stable")[: choice.asked]
    return _spread(len(doubt), choice.asked)


def _spread(count: int, most: int) -> NDArray[np.int64]:
    return np.linspace(0, count - 1, min(count, most)).astype(np.int64)


def _neither_first(store: LabelStore, found: Sequence[ViewIndex], most: int) -> list[ViewIndex]:
    """Return some views, those last in which the teacher names the image mixed in."""
    partners = _Partners(store)
    named = np.array([partners.are_named(one) for one in found], np.bool_)
    neither, partner = np.flatnonzero(~named), np.flatnonzero(named)
    first = neither[_spread(len(neither), most)]
    last = partner[_spread(len(partner), most - len(first))]
    return [found[number] for number in (*first.tolist(), *last.tolist())]


class _Partners:
    """Who is mixed into whom, by the store alone: no shard is opened."""

    def __init__(self, store: LabelStore) -> None:
        self._store = store
        self._rows = lru_cache(maxsize=4)(store.read_part)
        self._of_view = lru_cache(maxsize=512)(self._drawn)

    def are_named(self, one: ViewIndex) -> bool:
        """Return whether a view's label is the true class of the image mixed in."""
        rows, pairing = self._part(one.shard, one.view)
        partner = self._of_view(one.shard, one.view)[one.sample]
        side = self._store.identity.augment.image_size
        mix = pairing.draw_mix(one.view, (one.sample, partner), side)
        if mix.kind is MixKind.NONE or not rows.accepted[partner]:
            return False
        row, other = (int(rows.accepted[:sample].sum()) for sample in (one.sample, partner))
        return bool(rows.label[row, one.view - rows.part.first_view] == rows.target[other])

    def _part(self, shard: int, view: int) -> tuple[PartRows, Pairing]:
        manifest, identity = self._store.manifest, self._store.identity
        rows = self._rows(manifest.find_part(shard, view))
        return rows, Pairing(
            root_seed=identity.root_seed,
            shard=manifest.by_shard[shard],
            rejected=frozenset(one.index for one in rows.rejections),
            config=identity.mix,
        )

    def _drawn(self, shard: int, view: int) -> dict[int, int]:
        return self._part(shard, view)[1].of_shard(view)


class Drawing:
    """Redraws views of a store's parts."""

    def __init__(self, store: LabelStore, files: Mapping[int, ShardFile], *, floats: bool) -> None:
        self._store, self._files, self._floats = store, files, floats
        self._shard = lru_cache(maxsize=4)(self._open_shard)
        self._part = lru_cache(maxsize=4)(self._open_part)

    def _open_shard(self, number: int) -> Shard:
        return open_known_shard(self._files[number], self._store.manifest.by_shard[number])

    def _open_part(self, entry: PartEntry) -> tuple[PartRows, PartViews]:
        rows, shard = self._store.read_part(entry), self._shard(entry.part.shard)
        return rows, PartViews(self._store.identity, shard, rows)

    def draw(self, wanted: ViewIndex) -> DrawnView:
        """Return a view with its labels; raises ``ReplayError`` for another digest."""
        store, shard = self._store, self._shard(wanted.shard)
        rows, views = self._part(store.manifest.find_part(wanted.shard, wanted.view))
        sample, column = shard.samples[wanted.sample], wanted.view - rows.part.first_view
        reason = {one.index: one.reason for one in rows.rejections}.get(wanted.sample)
        known = DrawnView(
            shard=shard.info.name,
            key=sample.key,
            view=wanted.view,
            target=sample.target,
            names=store.manifest.classes,
            rejection=reason,
        )
        if reason is not None:
            return known
        accepted = rows.accepted
        row = int(accepted[: wanted.sample].sum()) if accepted[wanted.sample] else None
        if row is not None and int(rows.target[row]) not in (-1, sample.target):
            raise ShardError(
                f"{shard.path}: sample {sample.key!r} has target {sample.target}, the store says "
                f"{int(rows.target[row])}; use the very shards that were labelled"
            )
        pair = views.pair(wanted.sample, wanted.view)
        made = views.make(pair, wanted.view, digest=True)
        mixed = views.mixed(pair, wanted.view, made)
        digests = () if row is None else self._verified(rows, views, row, column, shard)
        other = None if made.mix.kind is MixKind.NONE else shard.samples[pair[1]]
        original, augment = views.decoded(wanted.sample), store.identity.augment
        return replace(
            known,
            label=None if row is None else int(rows.label[row, column]),
            columns={
                name: np.asarray(COLUMNS[name].read(values[row, column]))
                for name, values in rows.columns.items()
                if row is not None
            },
            original=original,
            params=draw_view(views.seed(wanted.sample), wanted.view, image_size(original), augment),
            mix=made.mix,
            partner=None if other is None else other.key,
            partner_target=None if other is None else other.target,
            own=made.pixels,
            pixels=_levels(mixed[0].numpy(), augment.mean, augment.std),
            digests=digests,
        )

    def _verified(
        self, rows: PartRows, views: PartViews, row: int, column: int, shard: Shard
    ) -> tuple[str, ...]:
        """Return which digests of a view are stored; each is compared."""
        if not rows.has_digest[row, column]:
            return ()
        view = rows.part.first_view + column
        mixed = self._floats and bool(mixed_mask(rows)[row, column])
        for name, word in views.digests(row, view, mixed=mixed).items():
            stored = int(getattr(rows, name)[row, column])
            if word != f"{stored:08x}":
                raise ReplayError(
                    f"{shard.path}: view {view} of {rows.keys[row]!r} has {name} {word} here, and "
                    f"{stored:08x} in the store: these are not the pixels that were labelled; "
                    "verify the store with its shards"
                )
        return ("pixels", "mixed floats") if mixed else ("pixels",)


def _levels(image: NDArray[np.float32], mean: Sequence[float], std: Sequence[float]) -> Pixels:
    """Return a normalized image, (3, S, S), as levels of 0 to 255, (S, S, 3)."""
    scale, shift = 255 * np.array(std), 255 * np.array(mean)
    levels = image.transpose(1, 2, 0).astype(np.float64) * scale + shift
    found: Pixels = np.rint(levels).clip(0, 255).astype(np.uint8)
    return found


def show_views(views: Sequence[DrawnView], *, original: bool = False) -> Image:
    """Return a contact sheet: a tile for each view, and below it what there is to say.

    Texts have a color where the label is not the image's own class, and are gray where there is
    nothing to compare; the bottom says what colors mean. No row parts a sample's image and views.
    Views of less than 128 pixels are enlarged by a whole number, others have their own size. With
    ``original``, the tile before the views of a sample is its image, with the box of each crop.
    A notebook shows the picture as it is returned.

    >>> views = draw_views(open_store("teacher.parquet"), ["digits-{0..1}.tar"])
    >>> show_views(views).mode
    'RGB'
    """
    from PIL import Image

    if not views:
        raise ConfigError("`views` is empty; choose one at least")
    groups = _groups(views, original=original)
    cells = [cell for group in groups for cell in group]
    side = max(cell.side for cell in cells)
    font = _font("".join(line for cell in cells for line in cell.lines))
    texts = [_wrapped(cell.lines, side, font) for cell in cells]
    tall = max(cell.image.height for cell in cells)
    height = tall + _GAP + max(map(len, texts)) * _LINE
    corners = _corners([len(group) for group in groups])
    width = (1 + max(column for _, column in corners)) * (side + _GAP)
    bottom = _GAP + (1 + corners[-1][0]) * (height + _GAP)
    legend = [
        (line, color)
        for color, text in _legend(views).items()
        for line in _wrapped([text], width - _GAP, font)
    ]
    size = (_GAP + width, bottom + len(legend) * _LINE + _GAP * bool(legend))
    sheet = Image.new("RGB", size, _PAPER)
    for number, (line, color) in enumerate(legend):
        _write(sheet, (_GAP, bottom + number * _LINE), [line], font, color)
    for cell, text, (row, column) in zip(cells, texts, corners, strict=True):
        left, top = _GAP + column * (side + _GAP), _GAP + row * (height + _GAP)
        sheet.paste(cell.image, (left, top))
        _write(sheet, (left, top + tall + _GAP // 2), text, font, cell.color)
    return sheet


def _corners(groups: Sequence[int]) -> list[tuple[int, int]]:
    """Return row and column of each cell of groups of so many, in rows that leave few holes.

    A group goes on in the next row only if it is longer than a row; there are more columns than
    rows, where one column more or less fills the rows no better.
    """
    cells = sum(groups)
    usual = min(cells, _WIDEST, math.ceil(math.sqrt(1.5 * cells)))
    longest = min(max(groups), _WIDEST)
    laid = [
        _laid(groups, max(longest, one)) for one in (usual, usual - 1, usual + 1) if one <= _WIDEST
    ]
    return min(laid, key=lambda one: (1 + one[-1][0]) * (1 + max(column for _, column in one)))


def _laid(groups: Sequence[int], columns: int) -> list[tuple[int, int]]:
    found, end = list[tuple[int, int]](), 0
    for size in groups:
        if end % columns + size > columns:
            end += -end % columns
        found += [divmod(end + number, columns) for number in range(size)]
        end += size
    return found


def _legend(views: Sequence[DrawnView]) -> dict[tuple[int, int, int], str]:
    """Return what the colors of the views' texts mean."""
    mixed = any(one.mix.kind is not MixKind.NONE for one in views)
    meanings = {
        _INK: "black: the teacher's class is the image's own",
        _WRONG: "red: the teacher's class is neither the image's own nor that of the one mixed in"
        if mixed
        else "red: the teacher's class is not the image's own",
        _PARTNERS: "brown: the teacher's class is that of the image mixed in",
    }
    used = set(map(_color, views))
    found = {color: text for color, text in meanings.items() if color in used}
    if mixed:
        found[_GRAY] = (
            "crop, operations and erasing are those of the image itself; the one mixed in is that "
            "image's view of the same number, with its own"
        )
    return found


def require_sheet_name(path: Path) -> None:
    """Raise ``ConfigError`` for another suffix than .png."""
    if path.suffix.lower() != ".png":
        raise ConfigError(f"`out` is {path}: the name of a sheet ends in .png")


def save_sheet(sheet: Image, out: str | Path) -> Path:
    """Write a sheet as a PNG file, in one step over the one that may be there.

    Raises ``ConfigError`` for another suffix than .png.
    """
    path = Path(out).expanduser()
    require_sheet_name(path)
    file = io.BytesIO()
    sheet.save(file, "PNG")
    replace_file(path, file.getvalue())
    return path


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cell:
    """A tile, and the lines below it."""

    image: Image
    side: int
    lines: tuple[str, ...]
    color: tuple[int, int, int]


def _groups(views: Sequence[DrawnView], *, original: bool) -> list[list[_Cell]]:
    """Return cells that belong together: each view, or the original of a sample and its views."""
    pixels = [one.pixels for one in views if one.pixels is not None]
    size = pixels[0].shape[0] if pixels else _SMALLEST
    scale = max(1, -(-_SMALLEST // size))
    side = max(_NARROWEST, size * scale)
    tiles = [
        _Cell(image=_tile(one, size, scale), side=side, lines=one.caption(), color=_color(one))
        for one in views
    ]
    if not original:
        return [[tile] for tile in tiles]
    samples: dict[tuple[str, str], list[int]] = {}
    for number, view in enumerate(views):
        samples.setdefault((view.shard, view.key), []).append(number)
    groups = []
    for same in samples.values():
        of_sample, image = [views[number] for number in same], views[same[0]].original
        first = [] if image is None else [_original_cell(image, of_sample, side)]
        groups.append([*first, *(tiles[number] for number in same)])
    return groups


def _color(view: DrawnView) -> tuple[int, int, int]:
    if view.label is None or view.target < 0:
        return _GRAY
    if view.label == view.target:
        return _INK
    return _PARTNERS if view.names_partner else _WRONG


def _tile(view: DrawnView, size: int, scale: int) -> Image:
    from PIL import Image

    if view.pixels is None:
        return Image.new("RGB", (size * scale, size * scale), (200, 200, 200))
    return Image.fromarray(view.pixels.repeat(scale, axis=0).repeat(scale, axis=1))


def _original_cell(original: Pixels, views: Sequence[DrawnView], side: int) -> _Cell:
    """Return an image as it is in the shard, shrunk to a tile, with the crop of each view."""
    from PIL import Image, ImageDraw

    height, width = original.shape[:2]
    scale = side / max(height, width)
    image = Image.fromarray(original).resize(
        (max(1, round(width * scale)), max(1, round(height * scale)))
    )
    draw, boxes = ImageDraw.Draw(image), 0
    for number, view in enumerate(views):
        if view.params is None:
            continue
        crop, color = view.params.crop, _BOXES[number % len(_BOXES)]
        left, top = crop.left * scale, crop.top * scale
        right = max(left + 1, (crop.left + crop.width) * scale - 1)
        bottom = max(top + 1, (crop.top + crop.height) * scale - 1)
        draw.rectangle((left, top, right, bottom), outline=color, width=2)
        draw.text((left + 4, top + 2), str(view.view), fill=color, font=_font())
        boxes += 1
    lines = (
        views[0].key,
        f"as in the shard, {width} x {height}",
        f"with the crop{'s' * (boxes != 1)} of its view{'s' * (boxes != 1)}",
    )
    return _Cell(image=image, side=side, lines=lines, color=_GRAY)


def _font(text: str = "") -> Any:
    """Return Pillow's own letters, or DejaVu's where those lack one of the text's."""
    from PIL import ImageFont

    own = ImageFont.load_default(_LETTERS)
    if all(_has(own, letter) for letter in set(text)):
        return own
    try:
        return ImageFont.truetype("DejaVuSans.ttf", _LETTERS)  # where the system keeps letters
    except OSError:
        return own


def _has(font: Any, letter: str) -> bool:
    """Return whether a letter is drawn otherwise than one that no font has."""
    return letter.isascii() or bytes(font.getmask(letter)) != bytes(font.getmask("\uffff"))


def _in_letters_of(font: Any, text: str) -> str:
    """Return a text without the letters that a font lacks: a for ä, ss for ß, or else ?."""

    def instead(letter: str) -> str:
        bare = normalize("NFKD", letter).casefold().encode("ascii", "ignore").decode()
        return (bare.upper() if letter.isupper() else bare) or "?"

    return "".join(one if _has(font, one) else instead(one) for one in text)


def _wrapped(lines: Sequence[str], width: int, font: Any) -> list[str]:
    """Return lines that fit; what a stranger chose is escaped first."""
    fitting = []
    for line in lines:
        left = _in_letters_of(font, printable(line.replace("\n", " ")))
        while left:
            end = len(left)
            while end > 1 and font.getlength(left[:end]) > width:
                end -= 1
            if end < len(left):  # after a comma, a word, or a part of a name; else in the word
                comma, space = left.rfind(", ", 1, end) + 1, left.rfind(" ", 1, end)
                part = max(left.rfind(one, 1, end) + 1 for one in "_/-")
                best = (one for one in (comma, space, part) if one > end // 2)
                end = next(best, max(space, part, 0) or end)
            fitting.append(left[:end])
            left = left[end:].lstrip()
    return fitting


def _write(
    sheet: Image,
    corner: tuple[int, int],
    lines: Sequence[str],
    font: Any,
    color: tuple[int, int, int],
) -> None:
    from PIL import ImageDraw

    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(lines):
        draw.text((corner[0], corner[1] + number * _LINE), line, fill=color, font=font)
