"""A report of a store as a page: what it is, what was checked, what its labels are, pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.classes import class_text
from pipeline.errors import REJECTION_WORDS, ConfigError
from pipeline.files.cache import CacheConfig
from pipeline.files.local import expand_shards
from pipeline.files.local import replace as replace_file
from pipeline.growth import require, settle
from pipeline.reporting.charts import Series, columns_chart, lines_chart, share_text
from pipeline.reporting.page import (
    Bar,
    Block,
    Matrix,
    Page,
    Picture,
    Section,
    Statements,
    Table,
    Text,
    render,
    require_page_name,
    shortened,
)
from pipeline.shards.index import match_shards
from pipeline.store import Agreement, LabelStore
from pipeline.store.card import RUN_HEADER, inspect_store
from pipeline.tools.against import Student, StudentDiff, compare_student
from pipeline.tools.diff import MARGIN_STEP, Disagreement, MarginFlips, StoreDiff, diff_stores
from pipeline.tools.either import EitherCounter
from pipeline.tools.gallery import Chooser, gallery_of, picture_of
from pipeline.tools.show import Drawing, ViewIndex
from pipeline.tools.stats import (
    ENTROPY_STEP,
    SHARE_STEP,
    ShardLabels,
    ShareStats,
    StoreStats,
    store_stats,
)
from pipeline.tools.target import ShowProgress
from pipeline.tools.verify import VerifyReport, check_fingerprints, verify_store

__all__ = ["ReportConfig", "StoreReport", "report_store"]

_LISTED = 1000  # rows of a table
_COLUMNS = 40  # classes in a chart, which more would make unreadable
_MISMATCHES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportConfig:
    """How a report is made."""

    images: bool = True
    """Show pictures, if shards are given. Without, nothing of the images is in the page; keys and
    names of classes are."""
    count: int = 360
    """Pictures at most."""
    megabytes: float = 15.0
    """Size of the page at most: pictures beyond it are left out, and long tables cut."""

    def __post_init__(self) -> None:
        settle(self)
        require(self, "count", 1 <= self.count <= 5000, "use 1..5000")
        require(self, "megabytes", 0 < self.megabytes <= 500, "use a number up to 500")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreReport:
    """What a report says."""

    page: str  # HTML, in one file
    pictures: int
    verification: VerifyReport
    stats: StoreStats
    diff: StoreDiff | None  # against the other store
    student: StudentDiff | None  # against a student

    def save(self, out: str | Path) -> int:
        """Write the page, in one step over the one that may be there; return its bytes.

        Raises ``ConfigError`` for another suffix than .html.
        """
        path, data = Path(out).expanduser(), self.page.encode()
        require_page_name(path)
        replace_file(path, data)
        return len(data)


def report_store(
    store: LabelStore,
    shards: Sequence[str] = (),
    config: ReportConfig = ReportConfig(),
    *,
    against: LabelStore | None = None,
    student: Student | None = None,
    cache: CacheConfig | None = None,
    show: ShowProgress = lambda done, total: None,
) -> StoreReport:
    """Return a report of a store as one HTML file, which asks for nothing.

    The store is verified first; with shards, all or some, as ``verify_store`` does with them. Then
    each part is read once more, and with ``against`` those of another store of the same views.
    A ``student`` is shown some 1,024 views of the shards, as it is trained on them.
    Pictures are redrawn from the shards, unless a digest was not found again: then there are none.
    ``show`` is called with the parts that were counted.

    Raises what ``verify_store``, ``diff_stores``, ``compare_student`` and ``draw_views`` do.

    >>> report = report_store(open_store("teacher.parquet"), ["digits-{0..1}.tar"])
    >>> report.pictures, report.page[:15]
    (210, '<!doctype html>')
    """
    if student is not None and not shards:
        raise ConfigError("`against` is a student, which must see views: give `shards` too")
    verification = verify_store(store, shards, subset=True, cache=cache)
    redrawing = bool(shards) and not verification.mismatches
    drawing = redrawing and config.images
    given = expand_shards(shards, cache) if redrawing else ()
    files = match_shards(store.manifest.shards, given, subset=True) if redrawing else {}
    chooser = Chooser(files if drawing else {}, config.count)
    counter = EitherCounter(store)

    def watch(labels: ShardLabels) -> None:
        chooser.add(labels)
        counter.add(labels)

    stats, either = store_stats(store, watch=watch, show=show), counter.counts
    diff = None if against is None else diff_stores(store, against)
    asked = None
    if student is not None and redrawing:
        asked = compare_student(store, files, student)
    pictures: dict[ViewIndex, Picture] = {}
    if drawing:
        chosen, bits = chooser.chosen()
        drawer = Drawing(store, files, floats=check_fingerprints(store))
        # In the order of the store, so that each part is opened once; then the most wanted first.
        drawn = {
            one: picture_of(
                drawer.draw(one), bits[one.shard, one.sample] if len(stats.views) > 1 else None
            )
            for one in sorted(chosen, key=_in_store)
        }
        pictures = {one: drawn[one] for one in chosen}
    page = _page(store, stats, either, verification, diff, asked)
    text, shown = _within(page, pictures, config, why_none=_why_none(shards, config, verification))
    return StoreReport(
        page=text,
        pictures=shown,
        verification=verification,
        stats=stats,
        diff=diff,
        student=asked,
    )


def _in_store(one: ViewIndex) -> tuple[int, int, int]:
    return one.shard, one.sample, one.view


def _within(
    page: Page, pictures: Mapping[ViewIndex, Picture], config: ReportConfig, why_none: str
) -> tuple[str, int]:
    """Return a page with as many pictures as fit, the most wanted ones, and how many these are.

    Where it is too large without any, tables and texts are cut.
    """
    most, count, rows = int(config.megabytes * 1e6), len(pictures), _LISTED
    while True:
        shown = sorted(list(pictures)[:count], key=_in_store)
        text = _about_pictures(count, len(pictures)) if count else why_none
        blocks: tuple[Block, ...] = (Text(paragraphs=(text,)),)
        if count:
            blocks += (gallery_of([pictures[one] for one in shown]),)
        section = Section(name="pictures", title="Pictures", blocks=blocks)
        html = render(replace(page, sections=(*page.sections, section)))
        size = len(html.encode())
        if size <= most or not (count or rows):
            return html, count
        if count:
            count = min(count - 1, int(count * most / size))
        else:  # names or records of runs that are long, or many
            rows //= 4
            page = shortened(page, rows)


def _about_pictures(shown: int, drawn: int) -> str:
    left = f" {drawn - shown} more did not fit into the page." if shown < drawn else ""
    return (
        f"{shown} views, redrawn from the shards as teacher and student get them: cropped, "
        "augmented and mixed. Of these about half are views that the teacher calls otherwise than "
        "the truth, where there are so many, a quarter those of which it is least sure, the others "
        "are from all over the store: the gallery is no fair sample. Images of more than 64 pixels "
        f"are compressed for this page, labels are those of the originals.{left}"
    )


def _why_none(shards: Sequence[str], config: ReportConfig, verification: VerifyReport) -> str:
    if not config.images:
        return "None were asked for: nothing of the images is in this page."
    if not shards:
        return "None: the shards were not given, and images are in them."
    if verification.mismatches:
        return "None: the shards do not give the views that were labelled, see Verification."
    return "None fits into the page: it would be larger than was asked for."


def _page(
    store: LabelStore,
    stats: StoreStats,
    either: Agreement,
    verification: VerifyReport,
    diff: StoreDiff | None,
    student: StudentDiff | None,
) -> Page:
    manifest, failed = store.manifest, len(verification.mismatches)
    shards = f"{len(manifest.shards)} shard{'s' * (len(manifest.shards) != 1)}"
    several = len(stats.views) > 1  # of one view nothing varies
    sections = [
        _verification(verification),
        _agreement(stats, either),
        _classes(stats, mixed=either.known > 0),
        *([_spread(stats)] if several else []),
        *([] if diff is None else [_against(diff)]),
        *([] if student is None else [_student(student)]),
        _card(store),
    ]
    return Page(
        title=f"Labels of {_short(store.root.name)}",
        subtitle=f"{manifest.identity.teacher.architecture}, {shards}, "
        f"identity {manifest.identity.digest[:12]}",
        figures=(
            ("labels", f"{stats.labels:,}"),
            ("samples", f"{manifest.counts.labelled:,}"),
            *_right(stats, either),
            ("classes that are a label", f"{sum(one.labels > 0 for one in stats.classes):,}"),
            *(
                [("mean entropy of a sample's labels", f"{stats.entropy.mean:.2f} bits")]
                if several
                else []
            ),
            ("verification", f"{failed} mismatches" if failed else "passed"),
        ),
        sections=tuple(sections),
        note="Views are cropped, and mixed of two images: on plain images the teacher is right "
        "more often."
        if either.known
        else "",
        warning=f"Verification FAILED: {failed} views are not those that were labelled."
        if failed
        else "",
    )


def _right(stats: StoreStats, either: Agreement) -> list[tuple[str, str]]:
    """Return how often the teacher is right, as a reader takes it who knows of no mixing."""
    if not either.known:
        return [("agreement with the truth", _share(stats.truth))]
    return [
        ("teacher names one of the two mixed images", _share(either)),
        ("teacher names the image's own class", _share(stats.truth)),
    ]


def _verification(report: VerifyReport) -> Section:
    redrawn = (
        f"Files are whole. Of {report.digests} views the store has a digest, a checksum of the "
        f"pixels that the teacher saw; {report.redrawn} of them were drawn again from the shards "
        "and have the same. So the labels belong to the pixels of these shards."
        if report.redrawn
        else "Files are whole. Nothing was redrawn, so nothing here shows that the labels belong "
        "to the pixels of any shards."
    )
    failed = len(report.mismatches)
    mismatches = Table(
        caption="Mismatches",
        name="mismatches",
        header=("shard", "sample", "view", "what", "stored", "found"),
        rows=tuple(
            (one.shard, one.key, one.view, one.column, one.stored, one.found)
            for one in report.mismatches[:_MISMATCHES]
        ),
        more=max(0, failed - _MISMATCHES),
    )
    statements = Statements(
        verdict=f"FAILED: {failed} mismatches." if failed else f"Passed. {redrawn}",
        passed=not failed if report.redrawn or failed else None,
        lines=report.in_words(),
    )
    blocks: tuple[Block, ...] = (statements, mismatches) if failed else (statements,)
    return Section(name="verification", title="Verification", blocks=blocks)


def _short(store: str) -> str:
    """Return a store's name without its directories, which are nobody's business."""
    return store.rstrip("/").rpartition("/")[2]


def _share(counts: Agreement) -> str:
    return share_text(counts.equal / counts.known) if counts.known else "unknown"


def _bar(counts: Agreement) -> Bar | str:
    if not counts.known:
        return "-"
    return Bar(text=_share(counts), share=counts.equal / counts.known)


def _agreement(stats: StoreStats, either: Agreement) -> Section:
    unknown = stats.labels - stats.truth.known
    known = [one for one in stats.views if one.truth.known]
    points = [(float(one.view), one.truth.equal / one.truth.known) for one in known]
    overall = Table(
        name="overall",
        half=True,
        header=("", "labels"),
        rows=(
            ("all", stats.labels),
            ("of samples whose true class is unknown", unknown),
            ("of samples whose true class is known", stats.truth.known),
            ("equal to the true class", stats.truth.equal),
            ("agreement", _share(stats.truth)),
            *(
                [(f"one of the two classes, of {either.known:,} mixed views", _share(either))]
                if either.known
                else []
            ),
        ),
    )
    chart = lines_chart(
        "Agreement with the truth, by view",
        [Series(name="agreement", points=points)],
        x_label="view",
        y_label="agreement",
        shares=True,
        from_zero=True,  # so that chance from view to view looks no larger than it is
        table=_agreement_table(
            "views", "view", [(str(one.view), one.labels, one.truth) for one in stats.views]
        ),
    )
    blocks: list[Block] = [
        Text(
            paragraphs=(
                "Agreement compares a label with the class of the view's own image."
                + (
                    " Views are augmented and mixed of two images, and the own one may be the "
                    "smaller part: on plain images the same teacher agrees more often."
                    if either.known
                    else ""
                ),
            )
        ),
        overall,
        *([chart] if len(stats.views) > 1 else []),
    ]
    for name, bins in (("confidence", stats.confidence), ("margin", stats.margin)):
        if bins:
            blocks += _sureness(name, bins)
    return Section(name="agreement", title="Agreement", blocks=tuple(blocks))


def _agreement_table(name: str, what: str, rows: Sequence[tuple[str, int, Agreement]]) -> Table:
    return Table(
        name=name,
        header=(what, "labels", "truth known", "equal", "agreement"),
        rows=tuple(
            (text, labels, truth.known, truth.equal, _bar(truth))
            for text, labels, truth in rows[:_LISTED]
        ),
        more=max(0, len(rows) - _LISTED),
    )


def _sureness(name: str, bins: Sequence[ShareStats]) -> list[Block]:
    """Return how sure the teacher is, and how often it is right where it is so sure."""
    right = [
        ((one.low + SHARE_STEP / 2) / 255, one.truth.equal / one.truth.known)
        for one in bins
        if one.truth.known
    ]
    what = "probability of the label" if name == "confidence" else "lead over the next class"
    return [
        columns_chart(
            f"Labels by {name}",
            [(_bin_text(one.low), one.labels) for one in bins],
            x_label=what,
            y_label="labels",
        ),
        lines_chart(
            f"Agreement with the truth, by {name}",
            [Series(name="agreement", points=right)],
            x_label=what,
            y_label="agreement",
            shares=True,
            from_zero=True,
            table=_agreement_table(
                name, what, [(_bin_text(one.low), one.labels, one.truth) for one in bins]
            ),
        ),
    ]


def _bin_text(low: int, step: int = SHARE_STEP) -> str:
    return f"{low / 255:.3f} to {min(255, low + step) / 255:.3f}"


def _classes(stats: StoreStats, *, mixed: bool) -> Section:
    names = stats.names
    worst = sorted(
        (one for one in stats.classes if one.truth.known),
        key=lambda one: (one.truth.equal / one.truth.known, one.number),
    )
    most = max((one.labels for one in stats.classes), default=1) or 1
    labels = [one for one in stats.classes if one.labels]
    frequent = sorted(labels, key=lambda one: (-one.labels, one.number))
    listed = sorted(frequent[:_COLUMNS], key=lambda one: one.number)
    shown = "" if len(frequent) <= _COLUMNS else f", the {_COLUMNS} most frequent"
    by_label = Table(
        name="labels",
        header=("the teacher's class", "labels"),
        rows=tuple(
            (class_text(one.number, names), Bar(text=f"{one.labels:,}", share=one.labels / most))
            for one in frequent[:_LISTED]
        ),
        more=max(0, len(frequent) - _LISTED),
    )
    by_share = [sum(_tenth(one.truth) == n for one in worst) for n in range(10)]
    return Section(
        name="by-class",
        title="Classes",
        blocks=(
            columns_chart(
                f"Labels by class{shown}",
                [(class_text(one.number, names), one.labels) for one in listed],
                x_label="the teacher's class",
                y_label="labels",
                table=by_label,
            ),
            columns_chart(
                "Classes by agreement with the truth",
                [(f"{10 * n} to {10 * n + 10} %", count) for n, count in enumerate(by_share)],
                x_label="agreement, per cent",
                y_label="classes",
            ),
            Table(
                name="classes",
                half=True,
                caption="Agreement by true class, the lowest first",
                header=("true class", "views", "equal", "agreement"),
                rows=tuple(
                    (
                        class_text(one.number, names),
                        one.truth.known,
                        one.truth.equal,
                        _bar(one.truth),
                    )
                    for one in worst[:_LISTED]
                ),
                more=max(0, len(worst) - _LISTED),
            ),
            Table(
                name="confused",
                half=True,
                caption="Labels other than the true class, most frequent first"
                + ("; of a mixed view maybe the partner's" if mixed else ""),
                header=("true class", "the teacher's", "views"),
                rows=tuple(
                    (
                        class_text(one.target, names),
                        class_text(one.label, names),
                        Bar(text=f"{one.views:,}", share=one.views / stats.confused[0].views),
                    )
                    for one in stats.confused
                ),
            ),
        ),
    )


def _tenth(counts: Agreement) -> int:
    return min(9, 10 * counts.equal // counts.known)


def _spread(stats: StoreStats) -> Section:
    entropy = stats.entropy
    columns = [
        (f"{number * ENTROPY_STEP:g} to {(number + 1) * ENTROPY_STEP:g}", count)
        for number, count in enumerate(entropy.histogram)
    ]
    text = (
        f"The label of a sample varies over its views: by {entropy.mean:.4f} bits in the mean of "
        f"{entropy.samples:,} samples. 0 is a sample that has one label in all its views."
    )
    chart = columns_chart(
        "Samples by the entropy of their labels",
        columns,
        x_label="bits",
        y_label="samples",
        table=Table(name="entropy", header=("bits", "samples"), rows=tuple(columns)),
    )
    return Section(
        name="spread",
        title="Spread over views",
        blocks=(chart, Text(paragraphs=(text,), half=True)),
    )


def _against(diff: StoreDiff) -> Section:
    truth_a, truth_b, teachers = map(_different, (diff.a_truth, diff.b_truth, diff.teachers))
    worst = sorted(diff.classes.items(), key=lambda one: (-_different(one[1]), one[0]))
    same = diff.teachers.rows - diff.teachers.different
    blocks: list[Block] = [
        Text(paragraphs=(f"A is {_short(diff.a)}, B is {_short(diff.b)}.",)),
        Table(
            name="against",
            header=("", ""),
            rows=(
                ("views that both label", diff.teachers.rows),
                ("same label", same),
                ("shards in both", diff.shards),
                ("shards in one alone", diff.shards_of_one),
                ("samples of common shards that one rejects", diff.samples_of_one),
                ("digests of pixels compared, all equal", diff.digests),
            ),
        ),
        Matrix(
            name="disagreement",
            caption="Disagreement: share of views that row and column call differently",
            names=("truth", "A", "B"),
            shares=((0, truth_a, truth_b), (truth_a, 0, teachers), (truth_b, teachers, 0)),
        ),
        Table(
            name="against-classes",
            caption="Disagreement of A and B by true class, the highest first",
            folded=True,
            header=("true class", "views", "other label", "disagreement"),
            rows=tuple(
                (class_text(number, diff.names), one.rows, one.different, _different_bar(one))
                for number, one in worst[:_LISTED]
            ),
            more=max(0, len(worst) - _LISTED),
        ),
    ]
    for name, margins in (("A", diff.margins_a), ("B", diff.margins_b)):
        if margins:
            blocks.append(_flips(name, margins))
    lines = diff.different_identity or ("nothing",)
    blocks.append(
        Table(caption="They differ in", header=("",), rows=tuple((one,) for one in lines))
    )
    return Section(name="other", title=f"Against {_short(diff.b)}", blocks=tuple(blocks))


def _student(diff: StudentDiff) -> Section:
    worst = sorted(diff.classes.items(), key=lambda one: (-_different(one[1]), one[0]))
    text = (
        f"The student of {diff.student} was shown {diff.views:,} views of {diff.of:,}, spread over "
        "the store, as it is trained on them: augmented and mixed. Its heads are compared with the "
        "teacher's labels and the image's own class."
    )
    return Section(
        name="student",
        title=f"Against the student of {diff.student}",
        blocks=(
            Text(paragraphs=(text,)),
            Matrix(
                name="student-disagreement",
                caption="Disagreement: share of views that row and column call differently",
                names=diff.names,
                shares=diff.disagreement,
            ),
            Table(
                name="student-classes",
                caption=f"Disagreement of the teacher and the {diff.names[-1]} by true class, the "
                "highest first",
                folded=True,
                header=("true class", "views", "other label", "disagreement"),
                rows=tuple(
                    (
                        class_text(number, diff.class_names),
                        one.rows,
                        one.different,
                        _different_bar(one),
                    )
                    for number, one in worst[:_LISTED]
                ),
                more=max(0, len(worst) - _LISTED),
            ),
        ),
    )


def _different(pair: Disagreement) -> float:
    return pair.different / pair.rows if pair.rows else 0.0


def _different_bar(pair: Disagreement) -> Bar:
    return Bar(text=share_text(_different(pair)), share=_different(pair))


def _flips(name: str, margins: Sequence[MarginFlips]) -> Table:
    return Table(
        name=f"margin-{name}",
        caption=f"Other labels by margin of {name}",
        folded=True,
        header=("margin", "views", "other label", "disagreement"),
        rows=tuple(
            (
                _bin_text(one.low, MARGIN_STEP),
                one.flips.rows,
                one.flips.different,
                _different_bar(one.flips),
            )
            for one in margins
        ),
    )


def _card(store: LabelStore) -> Section:
    card, manifest = inspect_store(store), store.manifest
    shards = manifest.shards
    rejected = [
        (manifest.by_shard[number].name, one.key, one.reason, REJECTION_WORDS[one.reason])
        for number, many in sorted(manifest.rejections.items())
        for one in many
    ]
    return Section(
        name="card",
        title="Card",
        blocks=(
            Table(name="facts", header=("", ""), rows=tuple(card.facts())),
            Table(
                name="shards",
                caption="Shards",
                folded=True,
                header=("shard", "name", "samples", "rejected"),
                rows=tuple(
                    (
                        str(one.number),
                        one.name,
                        one.samples,
                        len(manifest.rejections.get(one.number, ())),
                    )
                    for one in shards[:_LISTED]
                ),
                more=max(0, len(shards) - _LISTED),
            ),
            Table(
                name="rejected",
                caption="Rejected images",
                folded=True,
                header=("shard", "sample", "reason", "which means"),
                rows=tuple(rejected[:_LISTED]),
                more=max(0, len(rejected) - _LISTED),
            ),
            Table(caption="Runs", folded=True, header=RUN_HEADER, rows=tuple(card.run_rows())),
        ),
    )
