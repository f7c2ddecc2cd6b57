"""The command: help at once, errors in one line, a table at the end."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from student.cli import evaluate_main, export_main, main, print_evaluation
from student.evaluation.evaluate import Accuracy, Evaluation
from tests.commands import require_command
from tests.student.factories import TINY, make_store, write_digit_shards


def arguments(root: Path, *more: str) -> list[str]:
    return [
        *("--labels", str(root / "labels.parquet"), "--shards", str(root / "digits-{0..1}.tar")),
        *("--output", str(root / "run"), "--epochs", "2", "--batch-size", "8", "--workers", "0"),
        *("--threads", "1", "--device", "cpu", "--model-args", *TINY, *more),
    ]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cli")
    make_store(root / "labels.parquet", write_digit_shards(root, [9, 8]), views=2)
    return root


def test_a_run_ends_with_a_table_of_four_fusions(root: Path, tmp_path: Path, capsys) -> None:
    output = str(tmp_path / "run")
    main(arguments(root, "--output", output, "--val-shards", str(root / "digits-0.tar")))
    table, said = capsys.readouterr()
    shards = root / "digits-0.tar"
    assert said.splitlines()[-1] == (
        f"train-student: next: evaluate-student --checkpoint {output}/best.pt "
        f"--val-shards {shards} --analysis"
    )
    for name in ("class head", "distillation head", "mean of logits", "sum of softmaxes"):
        assert name in table
    assert "sha256 " in table


@pytest.mark.parametrize(("top5", "header"), [(0.5, "top-1    top-5"), (None, "top-1     loss")])
def test_few_classes_have_no_top_5_in_a_table(
    top5: float | None, header: str, capsys: pytest.CaptureFixture[str]
) -> None:
    accuracy = Accuracy(top1=0.25, top5=top5, loss=1.5)
    print_evaluation("raw weights", evaluation_of(accuracy), taught=False)
    title, line, *_ = capsys.readouterr().out.splitlines()
    assert header in title
    assert len(title) == len(line)
    assert ("50.00%" in line) == (top5 is not None)


def evaluation_of(accuracy: Accuracy) -> Evaluation:
    return Evaluation(
        samples=4,
        class_head=accuracy,
        distillation_head=None,
        mean_of_logits=None,
        sum_of_softmaxes=None,
        teacher=None,
        permuted_top1=0.0,
        images_per_second=1.0,
    )


def test_what_the_user_can_cure_is_one_error_and_exit_status_1(root, tmp_path, capsys) -> None:
    output = str(tmp_path / "run")
    with pytest.raises(SystemExit) as caught:
        main(arguments(root, "--output", output, "--epochs", "3"))
    assert caught.value.code == 1
    assert capsys.readouterr().err.startswith("train-student: error: 3 epochs need 3 views")
    with pytest.raises(SystemExit) as caught:
        main(arguments(root, "--output", output, "--alpha", "2"))
    assert caught.value.code == 1
    assert "train-student: error: --alpha is 2.0; use 0..1" in capsys.readouterr().err


def test_an_output_that_cannot_be_written_is_one_error(root, capsys) -> None:
    with pytest.raises(SystemExit):
        main(arguments(root, "--output", "/proc/nowhere/run"))
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("train-student: error: /proc/nowhere/run")
    assert "cannot be written" in line


def test_a_run_without_validation_shards_is_warned_about(root, tmp_path, capsys) -> None:
    main(arguments(root, "--output", str(tmp_path / "run")))
    said = capsys.readouterr().err
    assert "no --val-shards" in said
    assert said.endswith("/last.pt --to timm --out student.pth\n")


def test_training_without_the_audit_is_warned_about(root, tmp_path, capsys) -> None:
    main(arguments(root, "--output", str(tmp_path / "run"), "--no-audit"))
    text = capsys.readouterr()
    assert "warning: --no-audit: nothing shows any more that the labels belong" in text.err
    assert "views audited               0" in text.out


def test_classes_in_another_order_are_warned_about(root, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(Evaluation, "classes_look_permuted", lambda self, classes: classes == 10)
    output = tmp_path / "run"
    shards = ("--val-shards", str(root / "digits-0.tar"))
    main(arguments(root, "--output", str(output), *shards))
    evaluate_main(["--checkpoint", str(output / "last.pt"), *shards, "--workers", "0"])
    lines = capsys.readouterr().err.splitlines()
    for program in ("train-student", "evaluate-student"):
        (line,) = (one for one in lines if one.startswith(f"{program}: warning: the student is"))
        assert "the validation shards' .cls may be in another order" in line


def test_a_resumed_run_says_where_it_goes_on(root, tmp_path, capsys) -> None:
    flags = ("--output", str(tmp_path / "run"), "--checkpoint-steps", "1")
    main(arguments(root, *flags))
    assert "continues" not in capsys.readouterr().err
    (tmp_path / "run" / "last.pt").write_bytes(b"torn")
    main(arguments(root, *flags, "--resume", "auto"))
    text = capsys.readouterr().err
    assert f"train-student: warning: {tmp_path / 'run' / 'last.pt'} was torn or missing\n" in text
    assert f"continues at step 3/4, from {tmp_path / 'run' / 'previous.pt'}" in text


def test_a_head_that_nothing_taught_is_not_reported(root, tmp_path, capsys) -> None:
    output = tmp_path / "run"
    shards = ("--val-shards", str(root / "digits-0.tar"))
    main(arguments(root, "--output", str(output), *shards, "--distillation", "none"))
    evaluate_main(["--checkpoint", str(output / "last.pt"), *shards, "--workers", "0"])
    table = capsys.readouterr().out
    assert table.count("class head") == 2
    assert "distillation head" not in table


def test_fine_tuning_from_nothing_is_warned_about(root, tmp_path, capsys) -> None:
    recipe = ("--recipe", "deit-384", "--no-repeated-augmentation")
    main(arguments(root, *recipe, "--output", str(tmp_path / "run")))
    assert "without --finetune begins from untrained weights" in capsys.readouterr().err


def test_a_flag_that_would_do_nothing_is_refused(root, tmp_path, capsys) -> None:
    for flags, needed in (
        (("--val-labels", "x.parquet"), "--val-shards"),
        (("--finetune-weights", "ema"), "--finetune"),
        (("--teacher-checkpoint", "x.safetensors"), "--teacher-in-loop"),
        (("--teacher-random-weights", "0"), "--teacher-in-loop"),
        (("--clip-mode", "agc"), "--clip-grad"),
    ):
        with pytest.raises(SystemExit):
            main(arguments(root, "--output", str(tmp_path / "run"), *flags))
        line = capsys.readouterr().err
        assert f"error: {flags[0]} is {flags[1]}; without {needed} it does nothing" in line


def test_a_file_may_hold_what_flags_complete(root, tmp_path, capsys) -> None:
    output = ("--output", str(tmp_path / "run"))
    main(arguments(root, *output))
    (tmp_path / "run.toml").write_text('val_labels = "no.parquet"\n')
    given = ("--config", str(tmp_path / "run.toml"), "--output", str(tmp_path / "two"))
    with pytest.raises(SystemExit):
        main(arguments(root, *given))
    assert "without --val-shards it does nothing" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(arguments(root, *given, "--val-shards", str(root / "digits-0.tar")))
    assert "no.parquet" in capsys.readouterr().err.splitlines()[-1]


def test_views_of_another_size_than_asked_for_are_refused(root, tmp_path, capsys) -> None:
    output = ("--output", str(tmp_path / "run"))
    main(arguments(root, *output, "--image-size", "32"))
    with pytest.raises(SystemExit):
        main(arguments(root, "--output", str(tmp_path / "no"), "--image-size", "384"))
    assert "have 32 pixels; label a store at 384, or have" in capsys.readouterr().err


def test_help_does_not_wait_for_pytorch() -> None:
    code = (
        "import sys\n"
        "from student.cli import main\n"
        "try:\n    main(['--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for flag in ("--labels", "--teacher-in-loop", "--resume", "--batch-size"):
        assert flag in done.stdout


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--teacher-in-loop"], "cannot create the teacher 'regnety_002': 127.0.0.1 cannot be"),
        (["--image-size", "384"], "have 32 pixels; label a store at 384"),
        (["--labels", "hf://datasets/a/b/x.parquet"], "the hub cannot be reached; connect"),
    ],
)
def test_what_does_not_fit_is_said_before_timm_loads(
    root: Path, tmp_path: Path, more: list[str], said: str
) -> None:
    code = (
        "import sys\n"
        "from student.cli import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "finally: print('timm' in sys.modules)"
    )
    variables = {"HF_ENDPOINT": "http://127.0.0.1:1", "HF_HUB_OFFLINE": "0", "HTTPS_PROXY": ""}
    variables |= {"HF_HOME": str(tmp_path), "https_proxy": ""}
    words = [sys.executable, "-c", code, *arguments(root, *more)]
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, env={**os.environ, **variables}
    )
    assert said in done.stderr.splitlines()[-1]
    assert (done.returncode, done.stdout) == (1, "False\n")


def test_an_output_that_is_taken_is_refused_before_anything_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "best.pt").touch()
    monkeypatch.setattr("student.cli._train", None)
    with pytest.raises(SystemExit) as ended:
        main(["--labels", "no.parquet", "--shards", "no.tar", "--output", str(tmp_path)])
    assert ended.value.code == 1
    assert "holds a run (best.pt); continue it with --resume auto" in capsys.readouterr().err


def test_who_names_a_run_without_a_flag_is_told_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "my run"
    run.mkdir()
    (run / "best.pt").touch()
    (run / "run.toml").write_text('labels = "l"\nshards = ["s"]\nval_shards = ["v"]\n')
    for command, words, told in (
        (
            evaluate_main,
            [str(run)],
            "evaluate-student --checkpoint 'my run/best.pt' --val-shards v",
        ),
        (
            evaluate_main,
            [f"{run}/best.pt", "--val-shards", "v"],
            "evaluate-student --checkpoint 'my run/best.pt' --val-shards v",
        ),
        (
            export_main,
            [str(run), "--to", "hub"],
            "export-student 'my run' --to hub --out student",
        ),
    ):
        with pytest.raises(SystemExit) as ended:
            command(words)
        assert ended.value.code == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.endswith(f": {told}")
        require_command(shlex.split(told))
