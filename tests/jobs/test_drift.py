"""Normalizing or mixing that drifts after a store was labelled: job, trainer and verify refuse."""

from __future__ import annotations

import inspect
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs import label_teacher
from jobs.run import run_label_job
from pipeline.errors import IdentityError, ReplayError
from pipeline.identity import AugmentConfig
from pipeline.labelling.config import LabelConfig
from pipeline.records import AppliedOp, Box, ImageSize, Pixels, ViewParams
from pipeline.shards.index import open_shard
from pipeline.store import open_store
from pipeline.tools.extend import extended_config
from pipeline.tools.thin import KeptSamples, thin_store
from pipeline.tools.verify import Mismatch, verify_store
from pipeline.views import apply, draw, make, mixing, pairing
from pipeline.views.fingerprints import fingerprints
from pipeline.views.floats import float_fingerprints
from student import cli as student_cli
from student.engine import train
from student.inputs import open_inputs
from tests.labelling import CLASSES, SMALL, digit_shard, write_teacher
from tests.student.worlds import World


@dataclass(frozen=True)
class Drift:
    """A change of one line of a function of ``pipeline.views.mixing``."""

    function: str
    line: str
    instead: str

    def apply(self, monkeypatch: pytest.MonkeyPatch) -> None:
        function = inspect.unwrap(getattr(mixing, self.function))
        source = inspect.getsource(function)
        assert source.count(self.line) == 1
        scope = dict(vars(mixing))
        exec(
            "from __future__ import annotations\n" + source.replace(self.line, self.instead), scope
        )
        # Wherever it was imported to, it is this object.
        monkeypatch.setattr(function, "__code__", inspect.unwrap(scope[self.function]).__code__)
        mixing._constants.cache_clear()


@pytest.fixture(autouse=True)
def _as_on_a_gpu() -> Iterator[None]:
    """Mix by the code that drifts; forget, once all is undone, what a drift has made."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mixing, "_IN_ONE_PASS", ())
        yield
    mixing._constants.cache_clear()


SEEN = {
    "lambda swapped": Drift(
        "_mixed",
        "blended = (own * lam).add_(partners * (1 - lam))",
        "blended = (own * (1 - lam)).add_(partners * lam)",
    ),
    "CutMix inverted": Drift(
        "_mixed",
        "(inside & (kind == MixKind.CUTMIX.code), partners, result)",
        "(inside | (kind != MixKind.CUTMIX.code), result, partners)",
    ),
    "CutMix shifted": Drift(
        "_box_masks",
        "torch.arange(size, device=box.device)",
        "torch.arange(size, device=box.device) - 3",
    ),
    "no mixing": Drift("_mixed", "lam, kind =", "return own\n    lam, kind ="),
    "std ignored": Drift("_constants", "1 / (255 * value) for", "1 / 255 for"),
    "mean reversed": Drift("_constants", "for value in mean", "for value in reversed(mean)"),
    "partner swapped": Drift("_mixed", "(partners *", "(partners.roll(1, 0) *"),
}
UNSEEN = {
    "not mixed at this size": Drift(
        "_mixed",
        "lam, kind =",
        "if own.shape[-1] == 16: return own\n    lam, kind =",
    ),
    "std ignored at this size": Drift(
        "normalize", "tuple(std)", "tuple([1] * 3 if pixels.shape[1] == 16 else std)"
    ),
}


def _decode_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    found = apply._DECODERS["jpeg"]

    def drifted(data: bytes, max_pixels: int) -> Pixels:
        image = found(data, max_pixels)
        return image ^ np.uint8(image.shape[:2] == (8, 8))

    monkeypatch.setitem(apply._DECODERS, "jpeg", drifted)


def _resample_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    found = apply._resample

    def drifted(image: Pixels, crop: Box, hflip: bool, result: Pixels) -> None:
        found(image, crop, hflip, result)
        result[-1, -1] ^= image.shape[:2] == (8, 8)

    monkeypatch.setattr(apply, "_resample", drifted)


def _operate_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    found = apply._operate

    def drifted(image: Pixels, one: AppliedOp, config: AugmentConfig, result: Pixels) -> None:
        found(image, one, config, result)
        result[0, 0] ^= image.shape[:2] == (16, 16) and one.argument < 0

    monkeypatch.setattr(apply, "_operate", drifted)


def _draw_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    found = make.draw_view

    def drifted(seed: int, view: int, size: ImageSize, config: AugmentConfig) -> ViewParams:
        params = found(seed, view, size, config)
        return replace(params, hflip=params.hflip != (size.height == size.width == 8))

    monkeypatch.setattr(make, "draw_view", drifted)


def _pair_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    found = pairing.draw_partners

    def drifted(seed: int, shard: str, view: int, *rest: Any) -> Any:
        return found(seed, shard, view + 3 * (shard != "shard"), *rest)

    monkeypatch.setattr(pairing, "draw_partners", drifted)


UNSEEN_PIXELS: Mapping[str, Callable[[pytest.MonkeyPatch], None]] = {
    "decoded otherwise at this size": _decode_otherwise,
    "resampled otherwise from this size": _resample_otherwise,
    "operations with arguments below zero at this size": _operate_otherwise,
    "drawn otherwise for this size": _draw_otherwise,
    "other partners in this shard": _pair_otherwise,
}
"""Drifts of pixels where no fingerprint looks: they have other sizes, arguments and shards."""


@pytest.fixture(scope="module")
def _dense_digests() -> Iterator[None]:
    """Give one view in four a digest, and each of those a second one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(draw, "DIGEST_EVERY", 4)
        patch.setattr(draw, "MIXED_DIGEST_EVERY", 1)
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, _dense_digests: None) -> Path:
    """Shards, a teacher, and a store of three views."""
    folder = tmp_path_factory.mktemp("drift")
    for number in range(2):
        digit_shard(folder / f"digits-{number}.tar", 17, first=17 * number, broken=(4,))
    write_teacher(folder / "teacher.safetensors")
    assert run_label_job(config_of(folder)) == 0
    return folder


def config_of(folder: Path, views: int = 3) -> LabelConfig:
    return LabelConfig(
        shards=(str(folder / "digits-{0..1}.tar"),),
        out=str(folder / "labels.parquet"),
        teacher="regnety_002",
        teacher_checkpoint=folder / "teacher.safetensors",
        num_classes=CLASSES,
        precision="fp32",
        device="cpu",
        serial=True,
        augment=SMALL,
        views=views,
        views_per_part=3,
        max_rejected=0.1,
        allow_low_agreement=True,
    )


@pytest.fixture
def copy(root: Path, tmp_path: Path) -> Path:
    """A folder to which a job may add, and in which a student may be trained."""
    folder = tmp_path / "copy"
    shutil.copytree(root, folder)
    return folder


def resume(folder: Path) -> None:
    run_label_job(config_of(folder, views=6))


def extend(folder: Path) -> None:
    store = open_store(folder / "labels.parquet")
    run_label_job(extended_config(config_of(folder), store, 6))


def every_mismatch(folder: Path) -> tuple[Mismatch, ...]:
    shards = config_of(folder).shards
    return verify_store(folder / "labels.parquet", shards, every_digest=True).mismatches


def begin_training(folder: Path) -> None:
    config = World(folder).config(folder / "run", batch_size=8)
    train(config, open_inputs(config), stop_after=1)


def verify(folder: Path) -> None:
    verify_store(folder / "labels.parquet", config_of(folder).shards, every_digest=True)


@pytest.mark.parametrize("name", SEEN)
@pytest.mark.parametrize("whoever", [resume, begin_training, verify])
def test_drift_is_refused_by_the_fingerprints_of_an_old_store(
    copy: Path, monkeypatch: pytest.MonkeyPatch, name: str, whoever: Callable[[Path], None]
) -> None:
    SEEN[name].apply(monkeypatch)
    what = "normaliz" if SEEN[name].function == "_constants" else "mixing"
    with pytest.raises(IdentityError, match=rf"other pixels.*values \({what}"):
        whoever(copy)
    assert open_store(copy / "labels.parquet").manifest.view_range == range(3)


@pytest.mark.parametrize("name", UNSEEN)
def test_drift_that_fingerprints_miss_is_found_by_the_second_digest(
    copy: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    UNSEEN[name].apply(monkeypatch)
    store = open_store(copy / "labels.parquet")
    pattern = r"view \d of 'digit_00\d\d' .*has mixed_digest \w{8} .*, and \w{8} in the store.*\("
    for whoever in (resume, begin_training):
        with pytest.raises(ReplayError, match=pattern):
            whoever(copy)
    report = verify_store(store.root, config_of(copy).shards, every_digest=True)
    assert {one.column for one in report.mismatches} == {"mixed_digest"}
    sampled = verify_store(store.root, config_of(copy).shards)
    assert sampled.mismatches


@pytest.mark.parametrize("name", UNSEEN_PIXELS)
def test_drifting_pixels_that_fingerprints_miss_are_found_before_anything_is_paid_for(
    copy: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    store = open_store(copy / "labels.parquet")
    before = fingerprints(store.identity)
    UNSEEN_PIXELS[name](monkeypatch)
    assert fingerprints(store.identity) == before
    pattern = r"view \d of 'digit_00\d\d' .*has (mixed_)?digest \w{8} "
    for whoever in (resume, extend, begin_training):
        with pytest.raises(ReplayError, match=pattern):
            whoever(copy)
    assert {one.column for one in every_mismatch(copy)} >= {"digest"}
    assert verify_store(store.root, config_of(copy).shards).mismatches
    assert len(list((copy / "labels.parquet").glob("shard=*/*.parquet"))) == 2


@pytest.mark.parametrize("command", ["resume", "extend", "train", "verify", "verify --all"])
def test_commands_refuse_drift_in_one_line(
    copy: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
) -> None:
    UNSEEN_PIXELS["drawn otherwise for this size"](monkeypatch)
    out, shards = str(copy / "labels.parquet"), [str(copy / f"digits-{n}.tar") for n in range(2)]
    weights = ["--teacher-checkpoint", str(copy / "teacher.safetensors")]
    job = ["--serial", "--device", "cpu", "--max-rejected", ".1", "--allow-low-agreement", *weights]
    small = ["--teacher", "regnety_002", "--num-classes", "10", "--precision", "fp32"]
    small += ["--image-size", "16", "--views", "6", "--views-per-part", "3"]
    student = ["--model", "test_resnet", "--distillation-kind", "classical", "--device", "cpu"]
    student += ["--epochs", "1", "--batch-size", "8", "--workers", "0", "--output"]
    monkeypatch.setattr(label_teacher, "prepare_environment", lambda: None)
    run: Callable[[], None] = {
        "resume": lambda: label_teacher.main([*job, *small, "--out", out, "--shards", *shards]),
        "extend": lambda: label_teacher.main(
            [*job, "--out", out, "--extend-to", "6", "--shards", *shards]
        ),
        "train": lambda: student_cli.main(
            ["--labels", out, "--shards", *shards, *student, str(copy / "run")]
        ),
        "verify": lambda: student_cli.store_main(["verify", out, "--shards", *shards]),
        "verify --all": lambda: student_cli.store_main(
            ["verify", out, "--shards", *shards, "--all"]
        ),
    }[command]
    with pytest.raises(SystemExit) as ended:
        run()
    assert ended.value.code == 1
    said = capsys.readouterr()
    refusals = [
        line
        for line in (said.out + said.err).splitlines()
        if re.search("has (mixed_)?digest", line)
    ]
    assert "Traceback" not in said.err
    if "verify" in command:
        assert said.out.count("MISMATCH") > 1
        assert said.out.endswith("FAILED\n")
    else:
        assert len(refusals) == 1
        assert said.err.splitlines()[-1] == refusals[0]
    assert open_store(out).manifest.view_range == range(3)
    assert not (copy / "run" / "metrics.jsonl").exists()


def test_a_finished_zarr_store_is_redrawn_before_it_is_taken_apart(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config_of(copy), out=str(copy / "labels.zarr"))
    assert run_label_job(config) == 0
    with monkeypatch.context() as patch:
        UNSEEN["not mixed at this size"].apply(patch)
        with pytest.raises(ReplayError, match="has mixed_digest"):
            run_label_job(replace(config, views=6))
    assert [path.name for path in copy.glob("labels.zarr*")] == ["labels.zarr"]
    assert run_label_job(replace(config, views=6)) == 0


def test_in_a_subset_partners_that_are_omitted_are_still_mixed_in(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = open_store(copy / "labels.parquet")
    keys = tuple(f"digit_{number:04d}" for number in range(0, 34, 3))
    thin_store(whole, copy / "some.parquet", kept=KeptSamples(keys=keys))
    (copy / "labels.parquet").rename(copy / "whole.parquet")
    (copy / "some.parquet").rename(copy / "labels.parquet")
    begin_training(copy)
    shards = config_of(copy).shards
    report = verify_store(copy / "labels.parquet", shards, every_digest=True)
    assert report.mismatches == ()
    assert 0 < report.mixed_redrawn == report.mixed_digests < whole.manifest.rows / 3
    UNSEEN["not mixed at this size"].apply(monkeypatch)
    shutil.rmtree(copy / "run")
    with pytest.raises(ReplayError, match="has mixed_digest"):
        begin_training(copy)


def test_what_has_not_drifted_is_resumed_trained_on_and_verified(copy: Path) -> None:
    begin_training(copy)
    resume(copy)
    shards = config_of(copy).shards
    report = verify_store(copy / "labels.parquet", shards, every_digest=True)
    assert report.mismatches == ()
    assert report.mixed_redrawn == report.mixed_digests == report.digests > 0
    assert report.same_floats
    assert open_store(copy / "labels.parquet").manifest.view_range == range(6)


def test_a_store_that_drifted_before_is_not_extended(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its digests are redrawn before a teacher labels one view more."""
    store = open_store(copy / "labels.parquet")
    shard = store.manifest.shards[0]
    path = copy / "digits-0.tar"
    data = bytearray(path.read_bytes())
    for sample in open_shard(path, 0).samples:  # other bytes of the same length
        data[sample.image_offset + sample.image_bytes * 7 // 8] ^= 0x55
    path.write_bytes(data)
    assert open_shard(path, 0).info == shard
    with pytest.raises(ReplayError, match=r"has (mixed_)?digest .* verify the store with its"):
        resume(copy)
    assert open_store(store.root).manifest.view_range == range(3)


def test_other_last_bits_are_said_and_their_digests_left_alone(
    copy: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As on a device that rounds otherwise: a multiplication and addition fused in one."""
    Drift(
        "_mixed",
        "(own * lam).add_(partners * (1 - lam))",
        "(own.double() * lam + partners * (1 - lam)).float()",
    ).apply(monkeypatch)
    report = verify_store(copy / "labels.parquet", config_of(copy).shards, every_digest=True)
    assert report.mismatches == ()
    assert not report.same_floats
    assert report.mixed_redrawn == 0 < report.mixed_digests
    with caplog.at_level("WARNING"):
        begin_training(copy)
    assert "but for the last bits" in caplog.text
    with pytest.raises(IdentityError, match=r"mixed\.bits .*to the last bit.*kind of device"):
        resume(copy)


@pytest.mark.parametrize("name", [*SEEN, *UNSEEN])
def test_each_drift_changes_what_the_teacher_gets(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The mutations themselves: each is seen, or not, as the tests above need it."""
    before = float_fingerprints(SMALL, config_of(Path()).effective_mixing, "cpu")
    drift = (SEEN | UNSEEN)[name]
    drift.apply(monkeypatch)
    after = float_fingerprints(SMALL, config_of(Path()).effective_mixing, "cpu")
    assert (after != before) == (name in SEEN)
