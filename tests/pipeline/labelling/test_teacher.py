from __future__ import annotations

import binascii
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file

from pipeline.columns import COLUMNS
from pipeline.errors import (
    ClassesError,
    ConfigError,
    IncompleteStoreError,
    ShardError,
    TeacherError,
)
from pipeline.identity import AugmentConfig, ColumnConfig, MixConfig
from pipeline.labelling import part
from pipeline.labelling.agreement import Preflight
from pipeline.labelling.config import LabelConfig
from pipeline.labelling.devices import choose_device
from pipeline.labelling.job import (
    PartOrder,
    begin_job,
    index_shards,
    plan_job,
)
from pipeline.labelling.part import augment_group, group_tasks, run_task
from pipeline.labelling.teacher import Teacher, TeacherSpec, load_teacher
from pipeline.labelling.weights import state_digest
from pipeline.labelling.worker import TeacherWorker
from pipeline.records import AugmentedGroup, ShardInfo
from pipeline.shards.index import Shard, ShardContents, open_known_shard, open_shard
from pipeline.store import Committed
from pipeline.views.mixing import mix_images, normalize
from tests.labelling import (
    SMALL,
    TEACHER,
    digit_shard,
    every_column,
    hash_identity,
    part_of,
    small_teacher,
    write_teacher,
)

CPU = torch.device("cpu")
VIEWS = replace(SMALL, image_size=32)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_teacher(tmp_path_factory.mktemp("teacher") / "small.safetensors")


@pytest.fixture(scope="module")
def teacher(checkpoint: Path) -> Teacher:
    return small_teacher(checkpoint, VIEWS)


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def anywhere(request: pytest.FixtureRequest, checkpoint: Path) -> Teacher:
    """The teacher on a CPU, and by `make gpu` on a GPU, in a GPU's shape."""
    mix = MixConfig()
    spec = TeacherSpec(
        architecture="regnety_002",
        checkpoint=checkpoint,
        precision="fp32" if request.param == "cpu" else "bf16",
        columns=ColumnConfig(margin=True, topk=3),
    )
    return load_teacher(spec, VIEWS, mix, choose_device(request.param))


@pytest.mark.gpu
def test_on_a_gpu_a_network_is_replayed_as_a_graph(checkpoint: Path) -> None:
    forward = small_teacher(checkpoint, VIEWS, device="cuda")._forward
    assert forward._run != forward._run_plainly


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> AugmentedGroup:
    """Views 1..10 of 14 digits: rows, samples and views all need padding."""
    path = digit_shard(tmp_path_factory.mktemp("shard") / "a.tar", 14, broken=(2,))
    shard = open_shard(path, 0)
    (task,) = group_tasks(path, shard.info, part_of(1, 10), hash_identity(VIEWS))
    return augment_group(shard, task)


def views_of(group: AugmentedGroup, first: int, end: int) -> AugmentedGroup:
    """Return the group cut to some of its views, with fresh row numbers."""
    samples, views = group.valid.shape
    kept = np.arange(samples * views).reshape(samples, views)[:, first:end].reshape(-1)
    new_row = np.full(samples * views, -1)
    new_row[kept] = np.arange(len(kept))
    mix = group.mix
    return replace(
        group,
        first_view=group.first_view + first,
        pixels=np.ascontiguousarray(group.pixels[:, first:end]),
        valid=group.valid[:, first:end],
        digest=group.digest[:, first:end],
        has_digest=group.has_digest[:, first:end],
        has_mixed_digest=group.has_mixed_digest[:, first:end],
        mix=replace(
            mix,
            partner=new_row[mix.partner[kept]],
            kind=mix.kind[kept],
            lam=mix.lam[kept],
            box=mix.box[kept],
        ),
    )


def test_the_teacher_digests_the_very_floats_that_it_labels(
    checkpoint: Path, group: AugmentedGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, seen = small_teacher(checkpoint, VIEWS), list[torch.Tensor]()
    logits = teacher.logits

    def watched(batch: torch.Tensor) -> torch.Tensor:
        seen.append(batch.clone())
        return logits(batch)

    monkeypatch.setattr(teacher, "logits", watched)
    due = np.random.default_rng(0).random(group.valid.shape) < 0.3
    group = replace(views_of(group, 2, 5), has_mixed_digest=due[:, 2:5])
    found = teacher.label_group(group).mixed_digest
    assert found is not None
    batches = torch.stack([one.view(len(due), 3, *one.shape[1:]) for one in seen])
    for sample, view in np.argwhere(group.has_mixed_digest).tolist():
        step, column = divmod(group.first_view + view, 3)
        image = batches[step - group.first_view // 3, sample, column]
        row = image.permute(1, 2, 0).contiguous().numpy()
        assert found.reshape(-1, 3)[sample, view] == binascii.crc32(row.tobytes())
    assert (found[~group.has_mixed_digest.reshape(-1)] == 0).all()


def test_the_test_teacher_gives_many_labels(teacher: Teacher, group: AugmentedGroup) -> None:
    labels = teacher.label_group(group).label.reshape(group.valid.shape)[group.valid]
    assert len(np.unique(labels)) >= 4


def test_a_label_does_not_depend_on_the_views_labelled_with_it(
    anywhere: Teacher, group: AugmentedGroup
) -> None:
    teacher, (samples, views) = anywhere, group.valid.shape
    whole = teacher.label_group(group).label.reshape(samples, views)
    for first, end in ((0, 1), (1, 2), (2, 7), (9, 10)):
        part = teacher.label_group(views_of(group, first, end)).label.reshape(samples, -1)
        assert (part == whole[:, first:end])[group.valid[:, first:end]].all()


def test_the_loops_labels_are_the_jobs(anywhere: Teacher, group: AugmentedGroup) -> None:
    teacher, valid = anywhere, group.valid.reshape(-1)
    there = next(teacher.model.parameters()).device
    pixels = torch.from_numpy(group.pixels.reshape(-1, 32, 32, 3)).to(there)
    images = mix_images(normalize(pixels, VIEWS.mean, VIEWS.std), group.mix)[valid]
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1))
    expected = teacher.label_group(group).label[valid]
    for count in (1, 5, len(images)):
        chosen = order[:count]
        assert (teacher.label_images(images[chosen]).label == expected[chosen.numpy()]).all()


def test_columns_are_of_the_same_labels_and_do_not_depend_on_other_views(
    checkpoint: Path, teacher: Teacher, group: AugmentedGroup
) -> None:
    columns = every_column(10)
    soft = small_teacher(checkpoint, VIEWS, columns=columns)
    assert soft.identity == teacher.identity
    samples, views = group.valid.shape
    whole = soft.label_group(group)
    assert (whole.label == teacher.label_group(group).label).all()
    for first, end in ((0, 1), (2, 7)):
        valid = group.valid[:, first:end].reshape(-1)
        part = soft.label_group(views_of(group, first, end)).columns
        assert part.keys() == COLUMNS.keys()
        for name, values in whole.columns.items():
            among = values.reshape(samples, views, *values.shape[1:])[:, first:end]
            among = among.reshape(-1, *values.shape[1:])
            assert (part[name] == among)[valid].all(), name
    valid = group.valid.reshape(-1)
    pixels = torch.from_numpy(group.pixels.reshape(-1, 32, 32, 3))
    images = mix_images(normalize(pixels, VIEWS.mean, VIEWS.std), group.mix)[valid]
    loop = soft.label_images(images).columns
    for name, values in whole.columns.items():
        assert (loop[name] == values[valid]).all(), name


def test_more_top_classes_than_the_teacher_has_are_refused(checkpoint: Path) -> None:
    with pytest.raises(TeacherError, match="has 10 classes, fewer than topk=11"):
        small_teacher(checkpoint, VIEWS, columns=ColumnConfig(topk=11))


def test_logits_of_a_row_do_not_depend_on_threads_slot_or_mates(
    teacher: Teacher, group: AugmentedGroup
) -> None:
    pixels = torch.from_numpy(group.pixels.reshape(-1, 32, 32, 3)[:48])
    batch = normalize(pixels, VIEWS.mean, VIEWS.std)
    expected = teacher.logits(batch)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        assert torch.equal(teacher.logits(batch), expected)
    finally:
        torch.set_num_threads(threads)
    order = torch.randperm(48, generator=torch.Generator().manual_seed(2))
    assert torch.equal(teacher.logits(batch[order]), expected[order])
    lonely = torch.zeros_like(batch)
    lonely[31] = batch[5]
    assert torch.equal(teacher.logits(lonely)[31], expected[5])


def test_a_folded_teacher_is_the_models_eval_mode(checkpoint: Path, teacher: Teacher) -> None:
    model = timm.create_model("regnety_002", num_classes=10)
    model.load_state_dict(load_file(checkpoint))
    model.eval()
    batch = torch.randn(48, 3, 32, 32, generator=torch.Generator().manual_seed(4))
    with torch.inference_mode():
        expected = model(batch)
    # Folding changes the order of roundings; logits are of the order of ten.
    torch.testing.assert_close(teacher.logits(batch), expected, rtol=1e-3, atol=1e-3)
    assert not any(isinstance(one, torch.nn.BatchNorm2d) for one in teacher.model.modules())


def test_the_last_layer_of_a_bf16_teacher_is_float32(checkpoint: Path) -> None:
    spec = TeacherSpec(architecture="regnety_002", checkpoint=checkpoint, precision="bf16")
    teacher = load_teacher(spec, VIEWS, MixConfig(), CPU)
    assert teacher.model.get_classifier().weight.dtype is torch.float32
    assert teacher.model.stem.conv.weight.dtype is torch.bfloat16
    logits = teacher.logits(torch.randn(48, 3, 32, 32))
    assert not torch.equal(logits, logits.bfloat16().float())


def test_the_weights_digest_does_not_depend_on_the_file(
    checkpoint: Path, teacher: Teacher, tmp_path: Path
) -> None:
    state = load_file(checkpoint)
    for name, content in {
        "plain.pth": state,
        "wrapped.pth": {"model": {f"module.{key}": value for key, value in state.items()}},
    }.items():
        torch.save(content, tmp_path / name)
        again = small_teacher(tmp_path / name, VIEWS)
        assert again.identity == teacher.identity
    changed = {**state, "head.fc.bias": state["head.fc.bias"] + 1e-6}
    assert state_digest(changed) != state_digest(state)


def test_random_weights_follow_from_their_seed_alone() -> None:
    def weights(seed: int) -> str:
        spec = TeacherSpec(architecture="regnety_002", random_weights=seed, num_classes=7)
        return load_teacher(spec, VIEWS, MixConfig(), CPU).identity.weights

    torch.manual_seed(1)
    first, state = weights(0), torch.get_rng_state()
    assert weights(0) == first != weights(1)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"architecture": "regnety_00"}, r"no model of timm .* similar names: .*regnety"),
        ({"architecture": "regnety_160.nonsense"}, "knows no such weights|no model of timm"),
        ({"architecture": "tv_resnet34"}, "'tv_resnet34' is an old name"),
        ({"checkpoint": Path("absent.pth")}, "absent.pth does not exist"),
        ({"architecture": "regnety_004"}, "is of another architecture"),
        ({"num_classes": 7}, r"its weights have 10 classes, not 7"),
    ],
)
def test_a_teacher_that_cannot_be_built_is_named(
    checkpoint: Path, spec: dict[str, object], message: str
) -> None:
    values = {"architecture": "regnety_002", "checkpoint": checkpoint, **spec}
    with pytest.raises(TeacherError, match=message):
        load_teacher(TeacherSpec(**values), VIEWS, MixConfig(), CPU)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["x.safetensors", "x.pth"])
def test_an_unreadable_checkpoint_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"not a checkpoint at all")
    with pytest.raises(TeacherError, match=rf"{name} cannot be read .*give a \.safetensors"):
        small_teacher(path, VIEWS)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return open, (str(tmp_path / "ran"),)

    torch.save({"model": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(TeacherError, match="cannot be read"):
        small_teacher(tmp_path / "evil.pth", VIEWS)
    assert not (tmp_path / "ran").exists()


def test_logits_that_are_not_finite_stop_the_job(checkpoint: Path, tmp_path: Path) -> None:
    state = load_file(checkpoint)
    state["head.fc.bias"][3] = torch.nan
    torch.save(state, tmp_path / "nan.pth")
    with pytest.raises(TeacherError, match="not finite in fp32"):
        small_teacher(tmp_path / "nan.pth", VIEWS).label_images(torch.zeros(2, 3, 32, 32))


def test_a_gpu_that_is_not_there_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto").type == "cpu"
    with pytest.raises(ConfigError, match="sees no GPU"):
        choose_device("cuda")


REPORT = Preflight(
    images=100,
    correct=10,
    rows_per_batch=48,
    batch_seconds=1.0,
    flip_rows=0,
    flips=0,
    augment_seconds=0.01,
    warnings=(),
)


def worker_of(tmp_path: Path, checkpoint: Path, **settings: object) -> TeacherWorker:
    values = {
        "shards": (str(digit_shard(tmp_path / "a.tar", 60)),),
        "out": tmp_path / "x.parquet",
        "teacher": "regnety_002",
        "teacher_checkpoint": checkpoint,
        "augment": AugmentConfig(image_size=32),
        **settings,
    }
    return TeacherWorker(LabelConfig(**values), threads=2)  # type: ignore[arg-type]


def test_the_preflight_counts_agreement_and_flips(tmp_path: Path, checkpoint: Path) -> None:
    worker = worker_of(tmp_path, checkpoint, precision="bf16")
    report = worker.preflight(index_shards([str(tmp_path / "a.tar")]))
    assert report.rows_per_batch == 48
    assert report.images == 60  # all: the job has 18,000 views
    assert 0 <= report.correct <= 60
    assert 180 <= report.flip_rows <= 240  # five groups of 12 or 16 of 60 images
    assert 0 < report.flips < report.flip_rows  # untrained layers amplify bf16's rounding
    assert report.warnings == ()


def test_a_teacher_that_names_its_classes_otherwise_than_the_shards_is_refused(
    tmp_path: Path, checkpoint: Path
) -> None:
    names = [f"digit {n}" for n in range(10)]
    mine = tmp_path / "best.pt"
    torch.save({"model": load_file(checkpoint), "student": {"class_names": names}}, mine)
    worker = worker_of(tmp_path, mine)
    shards = index_shards([str(tmp_path / "a.tar")])
    assert worker.preflight(shards).images > 0  # the shards have none
    (tmp_path / "classes.json").write_text(json.dumps(names))
    assert worker.preflight(index_shards([str(tmp_path / "a.tar")])).images > 0
    (tmp_path / "classes.json").write_text(json.dumps(names[::-1]))
    with pytest.raises(ClassesError, match=r"best\.pt and .*classes\.json have .*class 0 is"):
        worker.preflight(index_shards([str(tmp_path / "a.tar")]))
    torch.save({"model": load_file(checkpoint), "student": {"class_names": ["a\nb"]}}, mine)
    with pytest.raises(TeacherError, match=r"best\.pt.*damaged or forged"):
        worker_of(tmp_path, mine)


def test_the_trial_takes_groups_from_all_over_the_job(tmp_path: Path, checkpoint: Path) -> None:
    paths = [digit_shard(tmp_path / f"b-{n}.tar", 64, first=64 * n) for n in range(4)]
    worker = worker_of(
        tmp_path, checkpoint, precision="bf16", shards=tuple(map(str, paths)), first_view=7
    )
    shards = index_shards(worker._config.shards)
    tasks = list(worker._trial_tasks(shards))
    assert len(tasks) == 64 * 4 * 300 // 100 // 48
    assert {task.shard.number for task in tasks} == {0, 1, 2, 3}
    assert len({task.members for task in tasks}) > 10
    starts = [task.first_view for task in tasks]
    assert all(start == 7 or start % 3 == 0 for start in starts)
    assert min(starts) < 80
    assert max(starts) > 230
    assert all(7 <= task.first_view <= task.first_view + task.views <= 307 for task in tasks)
    assert [*worker._trial_tasks(shards)] == tasks


def test_a_tiny_jobs_trial_is_one_batch(tmp_path: Path, checkpoint: Path) -> None:
    worker = worker_of(tmp_path, checkpoint, precision="bf16", views=2)
    (task,) = worker._trial_tasks(index_shards([str(tmp_path / "a.tar")]))
    assert (task.first_view, task.views) == (0, 2)


@pytest.mark.parametrize(
    ("flips", "rows", "low", "high"),
    [
        (0, 48, 0.0, 0.0741),
        (24, 2400, 0.00673, 0.01484),
        (48, 48, 0.9259, 1.0),
        (1, 10, 0.0179, 0.4042),
    ],
)
def test_the_interval_is_wilsons(flips: int, rows: int, low: float, high: float) -> None:
    report = replace(REPORT, flips=flips, flip_rows=rows)
    assert report.flip_interval == pytest.approx((low, high), abs=1e-4)


def test_views_unlike_those_a_published_teacher_expects_get_a_warning(tmp_path: Path) -> None:
    augment = replace(VIEWS, mean=(0.5, 0.5, 0.5))
    settings = {"teacher_checkpoint": None, "teacher_random_weights": 0, "augment": augment}
    worker = worker_of(tmp_path, tmp_path, precision="fp32", **settings)
    warnings = worker.preflight(index_shards([str(tmp_path / "a.tar")])).warnings
    assert "expects 224 px, the views have 32" in warnings[-1]
    assert "expects mean (0.485, 0.456, 0.406)" in warnings[-2]


def test_another_teacher_than_the_jobs_labels_nothing(tmp_path: Path, checkpoint: Path) -> None:
    worker = worker_of(tmp_path, checkpoint)
    path = tmp_path / "a.tar"
    order = PartOrder(
        part=part_of(0, 3),
        path=path,
        shard=open_shard(path, 0).info,
        identity=replace(hash_identity(), teacher=TEACHER),
        fingerprints={},
        out=tmp_path / "x.parquet",
    )
    with pytest.raises(TeacherError, match="give all processes the same checkpoint"):
        worker.label_part(order, iter(()))


def test_a_machine_that_does_not_see_the_jobs_store_labels_nothing(
    tmp_path: Path, checkpoint: Path
) -> None:
    worker = worker_of(tmp_path, checkpoint)
    path = tmp_path / "a.tar"
    order = PartOrder(
        part=part_of(0, 3),
        path=path,
        shard=open_shard(path, 0).info,
        identity=replace(hash_identity(), teacher=worker.identity),
        fingerprints={},
        out=str(tmp_path / "x.parquet"),
    )
    with pytest.raises(IncompleteStoreError, match="the store that this job began is not seen on"):
        worker.label_part(order, iter(()))
    assert not (tmp_path / "x.parquet").exists()


def test_a_shard_is_not_read_beside_the_teacher_and_once_in_a_process_that_does(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = worker_of(tmp_path, checkpoint, views=6, views_per_part=3)
    config = worker._config
    plan = plan_job(config, index_shards(config.shards), worker.identity, worker.fingerprints)
    begin_job(plan)
    opened: list[str] = []

    def open_it(path: Path, shard: ShardInfo) -> Shard:
        opened.append(path.name)
        return open_known_shard(path, shard)

    monkeypatch.setattr(part, "open_known_shard", open_it)
    first, second = map(plan.order, plan.missing)
    groups = [run_task(task) for task in first.tasks()]
    contents, told = first.contents(), list[int]()
    assert opened == ["a.tar"]  # for all tasks, and what the part keeps
    monkeypatch.setattr(part, "open_known_shard", None)

    def tell() -> ShardContents:
        told.append(len(groups))
        return contents

    committed = worker.label_part(first, (groups.pop() for _ in range(len(groups))), tell)
    assert committed.entry.rows == 60 * 3
    assert told == [0]  # once all are labelled
    assert second.contents() is contents


def change_in_place(shard: Path, sample: int) -> None:
    """Write to an image, and set the file's times back."""
    before, one = shard.stat(), open_shard(shard, 0).samples[sample]
    with shard.open("r+b") as file:
        file.seek(one.image_offset + one.image_bytes // 2)
        file.write(b"changed")
    os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = shard.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def touch_what_is_no_image(shard: Path, sample: int) -> None:
    shard.chmod(0o600)
    shard.with_name("backup.tar").hardlink_to(shard)


@pytest.mark.parametrize("elsewhere", [True, False], ids=["read elsewhere", "read here"])
def test_labels_of_images_that_change_meanwhile_are_not_committed(
    tmp_path: Path, checkpoint: Path, elsewhere: bool
) -> None:
    """Though the shard has its old size and time."""
    worker = worker_of(tmp_path, checkpoint, views=6, views_per_part=3)
    config, shard = worker._config, tmp_path / "a.tar"
    plan = plan_job(config, index_shards(config.shards), worker.identity, worker.fingerprints)
    begin_job(plan)

    def label(order: PartOrder, disturb: Callable[[Path, int], None]) -> Committed:
        def groups() -> Iterator[AugmentedGroup]:
            for number, task in enumerate(order.tasks()):
                yield run_task(task)
                if number == 1:
                    disturb(shard, 3)

        read = order.contents()
        return worker.label_part(order, groups(), (lambda: read) if elsewhere else None)

    first, second = map(plan.order, plan.missing)
    committed = label(first, touch_what_is_no_image)
    assert committed.entry.rows == 60 * 3
    with pytest.raises(ShardError, match=r"a\.tar: its images changed while .*00003-00006"):
        label(second, change_in_place)
    # What is labelled from now on tells of other images than the first part.
    assert second.contents().image_hash != committed.images.hash


def test_a_teacher_of_other_code_than_the_first_labels_nothing(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal weights in another release's model may give other labels."""
    worker = worker_of(tmp_path, checkpoint, views=3)
    config, software = worker._config, worker.software
    assert software == {"timm": timm.__version__, "torch": torch.__version__}
    indexed = index_shards(config.shards)
    plan = plan_job(config, indexed, worker.identity, worker.fingerprints, software)
    begin_job(plan)
    order = plan.order(plan.missing[0])
    assert next(order.tasks()).fingerprints == plan.fingerprints  # which augmenters compare
    monkeypatch.setattr(timm, "__version__", "9.9")
    said = f"has timm 9.9, not {software['timm']} as where the job's first teacher is"
    with pytest.raises(TeacherError, match=said):
        worker.label_part(order, map(run_task, order.tasks()))
    assert not list(Path(config.out).glob("shard=*"))
    monkeypatch.undo()
    assert worker.label_part(order, map(run_task, order.tasks())).entry.rows == 60 * 3
