"""The label job on Ray: what the supervisor decides is done, and what happens is told to it.

The driver hands out parts and nothing finer. A teacher's actor submits augmentation tasks in a
bounded window and takes what is ready first; what it writes does not depend on that order.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import NodeDiedError, RayError, TaskUnschedulableError
from ray.util.metrics import Gauge
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from jobs import joining
from jobs.actors import (
    ActorSettings,
    Labelled,
    MakeWorker,
    Progress,
    TeacherActor,
    load_worker,
    look_remotely,
    summarize_remotely,
)
from jobs.draining import Drain
from jobs.joining import RayConnection, Waiting, death_of, fault_of, within
from jobs.metrics import HELP, Flow
from jobs.sizing import Share, ShareRule, auto_teachers, machine_for_cpu_teacher
from jobs.supervisor import (
    Ask,
    Decision,
    End,
    GiveUp,
    HandOut,
    Patience,
    Question,
    Say,
    State,
    Supervisor,
    Work,
)
from pipeline.errors import ConfigError, PipelineError, TryAgainError
from pipeline.files.cache import ShardFile
from pipeline.files.objects import is_url
from pipeline.files.sharing import SharedPaths, offered_paths, require_shared
from pipeline.labelling.agreement import Preflight
from pipeline.labelling.config import LabelConfig
from pipeline.labelling.estimate import Capacity
from pipeline.labelling.job import DescribedTeacher, IndexedShards, JobPlan
from pipeline.records import PartKey
from pipeline.shards.index import ShardSummary, summarize_here
from pipeline.store import Committed, parts_root

__all__ = ["Cluster"]

_log = logging.getLogger(__name__)

ANSWER_SECONDS = 120.0  # of a node that is asked what it sees; it may have to start Python
END_SECONDS = 5.0
SHARDS_PER_TASK = 8  # that are opened to be indexed
PULSE_SECONDS = 2.0  # between two looks at a teacher's progress
LOOK_SECONDS = 0.5  # between two looks at who is due
PULSES_PER_SECOND = 100  # of all teachers together

_DESCRIBE, _TRY_OUT = Question("its own settings"), Question("the trial on a few images")


@dataclass(slots=True)
class _Running:
    """A teacher's actor, and the calls that it has not answered."""

    actor: Any
    calls: dict[Any, tuple[str, Work]] = field(default_factory=dict)  # by reference
    home: str | None = None  # the machine that it is on, or was asked for
    asked: float = 0.0  # for its progress


class Cluster:
    """The job's teachers on a Ray cluster."""

    def __init__(
        self, config: LabelConfig, drain: Drain, make_worker: MakeWorker = load_worker
    ) -> None:
        self._config = config
        self._drain = drain
        self._connection = RayConnection.open()
        self._running: dict[int, _Running] = {}
        self._flow = Flow()
        self._looked = -LOOK_SECONDS
        self._told: dict[int, Progress] = {}  # what each teacher has said last
        self._gauges: dict[str, Gauge] = {}
        self._store_missing = 0.0  # bytes
        try:
            self._plan_teachers(make_worker)
        except BaseException:
            self.close()
            raise

    def _plan_teachers(self, make_worker: MakeWorker) -> None:
        config, state = self._config, joining.state_now()
        self._machines, self._per_gpu = state.machines, config.teachers_per_gpu
        gpus = auto_teachers(self._machines, on_gpu=True)
        self._on_gpu = config.device == "cuda" or (config.device == "auto" and gpus > 0)
        self._teachers = 1
        self._count_teachers()
        self._require_gpus(gpus)
        mix, side = config.effective_mixing, config.augment.image_size
        self._rule = ShareRule(
            group_bytes=mix.group_size * mix.block_views * side * side * 3,
            window_bytes=1e9 * config.window_gb,
        )
        self._patience = Patience.of(config.hang_seconds, config.wait_seconds)
        self._settings = ActorSettings(
            config=config, patience=self._patience, make_worker=make_worker
        )
        needs = "GPU" if self._on_gpu else None
        self._supervisor = Supervisor(self._teachers, needs, self._patience, 1 / self._per_gpu)
        self._note_small_stores()

    def _count_teachers(self) -> None:
        """Set how many teachers there may be now; more GPUs and machines may come later."""
        if isinstance(self._config.teachers, int):
            self._teachers = self._config.teachers
            return
        found = auto_teachers(self._machines, on_gpu=self._on_gpu, per_gpu=self._per_gpu)
        # A GPU that is lost may come back; what a machine without one did, others do.
        self._teachers = max(self._teachers, found) if self._on_gpu else found

    def _require_gpus(self, gpus: int) -> None:
        if self._on_gpu and self._teachers > gpus * self._per_gpu:
            if not self._connection.joined:
                most = gpus * self._per_gpu
                cure = f"--teachers {most} or --device cpu" if gpus else "--device cpu"
                raise PipelineError(
                    f"{self._teachers} teachers need {math.ceil(self._teachers / self._per_gpu)} "
                    f"GPUs, this machine has {gpus}; use {cure}"
                )
            _log.warning(
                f"the cluster has {gpus} GPUs now, and {self._teachers} teachers are wanted: the "
                "others begin as GPUs come"
            )
        elif not self._on_gpu and self._connection.joined and self._config.device == "auto":
            _log.warning(
                "the cluster has no GPU now, so the teacher runs on CPUs, also if GPUs come later; "
                "with --device cuda it waits for them"
            )

    def check_paths(self, paths: Sequence[ShardFile]) -> None:
        """Raise ``ConfigError`` naming a node that does not see the job's local paths as they are.

        Parts and teachers may come to any node, also to one without CPUs.
        """
        if not self._connection.joined:
            return
        out, checkpoint = self._config.out, self._config.teacher_checkpoint
        _refuse_temporary(out)
        files = [(path, path.stat().st_size) for path in paths if isinstance(path, Path)]
        if checkpoint is not None:
            files.append((checkpoint, checkpoint.stat().st_size))
        nodes = {node["NodeID"]: _name_of(node) for node in joining.nodes()}
        with offered_paths(parts_root(out), files) as shared:
            calls = {node: _ask(shared, node) for node in nodes}
            with self._drain.asked():
                answers = self._answers(calls, nodes)
            for node, unseen in answers.items():
                require_shared(shared, node, nodes[node], unseen)

    def summarize(self, shards: Sequence[tuple[int, ShardFile]]) -> Iterator[ShardSummary]:
        """Summarize shards in their order, on all CPUs of the cluster; a few of them here.

        Those in object storage are fetched by the machines that open them.
        """
        if len(shards) < 2 * SHARDS_PER_TASK:
            yield from summarize_here(shards)
            return
        cut = range(0, len(shards), SHARDS_PER_TASK)
        tasks = iter([shards[start : start + SHARDS_PER_TASK] for start in cut])
        most = 2 * max(1, sum(one.cpus for one in self._machines.values()))
        calls = deque(summarize_remotely.remote(task) for task in islice(tasks, most))
        while calls:
            yield from self._wait(calls.popleft(), "opening shards")
            calls.extend(summarize_remotely.remote(task) for task in islice(tasks, 1))

    def _wait(self, ref: Any, what: str) -> Any:
        """Return what a call gives, in the time that a teacher has to load."""
        waiting = Waiting(self._connection, what, self._patience.loading_seconds)
        with self._drain.asked():
            while not ray.wait([ref], timeout=0.5)[0]:
                self._drain.check()
                waiting.look()
            try:
                return ray.get(ref, timeout=ANSWER_SECONDS)
            except RayError as error:
                raise fault_of(error, what) from error

    def _answers(self, calls: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, str | None]:
        """Return what each node says, in the time that all of them have."""
        end = time.monotonic() + ANSWER_SECONDS
        waiting = list(calls.values())
        while waiting and time.monotonic() < end:
            self._drain.check()
            self._connection.require_raylet()
            _, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=0.5)
        answers: dict[str, str | None] = {}
        for node, ref in calls.items():
            try:
                answers[node] = ray.get(ref, timeout=1.0)
            except (NodeDiedError, TaskUnschedulableError):
                continue  # it is gone, and labels nothing
            except RayError as error:
                fault = fault_of(error, f"node {names[node]}")
                if "cannot run this project" in str(fault):
                    raise fault from error
                raise PipelineError(
                    f"node {names[node]} could not be asked which files it sees "
                    f"({joining.in_one_line(error) or 'no answer'}); take it out of the cluster, "
                    "or see that it runs this project's release and is not overloaded"
                ) from error
        return answers

    def describe(self) -> DescribedTeacher:
        """Return who the first teacher is that is loaded.

        Each of the others compares its own when it labels.
        """
        found: DescribedTeacher = self._ask_one(_DESCRIBE, lambda actor: actor.describe.remote())
        return found

    def preflight(self, shards: IndexedShards) -> Preflight:
        """Try the teacher out."""
        report: Preflight = self._ask_one(_TRY_OUT, lambda actor: actor.preflight.remote(shards))
        mix = self._config.effective_mixing
        groups = report.rows_per_batch / (mix.group_size * mix.block_views)
        self._supervisor.tried(report.batch_seconds / groups)
        return report

    def _ask_one(self, work: Work, call: Callable[[Any], Any]) -> Any:
        def submit(actor: Any, one: HandOut) -> Any:
            return call(actor)

        with self._drain.asked():
            self._supervisor.begin([work])
            while True:
                self._drain.check()
                for result in self._step(submit):
                    return result

    def capacity(self) -> Capacity:
        """Return who labels, as the cluster is now."""
        cores = max(1, sum(one.cpus for one in self._machines.values()))
        return Capacity(teachers=self._teachers, cores=cores, shared=not self._on_gpu)

    def flow(self) -> Flow:
        """Return what the teachers have told. Other threads may call it."""
        return self._flow

    def _flow_of(self, states: Mapping[int, State]) -> Flow:
        told = self._told
        labelling = [one for one, state in states.items() if state is State.LABELLING]
        return Flow(
            teachers=len(labelling),
            busy_seconds=sum(one.busy_seconds for one in told.values()),
            window=sum(told[one].window for one in labelling if one in told),
            labels=sum(told[one].labels for one in labelling if one in told),
            again=sum(one.again for one in told.values()),
            lost=sum(state is State.LOST for state in states.values()),
            parts_again=self._supervisor.taken_back,
            store_missing=self._store_missing,
        )

    def export(self, values: dict[str, float]) -> None:
        """Set Ray's metrics, which each node offers to Prometheus."""
        store = Path(self._config.out).name
        for name, value in values.items():
            if name not in self._gauges:
                gauge = Gauge(f"teacher_labels_{name}", HELP[name], tag_keys=("store",))
                self._gauges[name] = gauge
            self._gauges[name].set(value, tags={"store": store})

    def label(self, plan: JobPlan) -> Generator[Committed, None, None]:
        """Label the job's missing parts, and yield each once committed.

        After SIGTERM no new ones are handed out, and those under way may finish for a while.
        """

        def submit(actor: Any, one: HandOut) -> Any:
            assert isinstance(one.work, PartKey)
            return actor.label.remote(plan.order(one.work), one.lean)

        supervisor = self._supervisor
        supervisor.begin(plan.missing)
        while not supervisor.is_over:
            deadline = self._drain.deadline()
            if deadline is not None:
                supervisor.drain()
                if supervisor.is_over or time.monotonic() > deadline:
                    break
            yield from self._step(submit)
        # Those that labelled a moment ago are at rest by now.
        last = self._flow_of(supervisor.states)
        self._flow = replace(last, teachers=max(last.teachers, self._flow.teachers))

    def _step(self, submit: Callable[[Any, HandOut], Any]) -> Generator[Any, None, None]:
        """Do what is decided now, wait a moment, and yield the results that came."""
        self._connection.require_raylet()
        self._look_around()
        for decision in self._supervisor.decide(time.monotonic()):
            self._do(decision, submit)
        yield from self._take_answers()

    def _look_around(self) -> None:
        """Tell the supervisor what the cluster has, and ask the teachers how far they are."""
        state = self._connection.state()
        if state is not None:
            self._machines = state.machines
            self._supervisor.saw(state.resources)
            self._count_teachers()
            self._supervisor.want(self._teachers)
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return  # with a thousand teachers answers come faster than this looks at each
        self._looked, states = now, self._supervisor.states
        self._flow = self._flow_of(states)
        pause = max(PULSE_SECONDS, len(self._running) / PULSES_PER_SECOND)
        for number, running in self._running.items():
            asked = any(kind == "progress" for kind, _ in running.calls.values())
            if (
                states[number] in (State.LOADING, State.LABELLING)
                and now - running.asked > pause
                and not asked
            ):
                running.calls[running.actor.progress.remote()] = ("progress", None)
                running.asked = now

    def _do(self, decision: Decision, submit: Callable[[Any, HandOut], Any]) -> None:
        match decision:
            case Ask(teacher):
                home = None
                if not self._on_gpu:
                    home = machine_for_cpu_teacher(self._machines, self._at_home())
                actor = self._start_teacher(home)
                calls: dict[Any, tuple[str, Work]] = {actor.node.remote(): ("node", None)}
                self._running[teacher] = _Running(actor, calls, home)
            case HandOut(teacher, work):
                running = self._running[teacher]
                running.calls[submit(running.actor, decision)] = ("work", work)
            case End(teacher):
                ray.kill(self._running.pop(teacher).actor)
            case Say(text):
                _log.warning(text)
            case GiveUp(text, again):
                raise (TryAgainError if again else PipelineError)(text)

    def _take_answers(self) -> Generator[Any, None, None]:
        calls = {ref: number for number, one in self._running.items() for ref in one.calls}
        if not calls:
            time.sleep(0.2)
            return
        refs = list(calls)
        ready, _ = ray.wait(refs, num_returns=1, timeout=0.5)
        if ready:  # and all others that are there: to look at all teachers for each would be slow
            ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
        for ref in ready:
            number = calls[ref]
            running = self._running.get(number)
            if running is None or ref not in running.calls:
                continue  # its teacher died a moment ago
            kind, work = running.calls.pop(ref)
            try:
                answer = ray.get(ref, timeout=10.0)
            except (RayError, OSError) as error:
                self._lose(number, error)
                continue
            if isinstance(answer, Labelled):
                self._note(number, answer.progress)
                answer = answer.committed
            if self._tell(number, kind, work, answer):
                yield answer

    def _tell(self, number: int, kind: str, work: Work, answer: Any) -> bool:
        """Tell the supervisor what a teacher answered; return whether a work is done."""
        supervisor, now = self._supervisor, time.monotonic()
        if kind == "node":
            supervisor.placed(number, now)
            running = self._running[number]
            running.home = str(answer)
            share = self._share_of(running.home)
            running.calls[running.actor.load.remote(share)] = ("load", None)
        elif kind == "load":
            supervisor.loaded(number, now)
        elif kind == "progress":
            self._note(number, answer)
        return kind == "work" and supervisor.finished(number, work, now)

    def _note(self, number: int, progress: Progress) -> None:
        """Note how far a teacher is, and say what it has to say."""
        self._told[number] = progress
        for text in progress.said:
            _log.warning(text)
        self._supervisor.progressed(
            number,
            progress.groups,
            starved=progress.starved,
            closing=progress.closing,
            now=time.monotonic(),
        )

    def _lose(self, number: int, error: Exception) -> None:
        """Take a teacher's works back if it is lost; raise what would happen again."""
        how = death_of(error)
        if how is None:
            raise fault_of(error, "a teacher's process") from error
        self._connection.require_raylet()  # then it is no fault of the teacher's
        why = joining.in_one_line(error)
        works = self._supervisor.died(number, how, why, time.monotonic())
        _log.warning(
            f"a teacher's process {how.value}; "
            + (f"what it had ({works}) is handed out again" if works else "another takes its place")
        )
        ray.kill(self._running.pop(number).actor)

    def close(self) -> None:
        """End the teachers, and leave Ray."""
        # Ray ends them with this process too, a little later; without its head it could only wait.
        if not self._connection.head.is_lost:
            with suppress(Exception):
                within(END_SECONDS, "ending the teachers", self._end_teachers)
        self._connection.close()

    def _end_teachers(self) -> None:
        for running in self._running.values():
            ray.kill(running.actor)

    def _at_home(self) -> Counter[str]:
        """Return how many teachers each machine has."""
        return Counter(one.home for one in self._running.values() if one.home is not None)

    def _share_of(self, home: str) -> Share:
        here = self._at_home()[home]
        if self._on_gpu and home in self._machines:
            # Others are still being placed: Ray gives a machine's GPUs to one after the other.
            here = max(here, min(self._machines[home].gpus * self._per_gpu, self._teachers))
        return self._rule.share(self._machines, home, here, self._teachers)

    def _planned(self) -> Counter[str]:
        """Return how many teachers each machine will have."""
        if self._on_gpu:
            return Counter({name: one.gpus * self._per_gpu for name, one in self._machines.items()})
        there: Counter[str] = Counter()
        for _ in range(self._teachers):
            home = machine_for_cpu_teacher(self._machines, there)
            there[next(iter(self._machines)) if home is None else home] += 1
        return there

    def _note_small_stores(self) -> None:
        """Say where shared memory is too small: augmentation waits for room there, in silence."""
        own = next(iter(self._machines.values()), None)
        memory = joining.shared_memory_bytes()
        if not self._connection.joined and own is not None and memory < own.store_bytes:
            _log.warning(
                f"/dev/shm has {memory / 1e6:.0f} MB, so Ray keeps views in files of its temporary "
                f"directory, which is slower; {own.store_bytes / 1e6:.0f} MB fit: give a container "
                "more (Docker's --shm-size)"
            )
        missing: dict[str, tuple[float, float]] = {}
        planned = self._planned()
        for home, machine in self._machines.items():
            there = planned[home]
            wanted = self._rule.store_bytes(self._machines, home, there, self._teachers)
            if machine.store_bytes < wanted:
                missing[home] = wanted - machine.store_bytes, wanted
        if not missing:
            return
        worst = max(missing, key=lambda home: missing[home])
        self._store_missing, wanted = missing[worst]
        others = f" ({len(missing) - 1} more are too small)" if len(missing) > 1 else ""
        has = f"{self._machines[worst].store_bytes / 1e6:.0f} MB{others}"
        _log.warning(
            f"Ray's shared memory on node {worst[:8]} is {has}: there augmentation waits for room. "
            f"{math.ceil(wanted / 1e6)} MB fit: give `ray start --object-store-memory`, and a "
            "container as much of /dev/shm"
        )

    def _start_teacher(self, home: str | None) -> Any:
        strategy: Any = "DEFAULT"
        if home is not None:
            strategy = NodeAffinitySchedulingStrategy(home, soft=True)
        # Processes of a Ray of our own have this from the driver, and one that waits for work can
        # be any task's: what a teacher asks for runs in its environment.
        env_vars = {"OMP_WAIT_POLICY": "PASSIVE"} if self._connection.joined else {}
        return TeacherActor.options(  # type: ignore[attr-defined]
            num_gpus=1 / self._per_gpu if self._on_gpu else 0,
            scheduling_strategy=strategy,
            runtime_env={"env_vars": env_vars} if env_vars else None,
        ).remote(self._settings)


def _refuse_temporary(out: str) -> None:
    """Raise ``ConfigError`` for a store in the copy of a directory that a submitted job runs in."""
    unpacked = ray.get_runtime_context().runtime_env.get("working_dir")
    if unpacked and not is_url(out) and Path(out).is_relative_to(Path.cwd()):
        raise ConfigError(
            f"{out} is in the working directory that Ray made for this job, and deletes; give the "
            "store an absolute path outside of it, or one in object storage"
        )


def _name_of(node: dict[str, Any]) -> str:
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']}, {node['NodeID'][:8]})"


def _ask(paths: SharedPaths, node: str) -> Any:
    strategy = NodeAffinitySchedulingStrategy(node, soft=False)
    return look_remotely.options(scheduling_strategy=strategy).remote(paths, node)
