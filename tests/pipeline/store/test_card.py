from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cli.commands import label_store
from pipeline.store.card import StoreCard, card_text, inspect_store
from tests.storing import IDENTITY, info_of, ranges, rows_of, write_store

ROOT = Path(__file__).resolve().parents[3]
SHARDS = [info_of(0), info_of(1)]


def run_cli(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int | str | None:
    monkeypatch.setattr("sys.argv", ["label-store", *map(str, arguments)])
    try:
        label_store()
    except SystemExit as exit_:
        return exit_.code
    return 0


def test_the_card_counts_what_the_store_holds(tmp_path: Path) -> None:
    store = write_store(tmp_path / "s.parquet", SHARDS, ranges(range(5), 3))
    card = (tmp_path / "s.parquet" / "_README.md").read_text()
    assert "| teacher | made-up, 5 classes, fp32 |" in card
    assert "| weights (SHA-256) | " + "a" * 64 in card
    assert "| views | 0..4 of every sample, 16 px |" in card
    assert "| samples | 14 = 12 labelled + 2 rejected |" in card
    assert "| columns | label |" in card
    assert "- s-1.tar: `s-1.tar/2`: undecodable: it is damaged, cut off" in card
    assert card == card_text(store.manifest)


def test_whoever_reads_the_output_may_stop_reading(tmp_path: Path) -> None:
    write_store(tmp_path / "s.parquet", SHARDS, [(0, 4)])
    reader, writer = os.pipe()
    os.close(reader)
    code = "import sys; from pipeline.cli.commands import label_store; label_store()"
    found = subprocess.run(
        [sys.executable, "-c", code, "inspect", str(tmp_path / "s.parquet")],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writer)
    assert (found.returncode, found.stderr) == (141, "")


def test_the_agreement_of_a_manifest_leaves_unknown_classes_out(tmp_path: Path) -> None:
    store = write_store(tmp_path / "s.parquet", SHARDS, [(0, 4)])
    known = equal = 0
    for shard in SHARDS:
        rows = rows_of(IDENTITY, shard, 0, 4)
        for target, labels in zip(rows.target.tolist(), rows.label.tolist(), strict=True):
            if target != -1:
                known += len(labels)
                equal += labels.count(target)
    assert (store.manifest.agreement.known, store.manifest.agreement.equal) == (known, equal)
    assert known == 2 * 5 * 4
    assert 0 < equal < known
    assert f"| {100 * equal / known:.2f} % of {known} labels" in card_text(store.manifest)


def test_the_card_is_a_function_of_the_manifest_alone(tmp_path: Path) -> None:
    """Runs, which differ from job to job, are shown by inspect and kept out of the card."""
    stores = [write_store(tmp_path / f"{n}.parquet", SHARDS, [(0, 4)]) for n in "ab"]
    run = tmp_path / "a.parquet" / "_meta" / "runs" / "20260101T000000000000.json"
    run.parent.mkdir()
    preflight = {"flip_rows": 1000, "flips": 3}
    record = {"finished": "2026-01-01", "labels": 48, "versions": {"timm": "1.0.19"}}
    run.write_text(json.dumps({**record, "preflight": preflight}))
    (run.parent / "damaged.json").write_text("{")
    cards = [(tmp_path / f"{n}.parquet" / "_README.md").read_bytes() for n in "ab"]
    assert cards[0] == cards[1]
    shown = inspect_store(stores[0]).to_markdown()
    assert "| 2026-01-01 | label-teacher | 48 | 3 of 1000 |" in shown
    assert "timm 1.0.19" in shown
    assert "| damaged.json | | | cannot be read: JSONDecodeError" in shown


def test_the_card_as_json_says_what_the_manifest_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = write_store(tmp_path / "s.parquet", SHARDS, ranges(range(5), 3))
    assert run_cli(monkeypatch, "inspect", store.root, "--json") == 0
    card = json.loads(capsys.readouterr().out)
    assert card["identity"] == json.loads(json.dumps(store.identity.to_json()))
    assert card["labels"] == store.manifest.rows == 12 * 5
    assert card["views"] == {"first": 0, "end": 5}
    assert [one["parts"] for one in card["shards"]] == [2, 2]
    assert sum(one["label_bytes"] for one in card["shards"]) == card["bytes"]
    assert [one["rejections"][0]["key"] for one in card["shards"]] == ["s-0.tar/2", "s-1.tar/2"]


def test_a_card_of_many_shards_stays_short(tmp_path: Path) -> None:
    store = write_store(tmp_path / "s.parquet", [info_of(n) for n in range(30)], [(0, 1)])
    card = StoreCard(manifest=store.manifest)
    assert "and 6 more" in card.to_markdown()
    assert len(card.to_json()["shards"]) == 30


def test_help_names_each_command_with_its_own_options(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def help_of(*arguments: str) -> str:
        assert run_cli(monkeypatch, *arguments, "--help") == 0
        return capsys.readouterr().out

    commands = ("inspect", "verify", "stats", "diff", "merge", "extend", "thin")
    for command in commands:
        assert command in help_of()
        shown = help_of(command)
        assert "options options" not in shown
        assert ("--out" in shown) == (command in ("merge", "thin"))
    assert "options options" not in help_of()
