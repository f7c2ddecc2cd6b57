"""Settings by name and from files: what they give, and that a saved run can be fed back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from timm.scheduler import CosineLRScheduler

from pipeline.errors import ConfigError
from pipeline.identity import PRESETS, MixConfig
from student.cli import _parse, main
from student.config import TrainConfig
from student.optimization import Optimization, Schedule
from student.recipes import RECIPES, read_run_file, recipe, to_toml
from tests.student.factories import TINY, make_identity, make_store, write_digit_shards
from tests.student.worlds import World, make_world

NEEDED = ("--labels", "l.parquet", "--shards", "a.tar", "b.tar", "--output", "run")


def parse(*arguments: str) -> TrainConfig:
    return _parse([*NEEDED, *arguments])[0]


def test_the_recipe_is_deits_defaults() -> None:
    config = parse("--recipe", "deit")
    given = config.to_json()

    def settings(*names: str) -> tuple[object, ...]:
        return tuple(given[name] for name in names)

    assert config.peak_lr == 5e-4 * config.plan.batch_size / 512
    assert settings("epochs", "weight_decay", "drop_path") == (300, 0.05, 0.1)
    assert settings("warmup_epochs", "warmup_lr", "min_lr") == (5, 1e-6, 1e-5)
    assert settings("smoothing", "alpha", "ema_decay") == (0.1, 0.5, 0.99996)
    assert settings("optimizer", "clip_grad") == ("adamw", None)
    optimizer = Optimization(torch.nn.Linear(2, 2), config, torch.device("cpu")).optimizer
    assert (optimizer.defaults["eps"], optimizer.defaults["betas"]) == (1e-8, (0.9, 0.999))
    assert settings("repeated_augmentation", "eval_fraction") == (True, 0.875)


def test_the_fine_tuning_recipe_is_that_of_deits_readme() -> None:
    """--batch-size 32 on 16 GPUs, --lr 5e-6 --weight-decay 1e-8 --epochs 30 --min-lr 5e-6."""
    config = parse("--recipe", "deit-384")
    given = config.to_json()
    assert (config.peak_lr, given["min_lr"], given["weight_decay"]) == (5e-6, 5e-6, 1e-8)
    assert (given["epochs"], given["drop_path"], given["smoothing"]) == (30, 0.1, 0.1)
    assert (given["warmup_epochs"], given["warmup_lr"], given["ema_decay"]) == (5, 1e-6, 0.99996)
    assert given["train_mode"] is False  # main.py: set_training_mode=args.finetune == ''
    assert parse("--recipe", "deit").student.train_mode
    assert parse("--recipe", "deit-384", "--train-mode").student.train_mode


@pytest.mark.parametrize(("name", "scheduled"), [("deit", 5e-4), ("deit-384", 5e-6)])
def test_each_of_the_first_epochs_begins_at_the_rate_of_the_originals_next(name, scheduled) -> None:
    """The original sets epoch e + 1's rate by step(e), after epoch e: 0 and 1 have the first."""
    config = parse("--recipe", name)
    weight = torch.nn.Parameter(torch.zeros(1))
    peak = config.peak_lr
    assert peak == pytest.approx(scheduled * (1008 / 512 if name == "deit" else 1))
    optimizer = torch.optim.AdamW([weight], lr=peak)
    epochs, least = config.plan.epochs, 1e-5 if name == "deit" else 5e-6
    scheduler = CosineLRScheduler(
        optimizer, t_initial=epochs, lr_min=least, warmup_lr_init=1e-6, warmup_t=5
    )
    theirs = []
    for epoch in range(13):
        theirs.append(optimizer.param_groups[0]["lr"])
        scheduler.step(epoch)
    assert theirs[0] == theirs[1] == 1e-6
    assert max(theirs[:8]) == theirs[6]
    # 1,271 batches of ImageNet's epoch.
    steps = 1_281_167 // config.plan.batch_size
    ours = Schedule(
        steps=steps * epochs,
        warmup_steps=steps * 5,
        peak=peak,
        warmup_from=config.optimization.warmup_lr,
        end=config.optimization.min_lr,
    )
    rates = [ours.lr(epoch * steps) for epoch in range(12)]
    assert rates == pytest.approx(theirs[1:], rel=1e-12)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipes_batch_fits_units_of_one_to_eight_ranks_but_five(name: str) -> None:
    size = RECIPES[name]["batch_size"]
    assert all(size % (6 * ranks) == 0 for ranks in (1, 2, 3, 4, 6, 7))
    TrainConfig.of_settings(labels="l", shards=("a",), output=Path("o"), **recipe(name))


def test_flags_override_a_file_and_a_file_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("drop_path = 0.2\nepochs = 30\n")
    config = parse("--recipe", "deit", "--config", str(path), "--epochs", "40")
    assert (config.plan.epochs, config.student.drop_path) == (40, 0.2)
    assert config.optimization.weight_decay == 0.05
    path.write_text('recipe = "deit-384"\nepochs = 20\n')
    config = parse("--config", str(path))
    assert (config.plan.epochs, config.optimization.weight_decay) == (20, 1e-8)


def test_every_setting_survives_a_run_file(tmp_path: Path) -> None:
    config = TrainConfig.of_settings(
        labels='a "quoted" \\ path/ü.parquet',
        shards=("x-{0..1}.tar", "y.tar"),
        output=Path("out"),
        model_args=TINY,
        lr=1e-7,
        warmup_epochs=2,
        clip_grad=1.0,
        optimizer_betas=(0.8, 0.95),
        ema_decay=0.99996,
        precision="bf16",
        compile=True,
        student_size=32,
        resume="auto",
    )
    path = tmp_path / "run.toml"
    path.write_bytes(to_toml(config))
    settings, name = read_run_file(path)
    assert name is None
    again = TrainConfig.of_settings(**settings)
    assert again.digest == config.digest
    assert again.to_json() == {**config.to_json(), "resume": None}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epohcs = 3", "no setting 'epohcs'"),
        ("epochs = 3.5", "epochs is 3.5; use a whole number"),
        ("epochs = true", "epochs is True; use a whole number"),
        ("shards = 'a.tar'", "shards is 'a.tar'; use a list"),
        ("precision = 'fp8'", "use 'fp32' or 'bf16' or 'fp16'"),
        ("optimizer_betas = [0.9]", "use a list of 2 values, each a number"),
        ("epochs = ", "cannot be read"),
        ("recipe = 'vit'", "`recipe` 'vit' is not known; use deit or deit-384"),
        ("alpha = 3", "`alpha` is 3.0; use 0..1"),
        ("lr = inf", "lr is inf; use finite numbers"),
        ("shards = " + "[" * 3000 + "]" * 3000, "cannot be read"),
    ],
)
def test_a_run_file_that_does_not_fit_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "run.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        parse("--config", str(path))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"), (13,), views=2)


def test_the_file_that_a_run_saves_gives_the_same_weights(world, tmp_path, capsys) -> None:
    flags = (
        *("--labels", str(world.root / "labels.parquet"), "--shards"),
        *(str(world.root / "digits-0.tar"), "--epochs", "2", "--batch-size", "4"),
        *("--workers", "0", "--threads", "1", "--device", "cpu", "--ema-decay", "0.9"),
        *("--model-args", *TINY),
    )
    main([*flags, "--output", str(tmp_path / "one")])
    saved = str(tmp_path / "one" / "run.toml")
    main(["--config", saved, "--output", str(tmp_path / "two")])
    weights = [
        line.split()[-1] for line in capsys.readouterr().out.splitlines() if "sha256" in line
    ]
    assert len(weights) == 2
    assert weights[0] == weights[1]
    digests = [
        json.loads((tmp_path / name / "config.json").read_text())["digest"]
        for name in ("one", "two")
    ]
    assert digests[0] == digests[1]
    assert f"# digest {digests[0]}" in Path(saved).read_text()


def test_a_recipe_goes_with_any_optimizer_and_any_length() -> None:
    config = parse("--recipe", "deit", "--optimizer", "sgd", "--epochs", "2")
    optimizer = Optimization(torch.nn.Linear(2, 2), config, torch.device("cpu")).optimizer
    assert isinstance(optimizer, torch.optim.SGD)
    assert config.effective_warmup_epochs == 0.4
    given = parse("--recipe", "deit", "--optimizer", "lion", "--optimizer-betas", "0.8", "0.9")
    lion = Optimization(torch.nn.Linear(2, 2), given, torch.device("cpu")).optimizer
    assert lion.defaults["betas"] == (0.8, 0.9)
    wrong = parse("--recipe", "deit", "--optimizer", "sgd", "--optimizer-eps", "1e-6")
    with pytest.raises(ConfigError, match="`optimizer_eps`: sgd has none"):
        Optimization(torch.nn.Linear(2, 2), wrong, torch.device("cpu"))


DEIT_MIX = MixConfig()


@pytest.mark.parametrize(
    ("recipe_name", "preset", "mix", "words"),
    [
        ("deit", "deit", DEIT_MIX, None),
        ("deit", "crop-flip", DEIT_MIX, "policy: 'none' / "),
        ("deit", "deit", MixConfig(probability=0), "probability: 0"),
        ("deit-384", "deit", MixConfig(probability=0), "probability: 0"),
    ],
)
@pytest.mark.parametrize("by_file", [False, True])
def test_a_recipe_on_other_views_than_deits_is_warned_about(
    tmp_path, capsys, recipe_name, preset, mix, words, by_file
) -> None:
    augment = replace(PRESETS[preset], image_size=16)
    paths = write_digit_shards(tmp_path, [12])
    identity = make_identity(augment=augment, mix=mix)
    make_store(tmp_path / "l.parquet", paths, identity=identity, views=3)
    named = ["--recipe", recipe_name]
    if by_file:
        (tmp_path / "run.toml").write_text(f'recipe = "{recipe_name}"\n')
        named = ["--config", str(tmp_path / "run.toml")]
    main(
        [
            *(*named, "--labels", str(tmp_path / "l.parquet"), "--shards"),
            *(str(paths[0]), "--output", str(tmp_path / "o"), "--model-args", *TINY),
            *("--epochs", "3", "--batch-size", "12", "--warmup-epochs", "1", "--workers", "0"),
            *("--threads", "1", "--device", "cpu"),
        ]
    )
    warnings = [line for line in capsys.readouterr().err.splitlines() if "not DeiT's" in line]
    assert len(warnings) == (words is not None)
    assert all(str(words) in line for line in warnings)
