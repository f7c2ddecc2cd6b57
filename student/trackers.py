"""A run's metrics in Weights & Biases, MLflow or Trackio too, by their own clients.

Nothing is sent unless ``tracker`` asks for it, and where to is what the client's own variables say
(``WANDB_MODE``, ``MLFLOW_TRACKING_URI``, ``TRACKIO_SPACE_ID``). A client works in a thread of its
own: whatever fails or hangs there is said once, and training goes on without it.
"""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from pipeline.errors import PipelineError, require_package
from pipeline.files.local import LocalFolder, replace
from pipeline.identity import read_json

__all__ = ["TRACKER", "Tracking", "require_tracker"]

TRACKER = "tracker.json"
END_SECONDS = 60.0  # for what is still to be sent when training is over
_WAITING = 10_000  # lines that may wait; a client that hangs must not fill the memory
_MOST_BYTES = 1 << 14  # of the file that says what a run is called there
_LONGEST = 500  # letters of a setting, as MLflow allows

_log = logging.getLogger(__name__)


class Client(Protocol):
    """One run at a service. All of it is called from one thread."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Record numbers of a step."""

    def finish(self, failed: bool) -> None:
        """Send what is left."""


class _Wandb:
    def __init__(self, project: str, name: str, number: str, settings: Mapping[str, Any]) -> None:
        import wandb

        self._run = wandb.init(
            project=project,
            name=name,
            id=number,
            resume="allow",
            config=dict(settings),
            settings=wandb.Settings(console="off", save_code=False, disable_git=True),
        )
        # A resumed run tells some steps again, and Weights & Biases' own only rise.
        self._run.define_metric("*", step_metric="step")

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log({**values, "step": step})

    def finish(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class _Mlflow:
    def __init__(self, project: str, name: str, number: str, settings: Mapping[str, Any]) -> None:
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        self._client = client = MlflowClient()
        found = client.get_experiment_by_name(project)
        where = client.create_experiment(project) if found is None else found.experiment_id
        same = client.search_runs([where], f"tags.teacher_labels = '{number}'")
        if same:
            self._run = same[0].info.run_id
            client.update_run(self._run, "RUNNING")
            return
        tags = {"teacher_labels": number}
        self._run = client.create_run(where, run_name=name, tags=tags).info.run_id
        shown = [Param(key, str(value)[:_LONGEST]) for key, value in settings.items()]
        client.log_batch(self._run, params=shown)

    def log(self, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        numbers = [Metric(key, value, now, step) for key, value in values.items()]
        self._client.log_batch(self._run, metrics=numbers)

    def finish(self, failed: bool) -> None:
        self._client.set_terminated(self._run, "FAILED" if failed else "FINISHED")


class _Trackio:
    def __init__(self, project: str, name: str, number: str, settings: Mapping[str, Any]) -> None:
        import trackio

        self._run = trackio.init(
            project=project,
            name=f"{name}-{number[:8]}",
            resume="allow",
            config=dict(settings),
            embed=False,
        )

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def finish(self, failed: bool) -> None:
        self._run.finish()


_CLIENTS: Mapping[str, Callable[[str, str, str, Mapping[str, Any]], Client]] = {
    "wandb": _Wandb,
    "mlflow": _Mlflow,
    "trackio": _Trackio,
}


def require_tracker(tracker: str | None) -> None:
    """Raise ``ConfigError`` if a tracker's client is not installed."""
    if tracker is not None:
        require_package(tracker, tracker, f"`tracker` {tracker}")


class Tracking:
    """Tells a tracker what a run's log is told, for as long as this context lasts.

    A run that goes on is the same run there: OUTPUT/tracker.json has its number.
    """

    def __init__(
        self, tracker: str | None, project: str, output: Path, settings: Mapping[str, Any]
    ) -> None:
        """``settings`` are shown beside the numbers; None as tracker tells nobody."""
        self._tracker = tracker
        self._project, self._output, self._settings = project, output, settings
        self._lines: queue.Queue[tuple[Mapping[str, float], int] | None] = queue.Queue(_WAITING)
        self._failed = False  # the run, not the tracker
        self._lost = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True, name="tracker")

    def __enter__(self) -> Self:
        if self._tracker is not None:
            self._number = _number(self._output / TRACKER)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._tracker is None or self._lost.is_set():
            return
        self._failed = kind is not None
        self._put(None)
        self._thread.join(END_SECONDS)
        if self._thread.is_alive():
            self._give_up(f"it has not taken all in {END_SECONDS:.0f} s")

    def tell(self, values: Mapping[str, float], step: int) -> None:
        """Have numbers of a step sent, some time later."""
        if self._tracker is not None and not self._lost.is_set():
            self._put((values, step))

    def _put(self, line: tuple[Mapping[str, float], int] | None) -> None:
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self._give_up(f"{_WAITING} lines wait for it")

    def _work(self) -> None:
        assert self._tracker is not None
        try:
            client = _CLIENTS[self._tracker](
                self._project, self._output.resolve().name, self._number, self._settings
            )
            while (line := self._lines.get()) is not None:
                if self._lost.is_set():
                    return
                client.log(*line)
            client.finish(self._failed)
        except BaseException as error:  # clients exit too
            self._give_up(f"{type(error).__name__}: {error}")

    def _give_up(self, why: str) -> None:
        if not self._lost.is_set():
            self._lost.set()
            lines = why.splitlines()
            _log.warning(
                "`tracker` %s is told no more (%s); training goes on, and %s has all of it",
                self._tracker,
                lines[0] if lines else why,
                self._output / "metrics.jsonl",
            )


def _number(path: Path) -> str:
    """Return what a run is called at its tracker, new for a new run."""
    try:
        found = read_json(LocalFolder(path.parent).read_unwatched(path.name, _MOST_BYTES))["run"]
        return str(uuid.UUID(found).hex)
    except (PipelineError, OSError, ValueError, KeyError, TypeError, AttributeError):
        number = uuid.uuid4().hex
        replace(path, json.dumps({"run": number}).encode() + b"\n")
        return number
