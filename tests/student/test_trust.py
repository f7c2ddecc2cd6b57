"""What a file names does not run, is not fetched and is not read, unless the user names it too."""

from __future__ import annotations

import ast
import inspect
import os
import resource
import socket
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from jobs.label_teacher import main as label_teacher
from pipeline.cli.commands import label_store
from pipeline.errors import CheckpointError, ConfigError
from pipeline.identity import AugmentConfig, MixConfig
from pipeline.labelling.teacher import Teacher, TeacherSpec, load_teacher
from pipeline.store import claim_store
from pipeline.views.floats import fingerprints_on
from student import checkpoint as checkpoints
from student.cli import evaluate_main, export_main
from student.cli import main as train_student
from student.engine import train
from student.evaluation.report import load_student
from student.finetune import read_weights
from student.inputs import open_inputs
from student.recipes import to_toml
from student.trust import require_named_arguments
from tests.student.factories import make_identity, make_store, write_digit_shards
from tests.student.test_checkpoint import Harm
from tests.student.worlds import World, make_world

OWN = """
from pathlib import Path
from torch import nn

Path("harm").write_text("ran")


class Own(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.layer = nn.Linear(3, num_classes)

    def forward(self, images):
        logits = self.layer(images.mean((2, 3)))
        return logits, logits


def build(num_classes, pretrained=False):
    return Own(num_classes)
"""

FORGED_NAMES = ("files_own:build", "torch.hub:load", "hf-hub:a/b", "local-dir:.", "timm/a", "../a")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A store, a run on it, and stores that say that a name of ``FORGED_NAMES`` labelled them.

    ``honest.parquet`` is one of these with a name of timm's."""
    world = make_world(tmp_path_factory.mktemp("world"), (14, 10))
    config = world.config(world.root / "run")
    train(config, open_inputs(config))
    paths = write_digit_shards(world.root / "few", (8,))
    names = {f"forged-{number}": name for number, name in enumerate(FORGED_NAMES)}
    for store, name in {"honest": "regnety_002", **names}.items():
        identity = make_identity()
        teacher = replace(identity.teacher, architecture=name)
        root = world.root / f"{store}.parquet"
        identity = replace(identity, teacher=teacher)
        claim_store(root, identity, fingerprints_on(identity, "cpu"))
        make_store(root, paths, identity=identity)
    return world


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Go where a file's module could be imported, and make every request for a host fail."""
    asked: list[object] = []
    real = socket.getaddrinfo

    def look_up(host: object, *rest: Any, **more: Any) -> Any:
        if host == "127.0.0.1":  # threads that other tests left talk to their own servers
            return real(host, *rest, **more)
        asked.append((host, *rest))
        raise socket.gaierror(f"{host} is asked for")

    (tmp_path / "files_own.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.delitem(sys.modules, "files_own", raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr("student.evaluation.report._SECONDS_OF_SPEED", 0.0)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    yield
    assert not asked


def forge(source: Path, target: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Write a checkpoint with other values and the digest that belongs to them."""
    values = torch.load(source, weights_only=True)
    del values["digest"]
    change(values)
    torch.save({**values, "digest": checkpoints._digest(values)}, target)
    return target


def named(world: World, **student: Any) -> Path:
    """Return a checkpoint of the run that names another student."""
    last = world.root / "run" / "last.pt"
    return forge(last, Path("forged.pt"), lambda values: values["student"].update(student))


def harmful(name: str) -> Path:
    """Return a pickle that writes ``harm`` when it is loaded with code."""
    torch.save({"format_version": 3, "model": Harm(Path("harm"))}, name)
    return Path(name)


def run_file(world: World, **settings: Any) -> Path:
    path = Path("run.toml")
    path.write_bytes(to_toml(world.config(Path("out"), **settings)))
    return path


def error_of(command: Callable[..., None], arguments: list[object], monkeypatch, capsys) -> str:
    """Run a command that must fail in one line; return what it says."""
    words = [str(one) for one in arguments]
    monkeypatch.setattr("sys.argv", ["command", *words])
    with pytest.raises(SystemExit) as caught:
        command() if command is label_store else command(words)
    text = capsys.readouterr().err
    assert caught.value.code == 1
    assert "Traceback" not in text
    assert "error: " in text
    return text


def evaluate(checkpoint: Path) -> list[object]:
    return ["--checkpoint", checkpoint, "--val-shards", "x.tar", "--device", "cpu"]


def of_run(world: World, *more: object, out: str = "out") -> list[object]:
    return ["--config", run_file(world), "--output", out, *more]


def relabel(store: Path, *more: object) -> list[object]:
    shards = store.parent / "few" / "*.tar"
    return ["verify", store, "--shards", shards, "--relabel", 1, "--device", "cpu", *more]


def label(store: Path, *more: object) -> list[object]:
    shards = store.parent / "few" / "*.tar"
    return ["--out", store, "--shards", shards, "--serial", "--device", "cpu", *more]


# Every command that reads such a file, with one that would run code.
PICKLES: dict[str, Callable[[World], tuple[Callable[..., None], list[object]]]] = {
    "evaluate-student": lambda _: (evaluate_main, evaluate(harmful("a.pt"))),
    "--resume": lambda w: (train_student, of_run(w, "--resume", harmful("a.pt"))),
    "--finetune": lambda w: (train_student, of_run(w, "--finetune", harmful("a.pth"))),
    "--teacher-in-loop": lambda w: (
        train_student,
        of_run(w, "--teacher-in-loop", "--teacher-checkpoint", harmful("a.pth")),
    ),
    "label-teacher": lambda w: (
        label_teacher,
        label(w.root / "new.parquet", "--teacher-checkpoint", harmful("a.pth")),
    ),
    "--extend-to": lambda w: (
        label_teacher,
        label(w.root / "honest.parquet", "--extend-to", 12, "--teacher-checkpoint", harmful("a")),
    ),
    "--relabel": lambda w: (
        label_store,
        relabel(w.root / "forged-0.parquet", "--teacher-checkpoint", harmful("a.pth")),
    ),
}


@pytest.mark.parametrize("name", PICKLES)
def test_no_command_runs_the_code_in_a_file_of_weights(name, world, monkeypatch, capsys) -> None:
    command, arguments = PICKLES[name](world)
    message = error_of(command, arguments, monkeypatch, capsys)
    assert f"{Path.__module__}.Path" in message
    assert "code that is not run" in message
    assert "weights_only" not in message
    assert not Path("harm").exists()


# Every command that takes a model's name from a file.
NAMES: dict[str, Callable[[World, int], tuple[Callable[..., None], list[object]]]] = {
    "evaluate-student": lambda w, n: (
        evaluate_main,
        evaluate(named(w, model=FORGED_NAMES[n], model_args=[])),
    ),
    "--config": lambda w, n: (
        train_student,
        ["--config", run_file(w, model=FORGED_NAMES[n], model_args=()), "--output", "model"],
    ),
    "--teacher-in-loop": lambda w, n: (
        train_student,
        of_run(
            w,
            *("--labels", w.root / f"forged-{n}.parquet", "--shards", w.root / "few" / "*.tar"),
            *("--batch-size", 4, "--teacher-in-loop"),
        ),
    ),
    "--extend-to": lambda w, n: (
        label_teacher,
        label(w.root / f"forged-{n}.parquet", "--extend-to", 12),
    ),
    "--relabel": lambda w, n: (label_store, relabel(w.root / f"forged-{n}.parquet")),
}


@pytest.mark.parametrize("position", range(len(FORGED_NAMES)), ids=FORGED_NAMES)
@pytest.mark.parametrize("name", NAMES)
def test_no_command_follows_a_name_in_a_file_to_code_or_a_host(
    name, position, world, monkeypatch, capsys
) -> None:
    command, arguments = NAMES[name](world, position)
    text = error_of(command, arguments, monkeypatch, capsys)
    assert FORGED_NAMES[position] in text
    assert not Path("harm").exists()
    if name in ("evaluate-student", "--config"):
        assert f"give --model {FORGED_NAMES[position]!r} yourself" in text


REACHING = (
    "pretrained=True",
    "checkpoint_path=x",
    "cache_dir=x",
    "pretrained_cfg={'url': 'http://x'}",
    "pretrained_cfg_overlay={'file': 'x'}",
    "features_only=True",
    "pruned=True",
    "act_layer='http://x'",
    "depth={'a': 1}",
    "sizes=[1, ['../x']]",
)


@pytest.mark.parametrize("argument", REACHING)
def test_an_argument_in_a_file_that_may_fetch_or_read_is_refused_until_named(
    argument, world, monkeypatch, capsys
) -> None:
    model = {"model": "deit_tiny_distilled_patch16_224", "model_args": ["depth=2", argument]}
    if argument.startswith("depth"):
        model["model_args"] = [argument]
    for command, arguments in (
        (evaluate_main, evaluate(named(world, **model))),
        (
            train_student,
            ["--config", run_file(world, **{**model, "model_args": tuple(model["model_args"])})],
        ),
    ):
        text = error_of(command, arguments, monkeypatch, capsys)
        assert "which may fetch or read something" in text
        assert "give --model-args" in text
    require_named_arguments("a file", model["model_args"], [argument])
    with pytest.raises(ConfigError, match="give them as the file does"):
        require_named_arguments("a file", model["model_args"], [f"{argument.partition('=')[0]}=0"])


def test_every_argument_with_which_timm_reaches_out_counts() -> None:
    plain = {"model_name", "scriptable", "exportable", "no_jit", "kwargs"}
    for name in set(inspect.signature(timm.create_model).parameters) - plain:
        with pytest.raises(ConfigError, match="may fetch or read"):
            require_named_arguments("a file", [f"{name}=True"], [])


def test_arguments_that_only_shape_a_model_need_no_name() -> None:
    shape = (
        "patch_size=4",
        "act_layer=gelu",
        "qkv_bias=False",
        "drop_path_rate=0.1",
        "layers=(2,)",
    )
    require_named_arguments("a file", [*shape, "global_pool=", "init_values=1e-5"], [])


def test_a_module_that_the_user_names_is_resumed_evaluated_and_begun_from(world, capsys) -> None:
    own, args = ("--model", "files_own:build"), ("--model-args", "pretrained=True")
    shards = ("--val-shards", str(world.root / "digits-1.tar"))
    file = run_file(world, model="deit_tiny_patch16_224", model_args=(), drop_path=0.0)
    train_student(["--config", str(file), *own, *args, *shards, "--output", "run"])
    saved = ["--config", "run/run.toml"]
    train_student([*saved, *own, *args, "--resume", "auto"])
    train_student([*saved, *own, *args, "--output", "two", "--finetune", "run/last.pt"])
    alone = ["--checkpoint", "run/last.pt", *shards, "--workers", "0", "--device", "cpu"]
    evaluate_main([*alone, *own, *args])
    assert "class head" in capsys.readouterr().out
    assert load_student(Path("run/last.pt"), model=own[1], model_args=args[1:]) is not None
    for given in ((), own, args, ("--model", "files_own:other", *args)):
        with pytest.raises(SystemExit):
            evaluate_main([*alone, *given])
        with pytest.raises(SystemExit):
            train_student([*saved, *(() if "files_own:other" in given else given)])


@pytest.mark.parametrize(
    "student",
    [
        {"model": 5},
        {"model_args": 5},
        {"model_args": [5]},
        {"model_args": ["num_heads=0"]},
        {"model_args": ["depth=" + "-" * 10000 + "1"]},
        {"classes": 1 << 40},
        {"classes": "10"},
        {"image_size": -1},
        {"heads": "2"},
        {"headline": "none"},
        {"precision": "fp8"},
        {"views": None},
        {"views": {"image_size": "32"}},
        {"views": 5},
        {"extra": 1},
    ],
    ids=str,
)
def test_a_forged_student_is_refused_by_name(student, world, monkeypatch, capsys) -> None:
    text = error_of(evaluate_main, evaluate(named(world, **student)), monkeypatch, capsys)
    assert "forged.pt" in text


@pytest.mark.parametrize(
    "student",
    [
        {"model_args": ["patch_size=8", "embed_dim=1536", "depth=12", "num_heads=3"]},
        {"model_args": ["patch_size=8", "embed_dim=48", "depth=4000", "num_heads=3"]},
        {"model_args": ["patch_size=8", "embed_dim=48", "depth=100000000", "num_heads=3"]},
        {"model_args": ["patch_size=1", "embed_dim=48", "depth=2"], "image_size": 1024},
        {"model": "swin_tiny_patch4_window7_224", "model_args": ["depths=(2, 100000000)"]},
        {"model": "vit_giant_patch14_dinov2", "model_args": ["reg_tokens=1"]},
        {"model": "files_own:build", "classes": 65535, "image_size": 1024},
    ],
    ids=str,
)
def test_a_forged_student_takes_no_more_memory_than_its_file_has_weights(
    student, world, monkeypatch, capsys
) -> None:
    """Its model is not built: that would take 1 to 5 GB, of a file of a few hundred KB."""
    own = OWN.replace("nn.Linear(3, num_classes)", "nn.Linear(4096, num_classes)")
    Path("files_own.py").write_text(own)
    forged = named(world, **student)
    more = ["--model", student["model"]] if "model" in student else []
    before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    texts = [
        error_of(evaluate_main, [*evaluate(forged), *more], monkeypatch, capsys),
        error_of(
            export_main, [forged, "--to", "timm", "--out", "x.pth", *more], monkeypatch, capsys
        ),
    ]
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert all("forged.pt does not fit its model" in text for text in texts)
    assert grown < 100_000  # KB
    assert time.monotonic() - begun < 60
    assert not Path("x.pth").exists()


def test_a_file_alone_does_not_choose_images_that_take_gigabytes(
    world, monkeypatch, capsys
) -> None:
    """A convolution takes images of any size, whatever its weights are."""
    forged = named(world, image_size=2048)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    export = [forged, "--to", "timm", "--out", "x.pth"]
    for command, given in ((evaluate_main, evaluate(forged)), (export_main, export)):
        text = error_of(command, given, monkeypatch, capsys)
        assert "asks for images of 2048 pixels" in text
        assert "give --image-size 2048" in text
        text = error_of(command, [*given, "--image-size", "512"], monkeypatch, capsys)
        assert "is of a student of 2048 pixels, not 512; leave --image-size out" in text
        text = error_of(command, [*given, "--image-size", "2048"], monkeypatch, capsys)
        assert "does not fit its model" in text  # looked at, as the user wants it
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KB


@pytest.mark.parametrize(
    "change",
    [
        *(lambda values, name=name: values.pop(name) for name in ("student", "model", "step")),
        lambda values: values.update(model=5),
        lambda values: values["model"].update(a=5),
        lambda values: values["model"].update({5: torch.ones(1)}),
        lambda values: values.update(step=-1),
        lambda values: values.update(step=1 << 40),
        lambda values: values.update(optimizer={"state": 5, "param_groups": 5}),
        lambda values: values.update(meter={}),
        lambda values: values.update(run=5),
        lambda values: values["model"].update(a=torch.ones(1).expand(1 << 40)),
    ],
)
def test_a_forged_checkpoint_is_refused_by_name(change, world, monkeypatch, capsys) -> None:
    monkeypatch.setattr(checkpoints, "_digest", lambda values: "any")
    path = forge(world.root / "run" / "last.pt", Path("forged.pt"), change)
    command, arguments = train_student, of_run(world, "--resume", path)
    assert "forged.pt" in error_of(command, arguments, monkeypatch, capsys)


def teacher_of(path: Path) -> Teacher:
    spec = TeacherSpec(architecture="regnety_002", checkpoint=path)
    return load_teacher(spec, AugmentConfig(image_size=32), MixConfig(), torch.device("cpu"))


def test_a_file_that_unpacks_to_more_than_it_has_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1 << 20)}, "large.pt")
    with zipfile.ZipFile("large.pt") as source, zipfile.ZipFile("small.pt", "w") as target:
        for one in source.infolist():
            target.writestr(one.filename, source.read(one), zipfile.ZIP_DEFLATED)
    for read in (checkpoints.open_checkpoint, read_weights, teacher_of):
        with pytest.raises(Exception, match=r"small\.pt cannot be read"):
            read(Path("small.pt"))


HEX = b"c_codecs\nencode\n", b"X\x03\x00\x00\x00hex\x86R"
TEXT = b"c_codecs\nencode\nX\x01\x00\x00\x00aX\x06\x00\x00\x00latin1\x86R"
BOMBS = {
    "a text that codecs double": HEX[0] * 20 + TEXT + HEX[1] * 20,
    "bytes": b"cbuiltins\nbytearray\nJ\x00\x00\x00\x40\x85R",
    "a tensor of a size": b"ctorch\nTensor\nJ\x00\x00\x00\x40\x85R",
    "a tensor that is converted": b"ctorch._utils\n_rebuild_device_tensor_from_cpu_tensor\n)R",
}


def write_pickled(pickled: bytes, legacy: bool) -> None:
    """Write bomb.pt, a file of torch.save in its newer or its older form."""
    if legacy:
        torch.save({}, "empty.pt", _use_new_zipfile_serialization=False)
        Path("bomb.pt").write_bytes(
            Path("empty.pt").read_bytes().replace(b"\x80\x02}q\x00.", pickled)
        )
        assert pickled in Path("bomb.pt").read_bytes()
    else:
        writer = torch._C.PyTorchFileWriter("bomb.pt")
        writer.write_record("data.pkl", pickled, len(pickled))
        writer.write_end_of_file()


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", BOMBS)
def test_a_file_of_bytes_that_asks_for_memory_is_refused_unread(
    name: str, legacy: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pickled(b"\x80\x02}X\x01\x00\x00\x00a" + BOMBS[name] + b"s.", legacy)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was unpickled"))
    for read in (checkpoints.open_checkpoint, read_weights, teacher_of):
        with pytest.raises(Exception, match=r"bomb\.pt .*it holds .*, code that is not run"):
            read(Path("bomb.pt"))


def keyed(tuples: bytes) -> bytes:
    """A pickled dictionary whose keys are tuples, to be unpickled in no time that one can wait."""
    return b"\x80\x02}(" + tuples + b"u."


PAIR = b"K\x01\x85q\x00N"  # (1,), remembered as 0, and its value, None
TUPLES = {
    "pairs of pairs": keyed(
        PAIR + b"".join(b"h%ch%c\x86q%cN" % (one, one, one + 1) for one in range(60))
    ),
    "one by one": keyed(
        PAIR + b"".join(b"(" + b"h%c" % one * 9 + b"tq%cN" % (one + 1) for one in range(60))
    ),
    "a long one, often": keyed(b"(" + b"K\x01" * 9000 + b"tq\x00N" + b"h\x00N" * 9000),
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", TUPLES)
def test_a_file_whose_names_take_for_ever_to_hash_is_refused_unread(
    name: str, legacy: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pickled(TUPLES[name], legacy)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was unpickled"))
    with pytest.raises(checkpoints.TornError, match="uses more values again than its bytes"):
        checkpoints.open_checkpoint(Path("bomb.pt"))
    for read in (read_weights, teacher_of):
        with pytest.raises(Exception, match=r"bomb\.pt cannot be read"):
            read(Path("bomb.pt"))


def test_a_long_name_within_itself_is_refused_before_paths_are_made_of_it(tmp_path: Path) -> None:
    name, values = "a" * 20_000, {}
    for _ in range(200):
        values = {name: values}
    torch.save(values, "deep.pt")
    assert Path("deep.pt").stat().st_size < 30_000
    with pytest.raises(checkpoints.TornError, match="it unfolds to more values than"):
        checkpoints.open_checkpoint(Path("deep.pt"))
    torch.save({(1, 2): 3}, "pair.pt")
    with pytest.raises(checkpoints.TornError, match="it has names that are no texts"):
        checkpoints.open_checkpoint(Path("pair.pt"))


@pytest.mark.parametrize("kind", ["fifo", "directory"])
def test_what_is_no_file_is_refused_and_not_waited_for(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    os.mkfifo(path) if kind == "fifo" else path.mkdir()
    reason = "is a pipe" if kind == "fifo" else "is a directory"
    for read in (checkpoints.open_checkpoint, read_weights, teacher_of):
        with pytest.raises(Exception, match=rf"last\.pt {reason}"):
            read(path)


def test_strangers_files_are_unpickled_in_one_place_and_it_runs_no_code() -> None:
    """Compiled kernels are code, from a directory that is this user's alone (`test_kept.py`)."""
    root = Path(__file__).parents[2]
    kernels = root / "pipeline" / "views" / "kept.py"
    loads = []
    for path in (
        one for name in ("pipeline", "student", "jobs") for one in (root / name).rglob("*.py")
    ):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {getattr(node, "module", None), *(one.name for one in node.names)}
                found = names & {"pickle", "marshal", "shelve", "dill", "joblib", "yaml"}
                assert found == ({"pickle"} & names if path == kernels else set()), path
            if isinstance(node, ast.Call):
                text = ast.unparse(node.func)
                assert text not in ("eval", "exec", "np.load", "numpy.load"), path
                if text in ("torch.load", "pickle.loads") or text.endswith("safe_globals"):
                    loads.append((path.name, ast.unparse(node)))
    allowed = ("weights.py", "torch.serialization.safe_globals([argparse.Namespace])")
    assert sorted(loads) == [
        ("kept.py", "pickle.loads(body)"),
        ("weights.py", "torch.load(path, map_location='cpu', weights_only=True)"),
        allowed,
    ]


def test_the_library_says_what_a_checkpoint_would_run(world: World) -> None:
    with pytest.raises(ConfigError, match="code to run"):
        load_student(named(world, model="files_own:build", model_args=[]))
    with pytest.raises(CheckpointError, match="does not fit its model"):
        load_student(named(world, model="resnet10t", model_args=[]))
