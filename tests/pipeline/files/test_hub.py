from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError

from pipeline.errors import ConfigError, PipelineError, TeacherError
from pipeline.files.hub import HubFolder, HubUrl, hub_if_reached
from pipeline.files.local import expand_shards, open_folder
from pipeline.identity import AugmentConfig, MixConfig
from pipeline.labelling.teacher import TeacherSpec, load_teacher
from pipeline.store import export_store, open_store
from student.model import StudentSpec, create_student
from tests.hub_server import REPOSITORY, Hub, hub_server
from tests.storing import ALL_COLUMNS, info_of, ranges, write_store

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAMES = ("directory.parquet", "arrays.zarr", "one.parquet")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("hf://datasets/a/b/x.parquet", "hf://datasets/a/b@main/x.parquet"),
        ("hf://datasets/a/b@v1.0/y/x.zarr/", "hf://datasets/a/b@v1.0/y/x.zarr"),
        (f"hf://datasets/a/b-c_d.e@{COMMIT}/x", f"hf://datasets/a/b-c_d.e@{COMMIT}/x"),
    ],
)
def test_a_url_is_a_repository_a_revision_and_a_path(text: str, shown: str) -> None:
    assert str(HubUrl.parse(text)) == shown
    assert open_folder(text).name == shown


@pytest.mark.parametrize(
    "text",
    [
        "hf://a/b/x.parquet",
        "hf://models/a/b/x.parquet",
        "hf://datasets/a/x.parquet",
        "hf://datasets/a/b",
        "hf://datasets/a/b@/x",
        "hf://datasets/user:secret@a/b/x",
    ],
)
def test_other_urls_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="write hf://datasets/USER/NAME/PATH"):
        open_folder(text)
    with pytest.raises(PipelineError, match="is no path of a file in it"):
        open_folder("hf://datasets/a/b/../x.parquet")


def test_nothing_is_written_to_the_hub_and_no_shards_are_read_from_it(tmp_path: Path) -> None:
    folder = open_folder("hf://datasets/a/b/x.parquet")
    for write in (
        lambda: folder.commit_new("a", b""),
        lambda: folder.replace("a", b""),
        lambda: folder.write_file("a"),
        lambda: export_store(tmp_path / "x.parquet", "hf://datasets/a/b/x.parquet"),
    ):
        with pytest.raises(PipelineError, match="a store on the hub is only read; write to a path"):
            write()
    with pytest.raises(ConfigError, match="fetch them with hf download"):
        expand_shards(["hf://datasets/a/b/x-{0..3}.tar"])


def test_a_range_takes_no_more_memory_than_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "part"
    file.write_bytes(b"0123456789")
    monkeypatch.setattr(HubFolder, "_fetched", lambda _folder, _path: file)
    folder = HubFolder(HubUrl.parse("hf://datasets/a/b/x.parquet"))
    assert folder.read_range("part", 8, 1 << 60) == b"89"
    assert folder.read_range("part", 11, 1 << 60) == b""


@pytest.mark.parametrize("sha", [None, "main", "../../home", "a" * 39 + "/"])
def test_a_commit_that_is_none_is_refused(sha: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def dataset_info(
        _api: object, _repository: str, revision: str, timeout: float
    ) -> SimpleNamespace:
        assert (revision, timeout) == ("main", 60)
        return SimpleNamespace(sha=sha)

    monkeypatch.setattr("pipeline.files.hub.why_unreached", str)
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", dataset_info)
    with pytest.raises(PipelineError, match="the hub calls its commit"):
        HubFolder(HubUrl.parse("hf://datasets/a/b/x.parquet")).pin()


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A hub that holds one store in all formats, then others, of which one lacks a file."""
    first, second = tmp_path_factory.mktemp("first"), tmp_path_factory.mktemp("second")
    with hub_server() as hub:
        for folder, seed in ((first, 3), (second, 4)):
            infos = [info_of(seed, 0), info_of(seed + 5, 1, samples=9)]
            write_store(folder / NAMES[0], infos, ranges(range(4), 3), ALL_COLUMNS)
            export_store(folder / NAMES[0], folder / NAMES[1])
            export_store(folder / NAMES[0], folder / NAMES[2], single_file=True)
            hub.push(folder)
        yield hub


_READ = """
import json, pickle, sys
from pipeline.errors import PipelineError
from pipeline.files.local import pinned
from pipeline.store import open_store

told = []
for place in sys.argv[1:]:
    try:
        store = pickle.loads(pickle.dumps(open_store(place)))
        view = store.read_view(1, 3)
        store.check_files()
        store.check_companions()
        rows = sum(store.read_part(entry).label.size for entry in store.manifest.parts)
        told.append([str(store.root), pinned(place), view.label.tolist(), rows,
                     sorted(store.companions())])
    except PipelineError as error:
        told.append(str(error))
print(json.dumps(told))
"""


def read(environment: dict[str, str], *locations: str) -> Any:
    """Read stores in a process of its own, since huggingface_hub looks at its variables once."""
    command = [sys.executable, "-c", _READ, *locations]
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "it/s" not in done.stderr
    return json.loads(done.stdout)


def test_stores_of_all_formats_are_read_at_the_commit_that_a_branch_had(
    hub: Hub, tmp_path: Path
) -> None:
    base, (old, new) = f"hf://datasets/{REPOSITORY}", hub.commits
    told = read(
        hub.environment(tmp_path),
        *(f"{base}/{name}" for name in NAMES),
        *(f"{base}@{old}/{name}" for name in NAMES),
    )
    for number, (commit, name) in enumerate((c, n) for c in (new, old) for n in NAMES):
        local = open_store(hub.commits[commit] / name)
        at = f"{base}@{commit}/{name}"
        labels = local.read_view(1, 3).label.tolist()
        rows = local.manifest.rows
        assert told[number] == [at, at, labels, rows, sorted(local.companions())]


def test_refusals_of_the_hub_are_named_with_their_cure(hub: Hub, tmp_path: Path) -> None:
    base = f"hf://datasets/{REPOSITORY}"
    missing, revision, repository = read(
        hub.environment(tmp_path),
        f"{base}/other.parquet",
        f"{base}@v9/{NAMES[0]}",
        f"hf://datasets/somebody/else/{NAMES[0]}",
    )
    assert "other.parquet: there is no label store here" in missing
    assert "the data set has no revision v9" in revision
    assert "there is no such data set, or it is private" in repository


def test_what_is_cached_is_read_without_a_network(hub: Hub, tmp_path: Path) -> None:
    commit = hub.branches["main"]
    location = f"hf://datasets/{REPOSITORY}@{commit}/{NAMES[2]}"
    environment = hub.environment(tmp_path)
    (online,) = read(environment, location)
    offline, unknown, absent = read(
        {**environment, "HF_HUB_OFFLINE": "1"},
        location,
        f"hf://datasets/{REPOSITORY}/{NAMES[2]}",
        f"hf://datasets/{REPOSITORY}@{commit}/{NAMES[0]}",
    )
    assert offline == online
    assert "the hub cannot be reached; connect (and unset HF_HUB_OFFLINE), or give the" in unknown
    assert "the hub cannot be reached; connect" in absent


def test_a_store_on_a_hub_that_is_not_there_is_one_error(hub: Hub, tmp_path: Path) -> None:
    """As where there is no network, or where the connection breaks off."""
    environment = hub.environment(tmp_path)
    location = f"hf://datasets/{REPOSITORY}@{hub.branches['main']}/{NAMES[2]}"
    (online,) = read(environment, location)
    with socket.create_server(("127.0.0.1", 0)) as server:
        Thread(target=hang_up, args=(server,), daemon=True).start()
        port = server.getsockname()[1]
        for endpoint, words in (
            ("http://127.0.0.1:1", "the hub cannot be reached; connect"),
            (f"http://127.0.0.1:{port}", "the hub cannot be reached or answers with an error ("),
        ):
            away = {**environment, "HF_ENDPOINT": endpoint}
            branch, cached = read(away, f"hf://datasets/{REPOSITORY}/{NAMES[0]}", location)
            assert words in branch
            assert cached == online


def hang_up(server: socket.socket) -> None:
    """Close every connection at once."""
    with suppress(OSError):
        while True:
            server.accept()[0].close()


def test_what_breaks_off_while_weights_are_fetched_is_an_os_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipeline.files.hub.why_unreached", str)
    broken = HfHubHTTPError.__bases__[0]  # of the HTTP client, and no OSError
    with pytest.raises(OSError, match="peer closed"), hub_if_reached():
        raise broken("peer closed connection")


@pytest.mark.timeout(60)
def test_a_hub_that_is_not_there_is_one_line_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.delenv("HTTPS_PROXY", raising=False)
    monkeypatch.delenv("https_proxy", raising=False)
    with hub_if_reached() as why:
        assert why.startswith("127.0.0.1 cannot be reached (Connection refused)")
        assert constants.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE
    spec, began = TeacherSpec(architecture="resnet18.a1_in1k"), time.monotonic()
    with pytest.raises(TeacherError, match=r"127\.0\.0\.1 cannot be reached"):
        load_teacher(spec, AugmentConfig(image_size=32), MixConfig(), torch.device("cpu"))
    assert time.monotonic() - began < 15
    student = StudentSpec(
        name="resnet18", classes=3, image_size=32, heads=1, model_args={"pretrained": True}
    )
    with pytest.raises(ConfigError, match=r"127\.0\.0\.1 cannot be reached"):
        create_student(student)


def test_a_hub_that_answers_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        with hub_if_reached() as why:
            assert (why, constants.HF_HUB_OFFLINE) == ("", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with hub_if_reached() as why:
        assert "HF_HUB_OFFLINE is set" in why
    assert constants.HF_HUB_OFFLINE
