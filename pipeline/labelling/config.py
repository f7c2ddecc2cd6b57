"""The settings of a label job. Nothing is loaded here that only the job itself needs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipeline.errors import ConfigError, TeacherError
from pipeline.files.cache import CacheConfig
from pipeline.files.kinds import at_home, why_no_data
from pipeline.files.objects import is_url
from pipeline.growth import settle
from pipeline.identity import (
    AugmentConfig,
    ColumnConfig,
    MixConfig,
    Precision,
    Preset,
    StoreIdentity,
    TeacherIdentity,
)
from pipeline.labelling.timm_files import hub_repositories, require_fetched, require_model

if TYPE_CHECKING:
    from pipeline.labelling.teacher import TeacherSpec

__all__ = [
    "FirstSettings",
    "LabelConfig",
    "RunSettings",
    "TeacherSettings",
    "TrialSettings",
    "ViewSettings",
]

_TOO_MANY = 1 << 31  # PyTorch counts in 32 bits
_MOST_PARTS = 1 << 16  # of a shard; each is a file, and planned before the first is written
_MOST_VIEWS = 1 << 31  # that a manifest knows


@dataclass(frozen=True, kw_only=True)
class FirstSettings:
    """What a label job is told first."""

    shards: tuple[str, ...]
    """The directory of the shards, files, a .txt that lists them, or patterns in quotes
    ('x-{000000..001281}.tar', 'x-*.tar'); s3://, gs:// or az:// for shards in object storage."""
    out: str
    """Store to write or to continue: a path or URL that ends in .parquet, or a path that ends
    in .zarr."""
    teacher: str = "regnety_160.deit_in1k"
    """timm's name of the teacher; pretrained weights are fetched unless a checkpoint or
    random weights are given."""
    teacher_checkpoint: Path | None = None
    """Local weights: .safetensors, or a .pth that holds tensors alone, such as a checkpoint of
    timm's train.py."""
    views: int = 300
    """Views per sample: one per epoch of a student's run."""


@dataclass(frozen=True, kw_only=True)
class TeacherSettings:
    """The teacher: its weights, and how it computes."""

    teacher_weights: Literal["raw", "ema"] = "raw"
    """Which of the weights in a checkpoint label, if it holds averaged ones too."""
    teacher_random_weights: int | None = None
    """Seed of untrained weights, for trials of speed."""
    num_classes: int | None = None
    """The number of the teacher's classes, if not that of its weights."""
    precision: Precision = "bf16"
    """Number format of the teacher. bf16 and fp16 change some labels against fp32, in bf16 about
    1 % of a small teacher's; the job measures how many before it begins."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the teacher runs."""
    batch_views: int | None = None
    """Views of a group in one teacher batch: a triple on a CPU, a block on a GPU."""


@dataclass(frozen=True, kw_only=True)
class ViewSettings:
    """Which views are labelled, and what is kept of the labels."""

    classes: str | None = None
    """Names of the classes in the order of their indices: packed shards, a classes.json, or a file
    with a name a line. Unset: the classes.json beside the shards, if there is one."""
    first_view: int = 0
    """First view."""
    extend_to: int | None = None
    """Give a store that is there so many views in all, with its own settings: only shards, the
    file of the weights, and how the job runs are given. What is there stays."""
    views_per_part: int = 150
    """Views per part file: the unit of retry and commit."""
    seed: int = 0
    """Root of all seeds."""
    keep: str = ""
    """What to keep of the teacher's probabilities beside its labels: words of confidence,
    margin and topk=K with commas between them, such as 'confidence,topk=5'."""
    preset: Preset = "deit"
    """Augmentation to start from on the command line; what is given beside it overrides it."""
    mix: bool = True
    """Mix pairs by mixup and CutMix (off by default with the preset center)."""


@dataclass(frozen=True, kw_only=True)
class TrialSettings:
    """What is tried out before the job, and what it must not go beyond."""

    estimate: bool = False
    """Try the teacher out, say what the job will take, and end; writes nothing."""
    hour_price: float | None = None
    """What an hour of a GPU costs, or of a machine without, for `estimate`."""
    allow_low_agreement: bool = False
    """Go on although the teacher hardly agrees with the shards' targets, or would with other
    settings."""
    max_rejected: float = 0.01
    """Share of undecodable images above which the job fails."""


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """How the job runs; labels do not depend on it."""

    serial: bool = False
    """Run in this process, without Ray; writes the same bytes."""
    teachers: int | Literal["auto"] = "auto"
    """Teacher processes: one per GPU of the cluster, also of those that join while the job runs;
    without GPUs one per machine."""
    teachers_per_gpu: int = 1
    """Teacher processes that share a GPU, where one alone leaves it idle; each needs memory for
    itself."""
    threads: int | None = None
    """CPU threads of each teacher: its machine's cores divided by the teachers there. One is faster
    for small teachers and views. Labels do not depend on it."""
    window_gb: float = 1.0
    """Most memory for the augmented views that wait for a teacher, each; of a machine's shared
    memory all of its teachers together take at most half."""
    cache_dir: Path | None = None
    """Where shards from object storage are kept, shared by all runs of a machine; by default
    teacher-labels/shards in $XDG_CACHE_HOME or ~/.cache."""
    cache_gb: float = 100.0
    """Size of that directory; the least recently used shards go first."""
    drain_seconds: float = 20.0
    """After SIGTERM, time to finish parts under way before they are abandoned."""
    hang_seconds: float = 60.0
    """A teacher that labels no group of views for so long, and for 20 times its usual time, is
    presumed hung and replaced. For the first group it has 4 times as long, for loading 30 times."""
    wait_seconds: float = 600.0
    """How long to wait for the cluster to have a GPU or CPU free before giving up."""
    metrics_file: Path | None = None
    """File to which a line of JSON is added every 5 seconds: speed, busy teachers, retries."""


@dataclass(frozen=True, kw_only=True)
class LabelConfig(RunSettings, TrialSettings, ViewSettings, TeacherSettings, FirstSettings):
    """Label augmented views of WebDataset shards with a teacher, once for all students.

    >>> config = LabelConfig(shards=("digits-{0..1}.tar",), out="soft.parquet", keep="topk=5")
    >>> config.columns.topk
    5
    """

    augment: AugmentConfig = field(default_factory=AugmentConfig)
    mixing: MixConfig = field(default_factory=MixConfig)

    def __post_init__(self) -> None:
        settle(self)
        if self.views < 1 or self.first_view < 0 or self.views_per_part < 1:
            raise ConfigError("`views` and `views_per_part` start at 1, `first_view` at 0")
        if max(self.first_view + self.views, self.extend_to or 0) > _MOST_VIEWS:
            raise ConfigError(f"`first_view` and `views` end after {_MOST_VIEWS}; use smaller ones")
        if max(self.views, self.extend_to or 0) > _MOST_PARTS * self.views_per_part:
            raise ConfigError(
                f"`views_per_part` {self.views_per_part} cuts the views of a shard into more than "
                f"{_MOST_PARTS} parts; use a larger one, or fewer `views`"
            )
        if self.extend_to not in (None, self.first_view + self.views):
            raise ConfigError(
                "`extend_to` says which views to label; leave out `first_view` and `views`"
            )
        if self.teacher_checkpoint is not None and self.teacher_random_weights is not None:
            raise ConfigError("give `teacher_checkpoint` or `teacher_random_weights`, not both")
        if self.teacher_checkpoint is None and self.teacher_weights != "raw":
            raise ConfigError("`teacher_weights` chooses among those of a `teacher_checkpoint`")
        if not 0 <= self.max_rejected <= 1:
            raise ConfigError(f"`max_rejected` is {self.max_rejected}; a share is in 0..1")
        for name in ("teachers", "teachers_per_gpu", "threads", "batch_views"):
            value = getattr(self, name)
            if isinstance(value, int) and value < 1:
                raise ConfigError(f"`{name}` is {value}; use 1 or more")
            if isinstance(value, int) and value >= _TOO_MANY:
                raise ConfigError(f"`{name}` is {value}; use fewer")
        if abs(self.teacher_random_weights or 0) >= 1 << 63:
            raise ConfigError(
                "`teacher_random_weights` has more than 64 bits; use a smaller number"
            )
        if not self.window_gb > 0:
            raise ConfigError(f"`window_gb` is {self.window_gb}; use more than 0")
        if not self.hang_seconds > 0 or not self.wait_seconds >= 0:
            raise ConfigError(
                f"`hang_seconds` is {self.hang_seconds}, `wait_seconds` {self.wait_seconds}; use "
                "times above 0"
            )
        if self.hour_price is not None and not (self.estimate and self.hour_price >= 0):
            raise ConfigError("`hour_price` is a price for `estimate`; give both")
        ColumnConfig.from_text(self.keep)
        _ = self.cache  # checks its own fields
        if self.precision == "fp16" and self.device == "cpu":
            raise ConfigError("`precision` fp16 needs a GPU; use bf16 or fp32 on a CPU")

    def with_absolute_paths(self) -> LabelConfig:
        """Return the settings with local paths that mean the same in every process.

        Shards get theirs in ``index_shards``, where patterns become files.
        """
        local = {
            name: path.absolute()
            for name in ("teacher_checkpoint", "cache_dir", "metrics_file")
            if (path := getattr(self, name)) is not None
        }
        if not is_url(self.out):
            local["out"] = str(Path(at_home(self.out)).absolute())
        return replace(self, **local)

    def check_teacher(self) -> None:
        """Raise ``TeacherError`` for a name or a checkpoint that can be no teacher's."""
        require_model(self.teacher)
        if "." in self.teacher and hub_repositories(self.teacher) is None:
            from pipeline.labelling.teacher import pretrained_config

            pretrained_config(self.teacher)
        if self.teacher_checkpoint is not None:
            reason = why_no_data(self.teacher_checkpoint)
            if reason is not None:
                raise TeacherError(f"`teacher_checkpoint` {self.teacher_checkpoint} {reason}")

    def check_fetched(self) -> None:
        """Raise ``TeacherError`` for weights to fetch that neither the hub nor its cache have here.

        timm itself is loaded only where its files do not tell.
        """
        if self.teacher_checkpoint is None and self.teacher_random_weights is None:
            require_fetched(self.teacher)

    @property
    def view_range(self) -> range:
        """The views that the job wants."""
        return range(self.first_view, self.first_view + self.views)

    @property
    def cache(self) -> CacheConfig:
        """Where shards from object storage are kept."""
        return CacheConfig.of_flags(self.cache_dir, self.cache_gb)

    @property
    def effective_mixing(self) -> MixConfig:
        """The mixing that the store's identity holds."""
        mixing = self.mixing
        if not self.mix:
            mixing = MixConfig(
                probability=0.0, group_size=mixing.group_size, block_views=mixing.block_views
            )
        return mixing

    @property
    def columns(self) -> ColumnConfig:
        """The optional columns that the store's identity holds."""
        return ColumnConfig.from_text(self.keep)

    def identity(self, teacher: TeacherIdentity) -> StoreIdentity:
        """Return the identity of the store that this job writes with ``teacher``."""
        return StoreIdentity(
            root_seed=self.seed,
            augment=self.augment,
            mix=self.effective_mixing,
            teacher=teacher,
            columns=self.columns,
        )

    def teacher_spec(self) -> TeacherSpec:
        """Return which teacher to build."""
        from pipeline.labelling.teacher import TeacherSpec

        return TeacherSpec(
            architecture=self.teacher,
            checkpoint=self.teacher_checkpoint,
            weights=self.teacher_weights,
            random_weights=self.teacher_random_weights,
            num_classes=self.num_classes,
            precision=self.precision,
            batch_views=self.batch_views,
            columns=self.columns,
        )
