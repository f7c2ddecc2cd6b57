"""Settings: defaults that depend on one another, and what a resumed run must share."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ConfigError
from student.config import SETTINGS, TrainConfig, parse_model_args
from student.losses import LOSSES


def config(**values: Any) -> TrainConfig:
    return TrainConfig.of_settings(
        **{"labels": "l.parquet", "shards": ("a.tar",), "output": Path("run"), **values}
    )


def test_the_learning_rate_follows_the_batch_size_unless_given() -> None:
    assert config(batch_size=1024).peak_lr == 1e-3
    assert config(batch_size=1024, lr=0.5).peak_lr == 0.5


def test_warm_up_is_five_epochs_or_a_fifth_of_a_short_run() -> None:
    assert config(epochs=300).effective_warmup_epochs == 5
    assert config(epochs=2).effective_warmup_epochs == 0.4
    assert config(epochs=2, warmup_epochs=2).effective_warmup_epochs == 2


def test_a_run_is_written_to_a_path_or_a_url_without_credentials() -> None:
    assert config(output="s3://bucket/run/").output_file("last.pt") == "s3://bucket/run/last.pt"
    assert config(output=Path("run")).output_file("last.pt") == "run/last.pt"
    for url, words in (
        ("s3://key@bucket/run", "carries credentials"),
        ("hf://a/b", "the scheme hf:// is unknown"),
        ("s3://bucket/../run", "without empty names"),
    ):
        with pytest.raises(ConfigError, match=words):
            config(output=url)


def test_the_digest_follows_what_shapes_the_weights_and_nothing_else() -> None:
    base = config()
    free = {
        "labels": "m.parquet",
        "shards": ("b.tar",),
        "output": Path("other"),
        "val_shards": ("v.tar",),
        "resume": "auto",
        "workers": 7,
        "device": "cpu",
        "threads": 1,
        "audit": False,
        "cache_dir": Path("cache"),
        "cache_gb": 1.0,
        "eval_batch_size": 1,
        "log_every": 1,
        "checkpoint_epochs": 2,
        "checkpoint_steps": 3,
        "accumulate": 2,
        "eval_epochs": 2,
        "val_labels": "v.parquet",
        "finetune": Path("f.pt"),
        "finetune_weights": "ema",
        "image_size": 32,
        "lengthen": True,
        "report_images": 3,
        "tracker": "wandb",
        "tracker_project": "mine",
        "deterministic": True,
        "ema_on_cpu": True,
        "checkpoint_history": 3,
        "subset": True,  # which shards they are binds, not that some are missing
    }
    assert config(**free).digest == base.digest
    loop = config(teacher_in_loop=True)
    assert config(teacher_in_loop=True, teacher_checkpoint=Path("t.pth")).digest == loop.digest
    assert config(lr=base.peak_lr).digest == base.digest
    bound = SETTINGS.keys() - {*free, "teacher_checkpoint"}
    others: dict[str, Any] = {
        "model": "x", "model_args": ("depth=2",), "epochs": 10, "batch_size": 2, "seed": 1,
        "repeated_augmentation": True, "teacher_in_loop": True, "teacher_random_weights": 3,
        "smoothing": 0.0, "lr": 1.0, "warmup_lr": 0.0, "min_lr": 0.0,
        "warmup_epochs": 1.0, "weight_decay": 0.0, "drop_path": 0.0, "clip_grad": 1.0,
        "precision": "bf16", "eval_fraction": 1.0, "distillation": "soft",
        "distillation_kind": "classical", "ema_decay": 0.5,
        "optimizer": "sgd", "optimizer_eps": 1e-6, "optimizer_betas": (0.8, 0.9),
        "compile": True, "student_size": 16, "cycle_views": True, "window_shards": 4,
        "read_shares": 2,
        "train_mode": False, "grad_checkpointing": True, "attn_only": True, "sync_bn": True,
        "dist_bn": "reduce", "clip_mode": "agc", "layer_decay": 0.5, "ema_warmup": True,
        "optimizer_args": ("momentum=0.5",), "schedule": "step",
        "schedule_args": ("decay_rate=0.5",), "bce_loss": True, "bce_targets": "shares",
    }  # fmt: skip
    needed = {
        "teacher_random_weights": {"teacher_in_loop": True},
        "schedule_args": {"schedule": "step"},
        "bce_loss": {"smoothing": 0.0},
    }
    for kind in LOSSES.values():
        for one in dataclasses.fields(kind):
            others[one.name] = one.default / 2 or 0.5
            needed[one.name] = {"distillation": kind.name}
    assert set(others) == bound
    for name, value in others.items():
        given = needed.get(name, {})
        assert config(**given, **{name: value}).digest != config(**given).digest, name


def test_a_parameter_of_a_loss_that_was_not_chosen_binds_nothing() -> None:
    assert config(tau=1.0, soft_lambda=0.5).digest == config().digest
    assert config(distillation="soft", alpha=0.1).digest == config(distillation="soft").digest


def test_every_setting_has_a_name_of_its_own() -> None:
    assert len(SETTINGS) == count_of(config())


def count_of(value: object) -> int:
    """Return how many settings a group holds, in groups of its own too."""
    if not dataclasses.is_dataclass(value):
        return 1
    return sum(count_of(getattr(value, one.name)) for one in dataclasses.fields(value))


def test_a_setting_that_there_is_not_is_refused() -> None:
    with pytest.raises(ConfigError, match="no setting `epohcs`"):
        config(epohcs=3)


def test_model_arguments_are_literals_or_text() -> None:
    assert parse_model_args(("depth=2", "act_layer=gelu", "qkv_bias=False")) == {
        "depth": 2,
        "act_layer": "gelu",
        "qkv_bias": False,
    }


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch_size": 0}, "`batch_size` is 0"),
        ({"epochs": 0}, "`epochs` is 0"),
        ({"alpha": 1.5}, "`alpha` is 1.5; use 0..1"),
        ({"smoothing": 1.0}, "`smoothing` is 1.0"),
        ({"drop_path": -0.1}, "`drop_path` is -0.1"),
        ({"lr": 0.0}, "`lr` is 0.0"),
        ({"lr": 1e308}, r"`lr` is 1e.308; use 1e.30 at most"),
        ({"weight_decay": 1e39}, "`weight_decay` is 1e.39"),
        ({"workers": -1}, "`workers` is -1"),
        ({"epochs": 3, "warmup_epochs": 4}, "use 0 to 3"),
        ({"eval_fraction": 0.0}, "`eval_fraction` is 0.0"),
        ({"model_args": ("depth",)}, "write KEY=VALUE"),
        ({"model_args": ("depth=1", "depth=2")}, "depth twice"),
        ({"optimizer_args": ("momentum",)}, "`optimizer_args` has 'momentum'; write KEY=VALUE"),
        ({"schedule_args": ("noise=0.5",)}, "are of timm's schedules"),
        ({"schedule": "plateau"}, "`schedule` is 'plateau'; use 'cosine' or"),
        ({"layer_decay": 0.0}, "`layer_decay` is 0.0; use more than 0"),
        ({"clip_mode": "agcc"}, "`clip_mode` is 'agcc'"),
        ({"bce_loss": True}, "`smoothing` is 0.1; with `bce_loss` use 0, or `bce_targets` shares"),
        ({"teacher_checkpoint": Path("t"), "teacher_random_weights": 0}, "not both"),
        ({"threads": 1 << 31}, "`threads` is 2147483648; use fewer"),
    ],
)
def test_a_setting_out_of_range_is_refused_by_its_name(values: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**values)


GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "runs.json").read_text())
"""Runs of release 0.1.0: the settings they were given, and what their checkpoints bind."""


@pytest.mark.parametrize("run", GOLDEN, ids=lambda run: " ".join(map(str, run["given"])))
def test_runs_of_the_first_release_bind_what_they_did(run: dict[str, Any]) -> None:
    """A setting that is added since needs ``grown(founding=..., since=...)``, or to be free."""
    assert config(**run["given"]).binding() == run["binding"]
