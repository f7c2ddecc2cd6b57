#!/usr/bin/env python
"""Trains all arms and writes the report: `make evidence`, or with flags of your own."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":  # run by path: the packages lie two directories up
    sys.path[0] = str(Path(__file__).resolve().parents[2])

# Read when PyTorch loads: threads that spin while they wait slow a shared machine down.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import tyro

from examples.cifar10.arms import ARMS, run
from examples.cifar10.config import EvidenceConfig, keep_settings, smoke
from examples.cifar10.data import find_shards
from examples.cifar10.report import write_report
from examples.cifar10.stores import make_stores, write_facts
from pipeline.cli.console import flags_of, running, say

__all__ = ["collect", "main"]


def collect(config: EvidenceConfig) -> Path:
    """Do what is missing of stores and runs, write the report, and return its path.

    Seed by seed, so that an early stop leaves arms that compare.
    """
    config = smoke(config) if config.smoke else config
    keep_settings(config)
    shards = find_shards(config)
    names = sorted({ARMS[name].store for name in config.used_arms})
    stores = make_stores(config, shards, [*names, "val"])
    write_facts(config, stores)
    for seed in config.seeds:
        for name in config.used_arms:
            run(config, stores, shards, name, seed)
    report = config.report or config.out / "EVIDENCE.md"
    return write_report(config.out, report, config.notes)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the comparison."""
    logging.getLogger("student").setLevel(logging.INFO)  # what training says, epoch by epoch
    interrupted = "interrupted; the same command goes on from here"
    with running("evidence", flags_of(EvidenceConfig), interrupted):
        config = tyro.cli(EvidenceConfig, prog="examples/cifar10/run.py", args=arguments)
        say(f"evidence: {collect(config)}")


if __name__ == "__main__":
    main()
