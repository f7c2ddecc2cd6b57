"""What README and docs show can be done: commands parse, and those of the guide run."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path

import pytest
import timm
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_digits

from jobs.teacher_labels import COMMANDS
from tests.commands import OURS, require_command
from tests.student.factories import TINY

ROOT = Path(__file__).parents[1]
GUIDE = ROOT / "docs" / "guide"
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")],
    key=lambda path: path.relative_to(ROOT),
)
PROGRAMS = (*OURS, "teacher-labels", "python", "ray", "torchrun")
NEEDED = {
    "label-teacher": ("--shards", "--out"),
    "train-student": ("--labels", "--shards", "--output"),
}
ELSEWHERE = ("ray", "torchrun", "pip")  # need a cluster, several processes, or an index
# The demo has a test of its own.


def commands_of(page: Path) -> Iterator[list[str]]:
    """Yield the commands in a page's blocks, each as its words."""
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.M | re.S):
        if language not in ("", "bash"):
            continue
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            words = shlex.split(line, comments=True) if line.startswith(PROGRAMS) else []
            if words and words[0] in PROGRAMS:
                yield completed(words)


def completed(words: list[str]) -> list[str]:
    """Return a command without dots: a value for those of a flag, what is needed for others."""
    whole = [
        "x" if word == "..." and before.startswith("--") else word
        for before, word in zip(["", *words], words, strict=False)
    ]
    if "..." not in whole:
        return whole
    needed = [
        flag for name in words if name in NEEDED for flag in NEEDED[name] if flag not in whole
    ]
    return [word for word in whole if word != "..."] + [
        word for flag in needed for word in (flag, "x")
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_commands_of_a_page_parse(page: Path) -> None:
    for words in commands_of(page):
        require_command(words)


def test_commands_are_found() -> None:
    assert sum(len(list(commands_of(page))) for page in PAGES) > 50


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with all that a reader of the guide has: images, and a teacher's weights."""
    root = tmp_path_factory.mktemp("reader")
    digits = load_digits()
    for name, start in (("train", 0), ("val", 300)):
        for index in range(start, start + 45):
            folder = root / "images" / name / f"class{digits.target[index] % 6}"
            folder.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray((digits.images[index] * 15).astype("uint8")).convert("RGB")
            image.resize((40, 40)).save(folder / f"{index}.png")
    (root / "imagenet").symlink_to("images")
    (root / "photos").symlink_to("images/train")
    (root / "weights").mkdir()
    # The guide's own, and the small one that the first page has its reader train.
    for name, path in (("resnet18", "weights/teacher"), ("test_resnet", "teacher")):
        model = timm.create_model(name, num_classes=6)
        save_file(model.state_dict(), root / f"{path}.safetensors")
    return root


SMALL = {
    "--views": 4,
    "--image-size": 64,
    "--epochs": 1,
    "--batch-size": 8,
    "--student-size": 64,
}


def made_small(words: Sequence[str]) -> list[str]:
    """Return a command with a small world's sizes for its own."""
    small = [one.replace("001281", "000000") for one in words]
    for flag, most in SMALL.items():
        if flag in small:
            value = small.index(flag) + 1
            small[value] = str(min(int(small[value]), most))
    if small[0] == "label-teacher":
        small += ["--serial", "--allow-low-agreement", "--threads", "1"]
        if "--extend-to" not in small:
            small += [] if "--image-size" in small else ["--image-size", "32"]
            small += ["--num-classes", "6"]
        if "regnety_160.deit_in1k" in small:
            small[small.index("regnety_160.deit_in1k")] = "resnet18"
            small += ["--teacher-random-weights", "1"]
    if "--relabel" in small:  # by the teacher that stands here for the text's
        at = small.index("--teacher-checkpoint")
        small[at : at + 2] = ["--teacher-random-weights", "1"]
    if small[0] == "train-student":
        for flag, value in (("--epochs", "1"), ("--batch-size", "6"), ("--warmup-epochs", "0")):
            small += [] if flag in small else [flag, value]
        small += ["--threads", "1", "--workers", "0"]
        small += ["--model-args", *TINY] if "test_resnet" not in small else []
    return small


def follow(page: Path) -> None:
    """Do what a page says, in the current directory."""
    for words in commands_of(page):
        away = any("://" in word for word in words)  # a bucket, or the hub
        if not (away or words[0] in ELSEWHERE or words[:2] == ["teacher-labels", "demo"]):
            follow_words(words)


def follow_words(words: list[str]) -> None:
    """Do a command, made small."""
    if words[0] == "teacher-labels":
        words = [COMMANDS[words[1]][0] or words[1], *words[2:]]
    command = made_small(words[1:] if words[0] == "python" else words)
    if "--out" in command and "--extend-to" not in command:
        out = Path(command[command.index("--out") + 1])
        shutil.rmtree(out) if out.is_dir() else out.unlink(missing_ok=True)
    programs = {old or name: target for name, (old, target, _) in COMMANDS.items()}
    module, _, function = programs[command[0]].partition(":")
    try:
        getattr(import_module(module), function)(command[1:])
        status = 0
    except SystemExit as end:
        status = end.code
    assert not status, command


def test_the_guide_can_be_followed(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world)
    for name in ("start", "data", "imagenet", "deit", "resolution", "determinism"):
        follow(GUIDE / f"{name}.md")
    assert {path.name for path in world.iterdir()} >= {"views.png", "wrong.png", "tenth.parquet"}
    assert {path.name for path in (world / "runs").iterdir()} == {"first", "tiny", "tiny-384"}


def test_the_readme_can_be_followed(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world)
    for name in ("shards", "runs"):
        shutil.rmtree(name, ignore_errors=True)
    said = "label-teacher --shards shards/val --preset center --views 1 --out val.parquet"
    assert "`label-teacher --preset center --views 1`" in (ROOT / "README.md").read_text()
    follow_words(shlex.split("pack-shards --images images/val --out shards/val"))
    follow_words([*shlex.split(said), "--teacher", "resnet18", "--teacher-random-weights", "1"])
    follow(ROOT / "README.md")
    for name in ("wrong.png", "report.json", "tiny.onnx", "report.html", "published"):
        assert (world / name).exists()


def test_the_site_is_whole_and_asks_nobody(tmp_path: Path) -> None:
    for name in ("docs", "pipeline", "student", "teacher_labels"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("mkdocs.yml", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    for command in (["docs/commands.py"], ["-m", "zensical", "build", "--strict"]):
        done = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    pages = sorted((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 15
    for page in pages:
        text = page.read_text(encoding="utf-8")
        asked = re.findall(
            r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=\"?(https?://[^\s\">]+)", text
        )
        assert not asked, page
    names = (tmp_path / "site" / "reference" / "python.html").read_text()
    assert "open_store" in names
    assert "pipeline.LabelConfig.views_per_part" in names  # a field of its base
