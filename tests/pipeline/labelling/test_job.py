from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from braceexpand import braceexpand

from jobs.label_teacher import parse_arguments
from pipeline.errors import (
    ChecksumError,
    ClassesError,
    ConfigError,
    IdentityError,
    IncompleteStoreError,
    RejectionError,
    ShardError,
    StoreError,
    TryAgainError,
)
from pipeline.files import local
from pipeline.identity import PRESETS, TeacherIdentity
from pipeline.labelling.config import LabelConfig
from pipeline.labelling.job import (
    JobPlan,
    Progress,
    begin_job,
    finish_job,
    index_shards,
    plan_job,
    write_run,
)
from pipeline.records import PartKey
from pipeline.shards.index import UniqueKeys, open_shard, summarize_shard
from pipeline.store import check_out, claim_store, commit_part, open_store, parts_root, target
from pipeline.store.zarr import ZarrStore
from pipeline.tools.verify import verify_store
from pipeline.views.fingerprints import fingerprints
from pipeline.views.floats import float_fingerprints
from tests.factories import digit_samples, write_shard
from tests.labelling import SMALL, TEACHER, digit_shard, label_with_hashes
from tests.storing import written_anew


@pytest.fixture
def shards(tmp_path: Path) -> tuple[Path, ...]:
    return tuple(
        digit_shard(tmp_path / f"s-{number}.tar", 9, first=9 * number) for number in range(2)
    )


def config_of(shards: tuple[Path, ...], **settings: object) -> LabelConfig:
    values = {
        "shards": tuple(str(path) for path in shards),
        "out": shards[0].parent / "labels.parquet",
        "views": 8,
        "views_per_part": 3,
        "seed": 5,
        "augment": SMALL,
        **settings,
    }
    return LabelConfig(**values)  # type: ignore[arg-type]


def plan_of(config: LabelConfig, teacher: TeacherIdentity = TEACHER) -> JobPlan:
    floats = float_fingerprints(config.augment, config.effective_mixing, "cpu")
    return plan_job(config, index_shards(config.shards, classes=config.classes), teacher, floats)


def run(plan: JobPlan, parts: int | None = None) -> None:
    """Label the first of a plan's missing parts with hashes."""
    begin_job(plan)
    progress = Progress(plan)
    for part in plan.missing[:parts]:
        order = plan.order(part)
        shard = open_shard(order.path, part.shard)
        progress.add(commit_part(order.out, label_with_hashes(shard, part, plan.identity)))


def ranges(parts: tuple[PartKey, ...]) -> list[tuple[int, int, int]]:
    return [(part.shard, part.first_view, part.end_view) for part in parts]


def test_a_job_is_cut_into_parts_of_shards_and_views(shards: tuple[Path, ...]) -> None:
    plan = plan_of(config_of(shards))
    cut = [(0, 3), (3, 6), (6, 8)]
    assert ranges(plan.missing) == [(shard, *views) for shard in (0, 1) for views in cut]
    assert not Path(plan.config.out).exists()  # planning writes nothing


def test_a_job_that_runs_again_does_only_what_is_missing(shards: tuple[Path, ...]) -> None:
    config = config_of(shards)
    run(plan_of(config), parts=4)
    plan = plan_of(config)
    assert ranges(plan.missing) == [(1, 3, 6), (1, 6, 8)]
    assert len(plan.done) == 4
    run(plan)
    manifest = finish_job(plan_of(config), {})
    assert manifest.view_range == range(8)
    assert manifest.rows == 18 * 8


def test_another_part_size_fills_the_gaps_alone(shards: tuple[Path, ...]) -> None:
    run(plan_of(config_of(shards, first_view=2, views=3)))
    plan = plan_of(config_of(shards, views=10, views_per_part=4))
    cut = [(0, 2), (5, 8), (8, 10)]
    assert ranges(plan.missing) == [(shard, *views) for shard in (0, 1) for views in cut]
    run(plan)
    finish_job(plan, {})
    whole = config_of(shards, views=10, out=shards[0].parent / "whole.parquet")
    run(plan_of(whole))
    finish_job(plan_of(whole), {})
    ours, theirs = open_store(plan.config.out), open_store(whole.out)
    for view in range(10):
        assert (ours.read_view(1, view).label == theirs.read_view(1, view).label).all()


def test_a_part_of_too_many_rows_is_refused_before_it_is_labelled(
    shards: tuple[Path, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(shards, views=12, views_per_part=6)
    plan = plan_of(config)
    samples = max(info.samples for info in plan.shards.infos)
    monkeypatch.setattr("pipeline.store.manifest._PART_MEMORY", 32 * samples * 6)
    plan_of(config)
    monkeypatch.setattr("pipeline.store.manifest._PART_MEMORY", 32 * samples * 6 - 1)
    message = f"`views_per_part` is too large: .* would have {samples * 6} rows.*; use 5$"
    with pytest.raises(ConfigError, match=message):
        plan_of(config)
    plan_of(config_of(shards, views=12, views_per_part=5))


def test_a_class_beyond_the_teachers_is_named_before_anything_is_written(
    tmp_path: Path,
) -> None:
    key, image, _ = digit_samples(1)[0]
    path = write_shard(tmp_path / "x.tar", [("fine", image, 3), (key, image, 10)])
    config = config_of((path,))
    with pytest.raises(ShardError, match=r"'digit_0000' has class 10.*10 classes \(0\.\.9\)"):
        plan_of(config, replace(TEACHER, classes=10))
    assert not Path(config.out).exists()


@pytest.mark.parametrize(("count", "first"), [(4, 0), (7, 0), (4, 3)])
def test_a_key_that_two_shards_have_is_refused(tmp_path: Path, count: int, first: int) -> None:
    digit_shard(tmp_path / "a.tar", 4)
    digit_shard(tmp_path / "b.tar", 5, first=100)
    digit_shard(tmp_path / "c.tar", count, first=first)
    with pytest.raises(
        ShardError, match=rf"a\.tar and .*c\.tar both have the key 'digit_000{first}'.*README"
    ):
        index_shards([str(tmp_path / "*.tar")])
    (tmp_path / "c.tar").unlink()
    assert index_shards([str(tmp_path / "*.tar")]).samples == 9


def test_hashes_of_keys_that_meet_by_chance_are_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Same:
        def digest(self) -> bytes:
            return bytes(8)

    paths = [digit_shard(tmp_path / f"{n}.tar", 4, first=4 * n) for n in range(2)]
    monkeypatch.setattr("pipeline.shards.index.hashlib.blake2b", lambda *_args, **_: Same())
    keys = UniqueKeys()
    for number, path in enumerate(paths):
        keys.add(path, summarize_shard(path, number))
    keys.check()


def test_the_readmes_cure_makes_keys_unique(tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.mkdir()
    for name in ("a-0.tar", "b.c.tar"):  # WebDataset would end a key at the dot
        digit_shard(old / name, 5)
    readme = (Path(__file__).parents[3] / "README.md").read_text()
    section = readme[readme.index("**Shards of your own**") :]
    script = section[section.index("```bash\n") + 8 :]
    subprocess.run(["bash", "-euc", script[: script.index("```")]], cwd=tmp_path, check=True)
    shards = index_shards([str(tmp_path / "unique" / "*.tar")])
    assert shards.samples == 10
    keys = [one.key for one in open_shard(tmp_path / "unique" / "b-c.tar", 0).samples]
    assert keys == [f"b-c-{key}" for key, _, _ in digit_samples(5)]


def test_a_shard_sorted_by_class_gets_a_warning(tmp_path: Path) -> None:
    samples = sorted(digit_samples(40), key=lambda sample: sample[2])
    path = write_shard(tmp_path / "x.tar", samples)
    assert "sorted by class" in index_shards([str(path)]).warnings[0]
    assert index_shards([str(digit_shard(tmp_path / "y.tar", 40))]).warnings == ()


def test_patterns_without_a_file_are_named(tmp_path: Path) -> None:
    digit_shard(tmp_path / "x-0.tar", 2)
    with pytest.raises(ShardError, match=r"2 of 3 names match no file: '.*x-1.tar', '.*x-2.tar'"):
        index_shards([str(tmp_path / "x-{0..2}.tar")])
    with pytest.raises(ShardError, match="match no file"):
        index_shards([str(tmp_path / "*.tgz")])
    with pytest.raises(ShardError, match="named twice"):
        index_shards([str(tmp_path / "x-0.tar"), str(tmp_path / "*.tar")])


@pytest.mark.parametrize(
    "braces",
    ["{0..9999999999}", "{0..999999}{0..9}", "{9999999999..0..3}", "{0..1000000}"],
)
def test_braces_with_too_many_names_are_refused_before_they_are_held(braces: str) -> None:
    with pytest.raises(ShardError, match=r"names more than 1,000,000 files"):
        index_shards([f"x-{braces}.tar"])


@pytest.mark.parametrize("braces", ["{a,b}" * 4, "{a-{0..6},b-{0..6},c}", "{0..4}{x,y,z}"])
def test_names_in_braces_are_counted_as_they_are_made(
    braces: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fifteen of them, or sixteen."""
    names = len(list(braceexpand(braces)))
    for most, match in (
        (names - 1, f"names more than {names - 1} files"),
        (names, "match no file"),
    ):
        monkeypatch.setattr(local, "_MOST_NAMES", most)
        with pytest.raises(ShardError, match=match):
            index_shards([f"x-{braces}.tar"])


def test_too_many_rejections_stop_the_job_without_a_manifest(tmp_path: Path) -> None:
    path = digit_shard(tmp_path / "torn.tar", 20, broken=(3, 4))
    with pytest.raises(RejectionError, match=r"2 of 20 images do not decode.*`max_rejected` 0.05"):
        run(plan_of(config_of((path,), max_rejected=0.05)))
    config = config_of((path,), max_rejected=0.1)
    plan = plan_of(config)
    assert len(plan.done) == 1  # what was committed stays
    run(plan)
    manifest = finish_job(plan, {})
    assert [one.key for one in manifest.rejections[0]] == ["digit_0003", "digit_0004"]


def test_other_settings_for_a_store_are_refused_with_the_fields(shards: tuple[Path, ...]) -> None:
    run(plan_of(config_of(shards)), parts=1)
    with pytest.raises(IdentityError, match="root_seed: 6 / 5"):
        plan_of(config_of(shards, seed=6))
    with pytest.raises(IdentityError, match=r"mix\.probability: 0\.0 / 1\.0"):
        plan_of(config_of(shards, mix=False))
    with pytest.raises(IdentityError, match=r"teacher\.weights"):
        plan_of(config_of(shards), replace(TEACHER, weights="f" * 64))


def test_shards_in_another_order_are_refused(shards: tuple[Path, ...]) -> None:
    run(plan_of(config_of(shards)))
    with pytest.raises(IdentityError, match=r"another shard 0 than s-1\.tar"):
        plan_of(config_of(shards[::-1]))


def test_a_job_without_some_of_a_stores_shards_is_refused_before_it_labels(
    shards: tuple[Path, ...],
) -> None:
    run(plan_of(config_of(shards)))
    with pytest.raises(IncompleteStoreError, match=r"parts of shards \[1\] that are not among"):
        plan_of(config_of(shards[:1], views=9))
    more = (*shards, digit_shard(shards[0].with_name("s-2.tar"), 9, first=30))
    assert ranges(plan_of(config_of(more)).missing) == [(2, 0, 3), (2, 3, 6), (2, 6, 8)]


def test_a_store_with_other_fingerprints_is_refused_by_operation(
    shards: tuple[Path, ...],
) -> None:
    plan = plan_of(config_of(shards))
    claim_store(plan.config.out, plan.identity, {**fingerprints(plan.identity), "op.rotate": 1})
    with pytest.raises(
        IdentityError, match=r"give other pixels: op\.rotate \(the operation rotate\);"
    ):
        plan_of(plan.config)


def test_a_part_damaged_after_the_manifest_listed_it_is_refused(
    shards: tuple[Path, ...],
) -> None:
    plan = plan_of(config_of(shards))
    run(plan)
    manifest = finish_job(plan, {})
    path = Path(plan.config.out) / manifest.parts[2].part.path
    path.write_bytes(written_anew(path.read_bytes()))  # the same rows, in other bytes
    with pytest.raises(ChecksumError, match=r"the manifest says .*delete the file and run again"):
        plan_of(plan.config)
    path.unlink()
    again = plan_of(plan.config)
    assert ranges(again.missing) == [(0, 6, 8)]
    run(again)
    assert finish_job(again, {}) == manifest


@pytest.mark.parametrize("suffix", ["parquet", "zarr"])
def test_a_part_that_vanishes_before_the_end_is_named_and_there_is_no_store(
    shards: tuple[Path, ...], suffix: str
) -> None:
    config = config_of(shards, out=str(shards[0].parent / f"labels.{suffix}"))
    plan = plan_of(config)
    run(plan)
    root = Path(parts_root(config.out))
    for part in (plan.missing[1], plan.missing[5]):
        (root / part.path).unlink()
    with pytest.raises(
        IncompleteStoreError,
        match=r"lacks 2 of the parts.*: shard 0, views 3\.\.5; shard 1, views 6\.\.7; no manifest",
    ):
        finish_job(plan, {})
    with pytest.raises(IncompleteStoreError, match="unfinished"):
        open_store(config.out)
    again = plan_of(config)
    assert ranges(again.missing) == [(0, 3, 6), (1, 6, 8)]
    run(again)
    assert finish_job(again, {}).rows == 18 * 8


@pytest.mark.parametrize("suffix", ["parquet", "zarr"])
def test_a_store_that_vanishes_whole_before_the_end_can_be_begun_again(
    shards: tuple[Path, ...], suffix: str
) -> None:
    config = config_of(shards, out=str(shards[0].parent / f"labels.{suffix}"))
    plan = plan_of(config)
    run(plan)
    shutil.rmtree(parts_root(config.out))
    with pytest.raises(IncompleteStoreError, match="lacks 6 of the parts that were planned"):
        finish_job(plan, {})
    check_out(config.out)
    assert len(finished(config)) > 0


def test_a_zarr_store_whose_new_parts_vanish_is_not_taken_for_the_job_s(
    shards: tuple[Path, ...],
) -> None:
    config = config_of(shards, out=str(shards[0].parent / "labels.zarr"), views=6)
    before = finished(config)
    plan = plan_of(replace(config, views=12))
    run(plan)
    shutil.rmtree(parts_root(config.out))
    with pytest.raises(IncompleteStoreError, match=r"shard 0, views 6\.\.8"):
        finish_job(plan, {})
    assert files_of(Path(config.out)) == before
    write_run(plan, {})  # as a job does that SIGTERM stops
    assert not Path(parts_root(config.out)).exists()


@pytest.mark.parametrize("suffix", ["parquet", "zarr"])
def test_views_that_a_manifest_lists_are_never_dropped_from_the_next(
    shards: tuple[Path, ...], suffix: str
) -> None:
    config = config_of(shards, out=str(shards[0].parent / f"labels.{suffix}"), views=6)
    finished(config)
    more = replace(config, first_view=6, views=3)
    run(plan_of(more), parts=1)
    root = Path(parts_root(config.out))
    plan = plan_of(more)
    (root / "shard=1" / "view-00003-00006.parquet").unlink()
    with pytest.raises(
        IncompleteStoreError, match=r"shard 1, views 3\.\.5; .* first_view=3 and views=3"
    ):
        plan_of(more)
    run(plan)
    with pytest.raises(IncompleteStoreError, match=r"shard 1, views 3\.\.5; no manifest"):
        finish_job(plan, {})
    assert open_store(config.out).manifest.view_range == range(6)
    run(plan_of(replace(config, first_view=3, views=3)))
    assert finish_job(plan_of(more), {}).view_range == range(9)


def test_labels_and_rejections_of_a_part_must_add_up(shards: tuple[Path, ...]) -> None:
    plan = plan_of(config_of(shards))
    begin_job(plan)
    order = plan.order(plan.missing[0])
    rows = label_with_hashes(open_shard(order.path, 0), order.part, plan.identity)
    committed = commit_part(order.out, rows)
    short = replace(committed, entry=replace(committed.entry, rows=committed.entry.rows - 1))
    with pytest.raises(StoreError, match="has 26 labels and 0 rejected of 9 samples at 3 views"):
        Progress(plan).add(short)


def test_local_paths_mean_the_same_in_every_process(
    shards: tuple[Path, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shards[0].parent
    monkeypatch.chdir(folder)
    config = LabelConfig(
        shards=("s-{0..1}.tar",),
        out="labels.zarr",
        teacher_checkpoint=Path("t.pth"),
        cache_dir=Path("cache"),
    ).with_absolute_paths()
    assert config.out == str(folder / "labels.zarr")
    assert config.teacher_checkpoint == folder / "t.pth"
    assert config.cache_dir == folder / "cache"
    assert index_shards(config.shards).paths == shards
    remote = replace(config, out="s3://bucket/labels.parquet", cache_dir=None)
    assert remote.with_absolute_paths() == remote


def test_a_run_records_versions_and_settings(shards: tuple[Path, ...]) -> None:
    plan = plan_of(config_of(shards))
    run(plan)
    finish_job(plan, {"labels": 144})
    (path,) = (Path(plan.config.out) / "_meta" / "runs").iterdir()
    record = json.loads(path.read_bytes())
    assert record["labels"] == 144
    assert record["settings"]["views_per_part"] == 3
    assert set(record["versions"]) >= {"torch", "simplejpeg", "pillow", "numba"}


def test_the_card_describes_the_store(shards: tuple[Path, ...]) -> None:
    plan = plan_of(config_of(shards))
    run(plan)
    finish_job(plan, {})
    card = (Path(plan.config.out) / "_README.md").read_text()
    assert "| samples | 18 = 18 labelled + 0 rejected |" in card
    assert "| views | 0..7 of every sample, 16 px |" in card


def test_the_command_line_starts_from_the_preset() -> None:
    base = ["--shards", "a.tar", "--out", "x.parquet"]
    assert parse_arguments(base).augment == PRESETS["deit"]
    assert parse_arguments(base).effective_mixing.probability == 1
    center = parse_arguments([*base, "--preset", "center", "--image-size", "64"])
    assert center.augment == replace(PRESETS["center"], image_size=64)
    assert center.effective_mixing.probability == 0
    mixed = parse_arguments([*base, "--preset=center", "--mix"])
    assert mixed.effective_mixing.probability == 1
    plain = parse_arguments([*base, "--preset", "crop-flip", "--no-mix", "--hflip", "0"])
    assert plain.augment == replace(PRESETS["crop-flip"], hflip=0.0)
    assert plain.effective_mixing.probability == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"views": 0}, "`views`"),
        ({"max_rejected": 2.0}, "`max_rejected`"),
        ({"teachers": 0}, "`teachers`"),
        ({"precision": "fp16", "device": "cpu"}, "fp16 needs a GPU"),
        ({"teacher_checkpoint": Path("x"), "teacher_random_weights": 1}, "not both"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_of((Path("a/b.tar"),), **settings)


def files_of(root: Path) -> dict[str, bytes]:
    """Return all files but the records of runs, which have times."""
    paths = [path for path in root.rglob("*") if path.is_file()]
    names = {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}
    return {name: data for name, data in names.items() if "runs/" not in name}


def finished(config: LabelConfig) -> dict[str, bytes]:
    """Run a job to its end, and return the files of its store."""
    plan = plan_of(config)
    run(plan)
    finish_job(plan_of(config), {})
    return files_of(Path(config.out))


def test_a_zarr_job_that_stops_goes_on_and_leaves_the_zarr_store_alone(
    shards: tuple[Path, ...],
) -> None:
    folder = shards[0].parent
    config = config_of(shards, out=str(folder / "labels.zarr"))
    check_out(config.out)
    run(plan_of(config), parts=4)
    with pytest.raises(IncompleteStoreError, match=r"unfinished: its parts are in .*run the label"):
        open_store(config.out)
    check_out(config.out)
    plan = plan_of(config)
    assert ranges(plan.missing) == [(1, 3, 6), (1, 6, 8)]
    run(plan)
    manifest = finish_job(plan_of(config), {"labels": 3})
    store = open_store(config.out)
    assert isinstance(store, ZarrStore)
    assert store.manifest == manifest
    assert len([path for path in store.companions() if "runs/" in path]) == 1
    names = {path.name for path in folder.iterdir() if not path.name.endswith(".tar")}
    assert names == {"labels.zarr"}
    finished(config_of(shards))
    parquet = open_store(folder / "labels.parquet")
    assert parquet.manifest == manifest
    for view in range(8):
        assert (store.read_view(1, view).label == parquet.read_view(1, view).label).all()


def test_a_zarr_store_that_grew_has_the_bytes_of_one_made_at_once(
    shards: tuple[Path, ...],
) -> None:
    folder = shards[0].parent
    small = config_of(shards, out=str(folder / "labels.zarr"), views=6)
    before = finished(small)
    grown = replace(small, views=12)
    plan = plan_of(grown)
    assert ranges(plan.missing) == [(n, first, first + 3) for n in (0, 1) for first in (6, 9)]
    run(plan, parts=2)
    assert files_of(Path(small.out)) == before  # the old views can be read meanwhile
    assert open_store(small.out).manifest.view_range == range(6)
    assert ranges(plan_of(grown).missing) == [(1, 6, 9), (1, 9, 12)]
    after = finished(grown)
    assert after == finished(replace(grown, out=str(folder / "whole.zarr")))
    assert open_store(grown.out).manifest.view_range == range(12)


def test_a_finished_zarr_store_is_left_as_it_is(
    shards: tuple[Path, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(shards, out=str(shards[0].parent / "labels.zarr"))
    before = finished(config)
    times = {path: path.stat().st_mtime_ns for path in Path(config.out).rglob("*")}
    monkeypatch.setattr(ZarrStore, "read_part", None)  # no part is decoded
    plan = plan_of(config)
    assert (len(plan.done), plan.missing) == (6, ())
    begin_job(plan)
    assert finish_job(plan, {}) == open_store(config.out).manifest
    assert files_of(Path(config.out)) == before
    assert {path: path.stat().st_mtime_ns for path in Path(config.out).rglob("*")} == times
    assert not Path(parts_root(config.out)).exists()


@pytest.mark.parametrize("fatal", range(1, 6))
def test_whoever_is_killed_while_a_zarr_store_is_packed_loses_nothing(
    shards: tuple[Path, ...], monkeypatch: pytest.MonkeyPatch, fatal: int
) -> None:
    config = config_of(shards, out=str(shards[0].parent / "labels.zarr"), views=3)
    finished(config)
    grown = replace(config, views=6)
    run(plan_of(grown))
    steps = 0

    def counted(step: Callable[..., object]) -> Callable[..., object]:
        def killed(*arguments: object) -> object:
            nonlocal steps
            steps += 1
            if steps == fatal:
                raise KeyboardInterrupt
            return step(*arguments)

        return killed

    with monkeypatch.context() as patch:
        patch.setattr(target, "written_aside", counted(target.written_aside))
        patch.setattr(target, "publish", counted(target.publish))
        patch.setattr(Path, "rename", counted(Path.rename))
        with pytest.raises(KeyboardInterrupt):
            finish_job(plan_of(grown), {})
        assert steps == fatal
    plan = plan_of(grown)
    assert plan.missing == ()
    begin_job(plan)
    finish_job(plan, {})
    store = open_store(grown.out)
    assert store.manifest.view_range == range(6)
    verify_store(grown.out)


def test_a_zarr_store_of_another_identity_or_shards_is_refused(shards: tuple[Path, ...]) -> None:
    config = config_of(shards, out=str(shards[0].parent / "labels.zarr"))
    before = finished(config)
    with pytest.raises(IdentityError, match="root_seed: 6 / 5"):
        plan_of(replace(config, seed=6, views=12))
    with pytest.raises(IdentityError, match=r"another shard 0 than s-1\.tar"):
        plan_of(replace(config, shards=config.shards[::-1], views=12))
    assert files_of(Path(config.out)) == before


def test_a_place_that_holds_something_else_is_refused_before_shards_are_read(
    tmp_path: Path,
) -> None:
    other = tmp_path / "other.zarr"
    other.mkdir()
    (other / "zarr.json").write_text("{}")
    with pytest.raises(IncompleteStoreError, match=r"no store: it has no _manifest\.json"):
        check_out(str(other))
    with pytest.raises(StoreError, match="assembled on a file system"):
        check_out("s3://bucket/labels.zarr")
    (tmp_path / "file.parquet").write_bytes(b"")
    with pytest.raises(StoreError, match="store in one file to a directory first"):
        check_out(str(tmp_path / "file.parquet"))
    with pytest.raises(StoreError, match=r"must end in \.parquet or \.zarr"):
        check_out(str(tmp_path / "labels"))


def test_two_jobs_cut_the_same_views_in_one_way_or_the_second_is_refused(
    shards: tuple[Path, ...],
) -> None:
    first = plan_of(config_of(shards, views=12))
    run(first, parts=2)
    with pytest.raises(StoreError, match=r"another job has cut views 0\.\.11 into parts of 3, and"):
        plan_of(config_of(shards, views=12, views_per_part=4))
    with pytest.raises(StoreError, match=r"parts of views 0\.\.8, and this one wants 1\.\.6, whi"):
        plan_of(config_of(shards, first_view=1, views=6))
    # Whole parts of it are fine, and views beyond are cut as the second one likes.
    assert ranges(plan_of(config_of(shards, first_view=3, views=6)).missing)[:2] == [
        (0, 6, 9),
        (1, 3, 6),
    ]
    more = plan_of(config_of(shards, first_view=12, views=4, views_per_part=2))
    assert ranges(more.missing)[:2] == [(0, 12, 14), (0, 14, 16)]
    run(first)  # as far as it is concerned nothing has happened
    run(more)
    whole = plan_of(config_of(shards, views=16, views_per_part=5))
    assert not whole.missing
    finish_job(whole, {})
    assert open_store(whole.config.out).manifest.view_range == range(16)


def test_of_two_jobs_that_begin_at_once_one_is_told_to_try_again(shards: tuple[Path, ...]) -> None:
    plans = [plan_of(config_of(shards, views_per_part=views)) for views in (3, 4)]
    again = plan_of(plans[0].config)
    begin_job(plans[0])
    with pytest.raises(TryAgainError, match="another job began to add to it at the same moment"):
        begin_job(plans[1])
    begin_job(again)  # the same cut
    assert not list(Path(plans[0].config.out).rglob("*.parquet"))


NAMES = tuple(f"digit {n}" for n in range(10))


def write_names(path: Path, names: tuple[str, ...] = NAMES) -> str:
    path.write_text("".join(f"{name}\n" for name in names))
    return str(path)


def write_side_file(shards: tuple[Path, ...], names: tuple[str, ...] = NAMES) -> None:
    (shards[0].parent / "classes.json").write_text(json.dumps(names))


@pytest.mark.parametrize("name", ["named.parquet", "named.zarr"])
def test_names_beside_the_shards_come_into_the_store_and_change_no_part(
    shards: tuple[Path, ...], name: str
) -> None:
    run(plan_of(config_of(shards)))
    plain = finish_job(plan_of(config_of(shards)), {})
    write_side_file(shards)
    config = config_of(shards, out=shards[0].parent / name)
    run(plan_of(config))
    named = finish_job(plan_of(config), {})
    assert (plain.classes, named.classes) == (None, NAMES)
    assert open_store(config.out).manifest.classes == NAMES
    assert named.identity_digest == plain.identity_digest
    assert named.parts == plain.parts


@pytest.mark.parametrize("name", ["later.parquet", "later.zarr"])
def test_a_store_gets_names_later_and_keeps_them(shards: tuple[Path, ...], name: str) -> None:
    config = config_of(shards, out=shards[0].parent / name)
    run(plan_of(config))
    finish_job(plan_of(config), {})
    given = write_names(shards[0].parent / "names.txt")
    plan = plan_of(replace(config, classes=given))
    assert plan.adds
    run(plan)
    finish_job(plan, {})
    assert open_store(config.out).manifest.classes == NAMES
    plan = plan_of(config)  # names are not given again
    assert not plan.adds
    run(plan)
    finish_job(plan, {})
    assert open_store(config.out).manifest.classes == NAMES
    verify_store(config.out, [str(path) for path in shards], every_digest=True)


def test_names_that_differ_from_those_beside_the_shards_or_in_the_store_are_refused(
    shards: tuple[Path, ...],
) -> None:
    config = config_of(shards, classes=write_names(shards[0].parent / "names.txt"))
    run(plan_of(config))
    finish_job(plan_of(config), {})
    write_side_file(shards, (*NAMES[:8], "nine", "eight"))
    with pytest.raises(ClassesError, match=r"names\.txt and .*classes\.json have .* class 8 is"):
        plan_of(config)
    with pytest.raises(ClassesError, match=r"labels\.parquet and .*classes\.json have .* class 8"):
        plan_of(config_of(shards, views=9))


def test_a_class_that_the_teacher_lacks_is_called_by_its_name(shards: tuple[Path, ...]) -> None:
    config = config_of(shards)
    with pytest.raises(ShardError, match="has class 9, but the teacher hash has 9 classes"):
        plan_of(config, replace(TEACHER, classes=9))
    write_side_file(shards)
    with pytest.raises(ShardError, match=r"has class 9 \('digit 9'\), but the teacher hash"):
        plan_of(config, replace(TEACHER, classes=9))
    write_side_file(shards, (*NAMES, "ten"))
    with pytest.raises(ClassesError, match="names 11 classes, but the teacher hash has 10"):
        plan_of(config, replace(TEACHER, classes=10))
