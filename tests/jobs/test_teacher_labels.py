"""All commands under one name, and the one that looks at the machine."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
from importlib import import_module
from importlib.metadata import distribution, version
from pathlib import Path
from typing import get_args

import pytest
from PIL import Image

from jobs import doctor, entry
from jobs.teacher_labels import COMMANDS, main
from pipeline.cli.commands import StoreCommand
from pipeline.identity import AugmentConfig, MixConfig
from pipeline.tools import doctor as machine
from pipeline.tools.doctor import Finding, examine
from pipeline.views.floats import fingerprints_on
from pipeline.views.reference import REFERENCE
from tests.commands import require_command

BIN = Path(sys.executable).parent
STORE = [one.__name__.lower() for one in get_args(StoreCommand)]
PROGRAMS = {one.name: one.value for one in distribution("teacher-labels").entry_points}


def status_of(*arguments: str) -> object:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return ended.value.code


def test_each_command_is_the_program_of_its_older_name(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[str] = []
    monkeypatch.setattr(entry, "_run", lambda *target: begun.append(":".join(target)))
    for old, target, _ in COMMANDS.values():
        module, _, function = target.partition(":")
        assert callable(getattr(import_module(module), function))
        if old:
            getattr(entry, PROGRAMS[old].partition(":")[2])()
            assert begun.pop() == target
    assert {old for old, *_ in COMMANDS.values() if old} == set(PROGRAMS) - {"teacher-labels"}
    entry.teacher_labels()
    assert begun == ["jobs.teacher_labels:main"]


@pytest.mark.parametrize("name", sorted(PROGRAMS))
def test_ctrl_c_while_a_program_loads_ends_it_without_a_word(name: str) -> None:
    program = PROGRAMS[name].partition(":")[2]
    code = (
        "import os, signal\n"
        # Else it is ignored where the tests themselves run in a shell's background.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from jobs import entry\n"
        "entry.import_module = lambda module: os.kill(os.getpid(), signal.SIGINT)\n"
        f"entry.{program}()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_a_program_that_is_told_to_ignore_ctrl_c_does() -> None:
    code = (
        "import os, signal\n"
        "from jobs import entry\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "entry.leave = lambda status: None\n"
        "entry._run('os', 'getpid')\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
        "print('on')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "on\n")


@pytest.mark.parametrize(("status", "frozen"), [("0", True), ("'why'", False)])
def test_what_a_program_loaded_is_left_out_of_searches_for_garbage_until_its_end(
    status: str, frozen: bool
) -> None:
    code = (
        "import atexit, gc, sys\n"
        "from jobs import entry\n"
        "atexit.register(lambda: print(gc.isenabled(), gc.get_freeze_count() > 0))\n"
        "def work():\n"
        "    print(gc.isenabled(), gc.get_freeze_count() > 0)\n"
        f"    sys.exit({status})\n"
        "entry._run('__main__', 'work')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == f"True True\nTrue {frozen}\n"


@pytest.mark.parametrize("status", ["None", "0", "3", "'why'"])
def test_a_program_ends_as_python_does_but_takes_nothing_apart(status: str) -> None:
    code = (
        "import atexit, sys, threading, time\n"
        "from jobs import entry\n"
        "class Kept:\n"
        "    def __del__(self): print('taken apart')\n"
        "kept = Kept()\n"
        "atexit.register(print, 'at exit')\n"
        "def work():\n"
        "    threading.Thread(target=lambda: (time.sleep(0.3), print('done'))).start()\n"
        "    print('begun', end=' ')\n"
        f"    sys.exit({status})\n"
    )
    ends = {way: f"{code}{way}\n" for way in ("entry._run('__main__', 'work')", "work()")}
    quick, usual = (
        subprocess.run([sys.executable, "-c", one], capture_output=True, text=True)
        for one in ends.values()
    )
    apart = "" if status != "'why'" else "taken apart\n"
    assert quick.stdout == f"begun done\nat exit\n{apart}"
    assert usual.stdout == "begun done\nat exit\ntaken apart\n"
    assert (quick.returncode, quick.stderr) == (usual.returncode, usual.stderr)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_and_errors_say_what_was_typed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(name, "--help") == 0
    assert f"usage: teacher-labels {name}" in capsys.readouterr().out


@pytest.mark.parametrize("words", [[], *([name] for name in COMMANDS)], ids=" ".join)
def test_the_release_is_said_everywhere(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of(*words, "--version") == 0
    said = " ".join(["teacher-labels", *words, version("teacher-labels")])
    assert capsys.readouterr().out == f"{said}\n"


@pytest.mark.parametrize("name", sorted(PROGRAMS))
def test_the_older_names_say_it_too(name: str) -> None:
    done = subprocess.run([BIN / name, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"{name} {version('teacher-labels')}\n"


def test_a_slip_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("lable") == 1
    assert "did you mean label?" in capsys.readouterr().err
    assert status_of("qqq") == 1
    assert "use pack, label, store" in capsys.readouterr().err
    assert status_of() == 2
    assert "usage: teacher-labels" in capsys.readouterr().out
    assert status_of("store", "inspect", "no.parquet") == 1
    assert "teacher-labels store: error: no.parquet" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_no_help_names_another_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """So it is right under both names; what it says of itself has the name that was typed."""
    names = [[name], *([name, one] for one in STORE if name == "store")]
    for words in names:
        assert status_of(*words, "--help") == 0
        printed = capsys.readouterr().out
        assert [old for old, *_ in COMMANDS.values() if old and old in printed] == []


def test_one_output_has_one_name_of_each_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / name / "1.png")
    main(["pack", "--images", "images", "--out", "shards"])
    printed = "".join(capsys.readouterr())
    assert "teacher-labels pack: 2 files read" in printed
    assert "next: teacher-labels pack --images images --part 0.8 1 " in printed
    assert status_of("train", "--data-path", "x") == 1
    printed += capsys.readouterr().err
    assert "--shards (teacher-labels pack makes them" in printed
    assert [old for old, *_ in COMMANDS.values() if old and old in printed] == []


def test_this_machine_has_the_pixels_of_all_others() -> None:
    identity = machine._identity()
    assert (identity.augment, identity.mix) == (AugmentConfig(), MixConfig())
    assert fingerprints_on(identity, "cpu") == REFERENCE


def test_the_doctor_names_what_it_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = [one.name for one in examine()]
    wanted = {"Python", "processor", "memory", "GPU", "pixels", "disk", "/dev/shm", "cache"}
    assert wanted <= set(names)


def of(name: str) -> Finding:
    return next(one for one in examine() if one.name == name)


def test_what_is_wrong_comes_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {**REFERENCE, "decode.jpeg-cmyk": 0}
    monkeypatch.setattr("pipeline.views.reference.REFERENCE", wrong)
    assert "decode.jpeg-cmyk (decoding jpeg, cmyk)" in of("pixels").found
    assert "constraints.txt" in of("pixels").cure
    monkeypatch.setattr(machine, "requires", lambda _: ["numpy>=99", "no-such-package>=1"])
    assert of("numpy").cure == "pip install 'numpy>=99'"
    assert of("no-such-package").found == "not installed"
    for name, least in (("disk", "DISK_GB"), ("/dev/shm", "SHARED_GB"), ("memory", "MEMORY_GB")):
        monkeypatch.setattr(machine, least, 1e9)
        assert of(name).cure
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    assert "XDG_CACHE_HOME" in of("cache").cure
    monkeypatch.setattr("pipeline.views.compiled._kept", {"resize": ""})
    assert "NUMBA_CACHE_DIR" in of("kernels").cure


@pytest.mark.parametrize(("cure", "status"), [("", 0), ("buy another", 1)])
def test_the_doctor_ends_well_only_if_all_is_well(
    cure: str, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [Finding(name="thing", found="seen", cure=cure)]
    monkeypatch.setattr(machine, "examine", lambda: iter(found))
    assert status_of("doctor") == status
    printed = capsys.readouterr().out
    assert ("1 thing to mend: thing" in printed) == bool(cure)
    assert ("-> buy another" in printed) == bool(cure)
    assert status_of("doctor", "--json") == status
    assert json.loads(capsys.readouterr().out) == [{"name": "thing", "found": "seen", "cure": cure}]


def test_the_doctors_cures_are_in_the_users_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("SHARED_GB", "DISK_GB"):
        monkeypatch.setattr(machine, name, 1e9)
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    assert status_of("doctor") == 1
    printed = capsys.readouterr().out
    assert "train with --workers 0\n" in printed
    assert "or give --cache-dir\n" in printed
    assert "`" not in printed


def test_the_doctor_starts_ray_if_it_is_told_to() -> None:
    done = subprocess.run(
        [BIN / "teacher-labels", "doctor", "--ray", "--json"], capture_output=True, text=True
    )
    found = {one["name"]: one for one in json.loads(done.stdout)}
    assert found["Ray"]["found"].startswith("runs, with "), done
    assert doctor.DoctorFlags().ray is False


def completed(script: Path, *words: str) -> set[str]:
    """Return what a bash that read the script offers for the last of some words."""
    array = " ".join(map(shlex.quote, words))
    code = (
        f"source {script}\nCOMP_WORDS=({array})\nCOMP_CWORD={len(words) - 1}\n"
        f"$(complete -p {words[0]} | sed 's/.*-F \\([^ ]*\\).*/\\1/')\n"
        "printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    # Off a terminal, as tyro's script calls python3 from the path.
    env = {"PATH": f"{BIN}:/usr/bin:/bin"}
    done = subprocess.run(
        ["bash", "--norc", "-c", code], capture_output=True, text=True, check=True, env=env
    )
    return set(done.stdout.split())


def test_a_shell_completes_commands_and_their_flags(tmp_path: Path) -> None:
    script = tmp_path / "completions" / "teacher-labels"
    script.parent.mkdir()
    assert status_of("--tyro-write-completion", "bash", str(script)) == 0
    assert completed(script, "teacher-labels", "") == set(COMMANDS)
    assert completed(script, "teacher-labels", "st") == {"store"}
    assert completed(script, "teacher-labels", "store", "") >= set(STORE)
    assert completed(script, "teacher-labels", "store", "ver") == {"verify"}
    assert "--shards" in completed(script, "teacher-labels", "store", "verify", "--")
    flags = {"pack": "--max-side", "label": "--views", "train": "--labels", "runs": "--out"}
    flags |= {"evaluate": "--analysis", "export": "--to", "demo": "--out"}
    for name, flag in flags.items():
        assert flag in completed(script, "teacher-labels", name, flag[:3]), name


@pytest.mark.parametrize("name", sorted(set(PROGRAMS) - {"teacher-labels"}))
def test_a_shell_completes_the_older_names(name: str, tmp_path: Path) -> None:
    script = tmp_path / name
    subprocess.run([BIN / name, "--tyro-write-completion", "bash", script], check=True)
    assert completed(script, name, "--h") >= {"--help"}


def test_completion_for_another_shell_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("--tyro-print-completion", "fish") == 1
    assert "use --tyro-print-completion bash" in capsys.readouterr().err


def test_the_commands_that_the_help_shows_parse(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([])
    text = capsys.readouterr().out.replace("\\\n", " ")
    shown = [line for line in text.splitlines() if line.startswith("  teacher-labels ")]
    assert len(shown) == 5
    for line in shown:
        require_command(shlex.split(line))
