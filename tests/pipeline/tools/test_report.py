"""Reports of stores: their numbers are the raw files', their pictures those that replay gives."""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
from base64 import b64decode
from collections import Counter
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import pytest
from PIL import Image

from pipeline.columns import Columns
from pipeline.errors import ConfigError
from pipeline.identity import MixConfig
from pipeline.records import PartRows, ShardInfo
from pipeline.shards.index import open_shard
from pipeline.store import (
    LabelStore,
    claim_store,
    commit_part,
    export_store,
    finish_store,
    open_store,
)
from pipeline.store.card import card_text
from pipeline.tools import ReportConfig, ViewChoice, draw_views, either, report_store
from pipeline.tools.gallery import Chooser
from pipeline.tools.report import StoreReport
from pipeline.tools.show import doubt_of
from pipeline.tools.stats import store_stats
from pipeline.views.floats import fingerprints_on
from tests.factories import digit_samples, write_shard
from tests.labelling import (
    TEACHER,
    digit_shard,
    every_column,
    hash_identity,
    label_with_hashes,
    part_of,
    write_hash_store,
)
from tests.pages import Element, number, pictures_of, read_page, table_of
from tests.pipeline.store.test_card import run_cli
from tests.storing import ALL_COLUMNS, OTHER_TEACHER, info_of, ranges, write_store

FACETS = ("teacher", "truth", "label", "mixing", "entropy")
NAMES = (
    "cat",
    "dog",
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "a&b",
)
SHARDS = [info_of(0), info_of(1, samples=9), info_of(2, samples=5)]
DIGITS = tuple(f"digit {n}" for n in range(10))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> LabelStore:
    """Return a store without shards, with all columns and names of classes."""
    root = tmp_path_factory.mktemp("plain") / "s.parquet"
    return write_store(root, SHARDS, ranges(range(8), 3), ALL_COLUMNS, fitting, NAMES)


def fitting(rows: PartRows) -> PartRows:
    """Return made-up rows with margins that are not above the confidence."""
    columns = dict(rows.columns)
    if "margin" in columns and "confidence" in columns:
        columns["margin"] = np.minimum(columns["margin"], columns["confidence"])
    return replace(rows, columns=Columns(columns))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with two shards and a store of which a third of the labels is right."""
    root = tmp_path_factory.mktemp("report")
    paths = [
        digit_shard(root / "digits-0.tar", 17, broken=(3,)),
        digit_shard(root / "digits-1.tar", 6, first=17),
    ]
    identity = hash_identity(mix=MixConfig(probability=0.6), columns=every_column(3))
    prints = claim_store(root / "s.parquet", identity, fingerprints_on(identity, "cpu"))
    infos: list[ShardInfo] = []
    for index, path in enumerate(paths):
        shard = open_shard(path, index)
        infos.append(shard.info)
        for first in (0, 4):
            rows = label_with_hashes(shard, part_of(first, 4 - first // 2, index), identity)
            commit_part(root / "s.parquet", mostly_wrong(rows))
    finish_store(root / "s.parquet", identity, prints, infos, card_text, classes=None)
    return root


def mostly_wrong(rows: PartRows) -> PartRows:
    right = np.where(rows.label % 3 == 0, rows.target[:, None], rows.label % 10)
    label = right.astype(np.uint16)
    topk = rows.columns["topk_label"].copy()
    topk[..., 0] = label
    return replace(rows, label=label, columns=Columns({**rows.columns, "topk_label": topk}))


def report_of(folder: Path, **options: object) -> StoreReport:
    config = ReportConfig(**options)  # type: ignore[arg-type]
    return report_store(open_store(folder / "s.parquet"), [str(folder / "digits-*.tar")], config)


def query(store: LabelStore, sql: str) -> list[tuple[float, ...]]:
    """Return the rows of a query over the raw files, which knows nothing of this package."""
    source = f"read_parquet('{store.root}/*/*.parquet', hive_partitioning = true)"
    return duckdb.sql(sql.replace("STORE", source)).fetchall()


def numbers(page: Element, name: str, first: int = 0) -> list[tuple[float, ...]]:
    """Return a table's numbers from one column on; a class is its number."""
    return [
        tuple(
            number(cell.split(" ")[0] if column < first else cell)
            for column, cell in enumerate(row)
        )
        for row in table_of(page, name)
    ]


def test_agreement_overall_by_view_and_by_class_is_that_of_the_raw_files(plain: LabelStore) -> None:
    page = read_page(report_store(plain).page)
    (counts,) = query(
        plain,
        "SELECT count(*), count(*) FILTER (target < 0), count(*) FILTER (target >= 0), "
        "count(*) FILTER (target = label) FROM STORE",
    )
    shown = [number(row[1]) for row in table_of(page, "overall")]
    assert shown[:4] == list(counts)
    assert shown[4] == pytest.approx(counts[3] / counts[2], abs=6e-5)
    assert numbers(page, "views") == [
        (view, labels, known, equal, pytest.approx(equal / known, abs=6e-5))
        for view, labels, known, equal in query(
            plain,
            "SELECT view, count(*), count(*) FILTER (target >= 0), "
            "count(*) FILTER (target = label) FROM STORE GROUP BY view ORDER BY view",
        )
    ]
    by_class = query(
        plain,
        "SELECT target, count(*), count(*) FILTER (target = label) FROM STORE "
        "WHERE target >= 0 GROUP BY target ORDER BY count(*) FILTER (target = label) / count(*), "
        "target",
    )
    assert numbers(page, "classes", first=1) == [
        (target, known, equal, pytest.approx(equal / known, abs=6e-5))
        for target, known, equal in by_class
    ]


def test_a_report_tells_how_often_one_of_the_mixed_images_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choice = ViewChoice(count=1024)
    store = open_store(folder / "s.parquet")
    views = draw_views(store, [str(folder / "digits-*.tar")], choice)
    mixed = [one for one in views if one.partner is not None]
    named = sum(one.label in (one.target, one.partner_target) for one in mixed)
    assert 0.2 < named / len(mixed) < 0.8
    page = read_page(report_store(store).page)
    said = f"teacher names one of the two mixed images {100 * named / len(mixed):.2f} %"
    assert said in page.text
    assert "on plain images the teacher is right more often" in page.text
    assert (
        table_of(page, "overall")[-1][0] == f"one of the two classes, of {len(mixed)} mixed views"
    )
    monkeypatch.setattr(either, "_MOST", 60)  # of a large store some
    (row,) = table_of(read_page(report_store(store).page), "overall")[5:]
    few = number(row[0].split(" ")[6])
    assert 20 <= few <= 60
    assert abs(number(row[1]) - named / len(mixed)) < 0.3


def test_labels_confused_pairs_and_entropy_are_those_of_the_raw_files(plain: LabelStore) -> None:
    page = read_page(report_store(plain).page)
    assert numbers(page, "labels", first=1) == query(
        plain, "SELECT label, count(*) FROM STORE GROUP BY label ORDER BY count(*) DESC, label"
    )
    assert numbers(page, "confused", first=2) == query(
        plain,
        "SELECT target, label, count(*) FROM STORE WHERE target >= 0 AND target <> label "
        "GROUP BY target, label ORDER BY count(*) DESC, target, label",
    )
    bins = dict(
        query(
            plain,
            "SELECT floor(bits * 2 + 1e-9), count(*) FROM (SELECT entropy(label) AS bits "
            "FROM STORE GROUP BY shard, key) GROUP BY ALL",
        )
    )
    shown = table_of(page, "entropy")
    assert {
        float(row[0].split(" to ")[0]) * 2: number(row[1]) for row in shown if row[1] != "0"
    } == bins
    (mean,) = query(
        plain,
        "SELECT avg(bits) FROM (SELECT entropy(label) AS bits FROM STORE GROUP BY shard, key)",
    )
    assert f"by {mean[0]:.4f} bits in the mean of 18 samples" in page.text


@pytest.mark.parametrize("name", ["confidence", "margin"])
def test_how_sure_the_teacher_is_is_that_of_the_raw_files(plain: LabelStore, name: str) -> None:
    page = read_page(report_store(plain).page)
    found = query(
        plain,
        f"SELECT {name} // 16, count(*), count(*) FILTER (target >= 0), "
        "count(*) FILTER (target = label) FROM STORE GROUP BY ALL ORDER BY ALL",
    )
    shown = [(number(row[0].split(" ")[0]), *map(number, row[1:4])) for row in table_of(page, name)]
    assert [row for row in shown if row[1]] == [
        (pytest.approx(low * 16 / 255, abs=6e-4), *counts) for low, *counts in found
    ]
    assert len(shown) == 16


def test_the_probability_of_the_likeliest_class_is_a_confidence_too(tmp_path: Path) -> None:
    identity = replace(ALL_COLUMNS, columns=replace(ALL_COLUMNS.columns, confidence=False))
    store = write_store(tmp_path / "s.parquet", SHARDS, [(0, 4)], identity=identity)
    steps = query(store, "SELECT topk_logprob[1] FROM STORE")
    shares = np.rint(255 * np.exp(-np.array(steps)[:, 0] / 64))
    expected = np.bincount((shares // 16).astype(int), minlength=16).tolist()
    assert [one.labels for one in store_stats(store).confidence] == expected
    assert store_stats(write_store(tmp_path / "n.parquet", SHARDS, [(0, 4)])).confidence == ()


def test_another_store_is_compared_as_the_raw_files_are(tmp_path: Path, plain: LabelStore) -> None:
    identity = replace(ALL_COLUMNS, teacher=OTHER_TEACHER.teacher)
    other = write_store(tmp_path / "o.parquet", SHARDS, [(0, 8)], identity, fitting)
    page = read_page(report_store(plain, against=other).page)
    both = (
        f"STORE AS a JOIN read_parquet('{other.root}/*/*.parquet', hive_partitioning = true) AS b "
        "USING (shard, key, view)"
    )
    ((rows, same, known, a_wrong, b_wrong),) = query(
        plain,
        "SELECT count(*), count(*) FILTER (a.label = b.label), count(*) FILTER (a.target >= 0), "
        "count(*) FILTER (a.target >= 0 AND a.label <> a.target), "
        f"count(*) FILTER (a.target >= 0 AND b.label <> a.target) FROM {both}",
    )
    shown = [number(row[1]) for row in table_of(page, "against")]
    assert shown[:4] == [rows, same, 3, 0]
    matrix = [[number(cell) for cell in row[1:]] for row in table_of(page, "disagreement")]
    a, b, teachers = a_wrong / known, b_wrong / known, 1 - same / rows
    np.testing.assert_allclose(matrix, [[0, a, b], [a, 0, teachers], [b, teachers, 0]], atol=6e-5)
    by_class = query(
        plain,
        f"SELECT a.target, count(*), count(*) FILTER (a.label <> b.label) FROM {both} "
        "WHERE a.target >= 0 GROUP BY a.target",
    )
    assert {row[:3] for row in numbers(page, "against-classes", first=1)} == set(by_class)


def test_the_card_and_what_was_checked_are_in_the_page(folder: Path, plain: LabelStore) -> None:
    report = report_of(folder, count=5)
    page = read_page(report.page)
    found = report.verification
    (verdict,) = page.all("p", **{"class": "verdict"})
    assert verdict.text == (
        f"Passed. Files are whole. Of {found.digests} views the store has a digest, a checksum of "
        f"the pixels that the teacher saw; {found.redrawn} of them were drawn again from the "
        "shards and have the same. So the labels belong to the pixels of these shards."
    )
    assert found.redrawn > 10
    for line in found.in_words():
        assert line in page.text
    facts = dict(table_of(page, "facts"))
    assert facts["samples"] == "23 = 22 labelled + 1 rejected"
    assert facts["identity"] == open_store(folder / "s.parquet").identity.digest
    assert table_of(page, "rejected")[0][:3] == ["digits-0.tar", "digit_0003", "undecodable"]
    without = read_page(report_store(plain).page)
    (verdict,) = without.all("p", **{"class": "verdict"})
    assert "Nothing was redrawn, so nothing here shows" in verdict.text
    assert "passed" not in verdict.attributes["class"]


def test_pictures_are_the_views_with_what_is_known_of_them(folder: Path) -> None:
    report = report_of(folder)
    views = draw_views(
        open_store(folder / "s.parquet"), [str(folder / "digits-*.tar")], ViewChoice(count=1024)
    )
    by_title = {one.caption()[0]: one for one in views}
    items = pictures_of(read_page(report.page))
    assert report.pictures == len(items) == len(views) == 22 * 6
    agreeing: Counter[str] = Counter()
    for item in items:
        image = item.all("button")[0].all("img")[0]
        data = image.attributes["src"].removeprefix("data:image/png;base64,")
        (title,) = item.all("strong")
        view = by_title.pop(title.text)
        assert view.pixels is not None
        with Image.open(io.BytesIO(b64decode(data))) as picture:
            assert (np.asarray(picture) == view.pixels).all()
        for line in view.caption():
            assert " ".join(line.split()) in item.text
        facets = item.attributes
        kind = facets["data-teacher"]
        agreeing[kind] += 1
        assert kind.startswith("disagrees") == (view.label != view.target)
        if kind.endswith("mixed in"):
            assert view.label == view.partner_target
        warned = [one for one in item.all("span") if one.attributes.get("class") == "warns"]
        assert bool(warned) == kind.endswith("neither image")
        said = [one.text.partition(":")[0] for one in item.all("span")]
        assert said[:2] == ["truth", "teacher"]  # whether they are warned of or not
        assert facets["data-truth"] == str(view.target)
        assert facets["data-label"] == str(view.label)
        assert facets["data-mixing"].lower().replace("not mixed", "none") == view.mix.kind
    assert len(agreeing) == 3
    assert not by_title


def test_the_entropy_of_a_picture_is_that_of_its_samples_labels(folder: Path) -> None:
    store = open_store(folder / "s.parquet")
    bits = dict(query(store, "SELECT key, entropy(label) FROM STORE GROUP BY key"))
    for item in pictures_of(read_page(report_of(folder).page)):
        key = item.all("strong")[0].text.partition(",")[0]
        assert float(item.attributes["data-entropy"]) == pytest.approx(bits[key], abs=6e-5)


def test_of_one_view_nothing_is_said_of_how_views_differ(tmp_path: Path) -> None:
    write_hash_store(
        tmp_path / "s.parquet", [digit_shard(tmp_path / "digits-0.tar", 5)], views=1, per_part=1
    )
    report = report_store(
        open_store(tmp_path / "s.parquet"), [str(tmp_path / "digits-0.tar")], ReportConfig()
    )
    assert report.pictures == 5
    assert "entropy" not in read_page(report.page).text.lower()
    assert "by view" not in read_page(report.page).text


def test_pictures_fit_the_page_and_are_the_same_each_time(folder: Path) -> None:
    whole = report_of(folder)
    assert report_of(folder).page == whole.page
    few = report_of(folder, count=8)
    wrong = [
        item.attributes["data-teacher"].startswith("disagrees")
        for item in pictures_of(read_page(few.page))
    ]
    assert len(wrong) == 8
    assert sum(wrong) >= 4
    size = len(whole.page.encode())
    small = report_of(folder, megabytes=0.6 * size / 1e6)
    assert 0 < small.pictures < whole.pictures
    assert len(small.page.encode()) <= 0.6 * size
    assert f"{whole.pictures - small.pictures} more did not fit" in small.page
    none = report_of(folder, megabytes=0.001)
    assert none.pictures == 0
    assert "None fits into the page" in none.page


def test_records_of_runs_that_somebody_forged_do_not_make_a_page_larger(
    tmp_path: Path, folder: Path
) -> None:
    store = tmp_path / "s.parquet"
    shutil.copytree(folder / "s.parquet", store)
    (store / "_meta" / "runs").mkdir(parents=True, exist_ok=True)
    for run in range(20):
        versions = {f"package{run}-{n}": "9" * 40 for n in range(2000)}
        path = store / "_meta" / "runs" / f"20260101T0000{run:02d}000000.json"
        path.write_text(json.dumps({"versions": versions, "tool": "x" * 9999}))
    report = report_store(open_store(store), [], ReportConfig(megabytes=0.25))
    assert len(report.page.encode()) <= 250_000
    page = read_page(report.page)
    assert table_of(page, "overall")
    whole = report_store(open_store(store), [], ReportConfig(megabytes=15))
    assert "package19-1999" in whole.page


def test_nothing_of_the_images_is_in_a_page_without_them(folder: Path) -> None:
    report = report_of(folder, images=False)
    assert report.pictures == 0
    assert "data:image" not in report.page
    assert report.verification.redrawn > 10


class Plain:
    """What a chooser must choose, with all views in memory."""

    def __init__(self, store: LabelStore) -> None:
        self.wrong, self.doubt = set(), {}
        for entry in store.manifest.parts:
            rows = store.read_part(entry)
            samples = np.flatnonzero(rows.accepted)
            doubt = doubt_of(rows)
            assert doubt is not None
            for row, sample in enumerate(samples.tolist()):
                best = int(doubt[row].argmax()) + entry.part.first_view
                self.doubt[entry.part.shard, sample, best] = float(doubt[row].max())
                for column in range(entry.part.views):
                    if rows.target[row] >= 0 and rows.label[row, column] != rows.target[row]:
                        view = entry.part.first_view + column
                        self.wrong.add((entry.part.shard, sample, view))


def test_views_are_chosen_in_one_pass_as_they_were_with_all_in_memory(plain: LabelStore) -> None:
    chooser = Chooser((0, 2), 12)
    store_stats(plain, watch=chooser.add)
    chosen, _ = chooser.chosen()
    found = [(one.shard, one.sample, one.view) for one in chosen]
    expected = Plain(plain)
    assert len(set(found)) == 12
    assert {shard for shard, _, _ in found} <= {0, 2}
    assert sum(one in expected.wrong for one in found) >= 6
    doubtful = sorted((v for k, v in expected.doubt.items() if k[0] != 1), reverse=True)
    assert sum(expected.doubt.get(one, -1) >= doubtful[2] - 1e-6 for one in found) >= 3


@pytest.mark.parametrize("name", ["s.zarr", "one.parquet"])
def test_a_store_of_another_format_has_the_same_numbers_and_pictures(
    tmp_path: Path, folder: Path, name: str
) -> None:
    shards = [str(folder / "digits-*.tar")]
    export_store(folder / "s.parquet", tmp_path / name, single_file=name == "one.parquet")
    one, other = report_of(folder), report_store(open_store(tmp_path / name), shards)
    assert replace(one.stats, store="") == replace(other.stats, store="")
    pages = [read_page(report.page) for report in (one, other)]
    sources = [
        [image.attributes["src"] for item in pictures_of(page) for image in item.all("img")]
        for page in pages
    ]
    assert len(sources[0]) == 2 * one.pictures
    assert sources[0] == sources[1]
    assert pages[1].all("h1")[0].text == f"Labels of {name}"


def test_what_strangers_chose_stays_text(tmp_path: Path) -> None:
    keys = [f'"><script>alert(1)<!--\u202e{n}' for n in range(7)]
    samples = [
        (key, image, target) for key, (_, image, target) in zip(keys, digit_samples(7), strict=True)
    ]
    shard = write_shard(tmp_path / "<img src=x onerror=alert(1)>.tar", samples)
    identity = replace(
        hash_identity(), teacher=replace(TEACHER, architecture="<b onclick=alert(1)>")
    )
    names = (*NAMES, *(f"{n}" for n in range(5, TEACHER.classes)))
    store = write_hash_store(
        tmp_path / "<i>s.parquet", [shard], views=4, per_part=4, identity=identity
    )
    manifest = replace(store.manifest, classes=names)
    store = type(store)(store.root, manifest)
    page = read_page(report_store(store, [str(shard)], against=store).page)
    assert_tame(page)
    assert len(pictures_of(page)) == 28
    for text in (NAMES[2], NAMES[3], "<b onclick=alert(1)>", "<i>s.parquet", shard.name):
        assert text in page.text
    assert "\u202e" not in page.text
    assert keys[0].replace("\u202e", "\\u202e") in page.text
    for picture in pictures_of(page):
        assert set(picture.attributes) == {f"data-{name}" for name in FACETS}


def assert_tame(page: Element) -> None:
    """Assert that a page has one script, its own, no handlers, and asks for nothing."""
    (script,) = page.all("script")
    assert "alert" not in script.text
    for one in page.walk():
        assert not [name for name in one.attributes if name.startswith("on")]
        for name in ("src", "href"):
            assert one.attributes.get(name, "#").startswith(("#", "data:"))
    assert {one.tag for one in page.walk()}.isdisjoint(
        {"iframe", "object", "embed", "base", "b", "i"}
    )


def test_a_store_that_does_not_replay_says_so_and_shows_nothing(
    tmp_path: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store = open_store(folder / "s.parquet")
    read, wrong = type(store).read_part, 7

    def damaged(self: LabelStore, entry: object) -> PartRows:
        rows: PartRows = read(self, entry)  # type: ignore[arg-type]
        flip = np.zeros_like(rows.digest)
        flip[0, 0] = wrong * rows.has_digest[0, 0]
        return replace(rows, digest=rows.digest ^ flip)

    monkeypatch.setattr(type(store), "read_part", damaged)
    out = tmp_path / "r.html"
    shards = str(folder / "digits-*.tar")
    status = run_cli(monkeypatch, "report", folder / "s.parquet", "--shards", shards, "--out", out)
    assert status == 1
    assert "FAILED" in capsys.readouterr().out
    page = read_page(out.read_text())
    assert "Verification FAILED" in page.text
    assert pictures_of(page) == []
    found = table_of(page, "mismatches")
    assert {row[3] for row in found} == {"digest"}
    assert len(found) >= 2


def test_the_command_writes_the_page(
    tmp_path: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, shards = tmp_path / "r.html", str(folder / "digits-0.tar")
    arguments = ["report", folder / "s.parquet", "--shards", shards, "--count", "6", "--out"]
    assert run_cli(monkeypatch, *arguments, out) == 0
    said = capsys.readouterr().out
    assert "132 labels, 6 pictures" in said
    page = read_page(out.read_text())
    assert len(pictures_of(page)) == 6
    assert "warning: the shards given are" in page.text
    assert [one.name for one in tmp_path.iterdir()] == ["r.html"]
    assert run_cli(monkeypatch, *arguments, tmp_path / "r.pdf") == 1
    assert "ends in .html" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"`count` is 0"):
        ReportConfig(count=0)


def test_stats_count_confused_pairs_as_json_too(plain: LabelStore) -> None:
    values = json.loads(json.dumps(store_stats(plain).to_json()))
    (rows,) = query(plain, "SELECT count(*) FROM STORE WHERE target >= 0 AND target <> label")
    assert sum(one["views"] for one in values["confused"]) == rows[0]
    assert values["share_step"] == 16


def test_what_the_page_of_tools_says_runs(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (Path(__file__).resolve().parents[3] / "docs" / "TOOLS.md").read_text()
    commands = [line for line in text.splitlines() if line.startswith("label-store report ")]
    # One that needs a run of a student is tried where there is one.
    commands = [line for line in commands if "runs/" not in line]
    assert len(commands) == 2
    monkeypatch.chdir(tmp_path)
    named = {
        "teacher.parquet": str(folder / "s.parquet"),
        "fp32.parquet": str(folder / "s.parquet"),
        "cifar10-test-{000000..000001}.tar": str(folder / "digits-{0..1}.tar"),
        "cifar10-test-000000.tar": str(folder / "digits-0.tar"),
    }
    for line in commands:
        words = [named.get(word, word) for word in shlex.split(line)]
        assert run_cli(monkeypatch, *words[1:]) == 0
    assert {one.name for one in tmp_path.iterdir()} == {"report.html", "compared.html"}
    (tmp_path / "report.html").unlink()
    sources = re.findall(r"```py\n(.*?)```", text, flags=re.DOTALL)
    (source,) = [one for one in sources if "report_store" in one]
    for name, real in named.items():
        source = source.replace(f'"{name}"', repr(real))
    exec(compile(source, "TOOLS.md", "exec"), {})
    assert len(pictures_of(read_page((tmp_path / "report.html").read_text()))) == 40
