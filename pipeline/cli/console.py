"""The one way from an error to an exit status, and from a text to a terminal.

The library speaks Python: its errors and log records name parameters in backticks. Here they
become the flags of the command that runs. Names in files are data that others chose, so nothing
is printed that a terminal would act upon.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import itertools
import logging
import os
import re
import select
import shlex
import signal
import stat
import sys
import textwrap
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, TextIO, get_args, get_type_hints

import tyro
from tqdm import tqdm

from pipeline.errors import ConfigError, PipelineError
from pipeline.files.kinds import at_home
from pipeline.files.objects import is_url
from pipeline.telling import ShowProgress, heard_by

__all__ = [
    "Progress",
    "as_typed",
    "counted",
    "described",
    "duration",
    "first_of",
    "flags_of",
    "in_users_words",
    "note",
    "parse_flags",
    "printable",
    "programs_called",
    "quiet_seconds",
    "require_command",
    "running",
    "say",
    "say_lines",
    "some_of",
    "steps_shown",
    "tell",
    "tell_error",
    "tell_next",
    "tell_page",
    "unused",
    "within_another",
    "words_given",
]

CLOSED_PIPE = 141  # as of a process ended by SIGPIPE
INTERRUPTED = 130  # as of a process ended by SIGINT
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)

_SHORT_SECONDS = 3.0  # what takes less has no progress to tell
_LINE_SECONDS = 10.0  # between the lines of progress in a log
_TOLD = 3  # shards or patterns; more would be told for pages
_WIDTH = 78  # of a help
_AGAIN_SECONDS = 0.02  # until an interrupt that was lost is sent again
_SCALED = 10_000  # from here on a bar counts in thousands
_POSITIONAL, _UNPREFIXED = (
    get_args(one)[1] for one in (tyro.conf.Positional[str], tyro.conf.OmitArgPrefixes[str])
)
_SURROGATE = re.compile("[\ud800-\udfff]")  # stands for a byte of a path that is not UTF-8
_NEAR = 40  # characters beside it
_PARAMETER = re.compile(r"`(\w+)`")
_PROGRAM = re.compile(r"`([a-z]+-[a-z]+)((?: [^`\n]+)?)`")  # and what follows it
_SLOW = {"torch": "PyTorch", "timm": "timm", "ray": "Ray"}  # on a busy machine half a minute
_BEAT_SECONDS = 0.5
_SLIP = 2  # the exit status of arguments that do not parse
_DEBUG = "TEACHER_LABELS_DEBUG"
_OTHER_NAMES = {  # of a setting's part, and of the setting that a command has for it
    "architecture": "teacher",
    "checkpoint": "teacher_checkpoint",
    "directory": "cache_dir",
    "gigabytes": "cache_gb",
    "random_weights": "teacher_random_weights",
    "weights": "teacher_weights",
}


@dataclasses.dataclass(frozen=True, slots=True)
class _Command:
    program: str = ""
    flags: Mapping[str, str] = dataclasses.field(default_factory=dict)
    names: Mapping[str, str] = dataclasses.field(default_factory=dict)
    is_step: bool = False  # of a command that says itself what comes next


_last_said = time.perf_counter()
_command = _Command()  # of this process; log records come from any of its threads


def flags_of(settings: type, *, prefixes: bool = True) -> dict[str, str]:
    """Return how a command that is made from ``settings`` shows each of its parameters.

    ``prefixes`` says whether flags of a group begin with the group's name.
    """
    hints = get_type_hints(settings, include_extras=True)
    own: dict[str, str] = {}
    inner: dict[str, str] = {}
    for field in dataclasses.fields(settings):
        kind, *marks = get_args(hints[field.name]) or (hints[field.name],)
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            prefix = f"--{field.name}." if prefixes and _UNPREFIXED not in marks else "--"
            flags = flags_of(kind, prefixes=prefixes).items()
            inner |= {name: flag.replace("--", prefix, 1) for name, flag in flags}
        else:
            flag = f"--{field.name}".replace("_", "-")
            own[field.name] = field.name if _POSITIONAL in marks else flag
    return inner | own


def parse_flags(
    settings: Any, program: str, arguments: Sequence[str] | None, **options: Any
) -> Any:
    """Return what a command's arguments say, as ``tyro.cli`` does with these options."""
    if not {"-h", "--help"}.isdisjoint(sys.argv[1:] if arguments is None else arguments):
        _join_lines_of_help(settings)
    try:
        return tyro.cli(settings, prog=program, args=arguments, **options)
    except SystemExit as end:
        if end.code == _SLIP:
            _tell_meant(sys.argv[1:] if arguments is None else arguments)
        raise


def _tell_meant(arguments: Sequence[str]) -> None:
    """Say which flag one may be meant for that there is not; tyro does if none is missing."""
    given = {word.partition("=")[0].replace("_", "-") for word in arguments if word[:2] == "--"}
    known = _command.flags.values()
    for word in sorted(given - {*known}):
        close = get_close_matches(word, known, n=1)
        if close and close[0] not in given and not word.startswith("--no-"):
            note(f"there is no flag {word}; did you mean {close[0]}?")


def _join_lines_of_help(settings: Any) -> None:
    """Let each flag's help be wrapped as a whole: tyro keeps the breaks of docstrings' lines.

    It takes a help from a field's metadata before the docstring. Of a group it shows the class's
    docstring, where an example in Python is for others.
    """
    from docstring_parser import parse_from_object

    for one in (settings, *get_args(settings)):
        if not _is_record(one):
            continue
        told = {
            item.arg_name: item.description or ""
            for parent in reversed(one.__mro__[:-1])
            for item in parse_from_object(parent).params
        }
        hints = get_type_hints(one)
        for field in dataclasses.fields(one):
            kind = hints[field.name]
            text = told.get(field.name) or (_is_record(kind) and str(kind.__doc__)) or ""
            paragraphs = text.partition(">>>")[0].split("\n\n")
            help_ = "\n\n".join(" ".join(words.split()) for words in paragraphs).strip()
            if help_ and "help" not in field.metadata:
                field.metadata = MappingProxyType({**field.metadata, "help": help_})
            _join_lines_of_help(kind)


def _is_record(kind: Any) -> bool:
    return isinstance(kind, type) and dataclasses.is_dataclass(kind)


def described(text: str, first: Sequence[str], *example: str) -> str:
    """Return a command's description: what it does, the flags that matter first, an example."""
    parts = [*text.split("\n\n"), f"First of all: {', '.join(first)}."]
    # tyro joins lines, but for those that begin with a space.
    whole = [_wrapped(" ".join(one.split()), _WIDTH, "\n  ") for one in parts]
    shown = _wrapped(" ".join(example), _WIDTH - 8, " \\\n      ")
    return "\n\n".join([*whole, f"For example:\n  {shown}"])


def _wrapped(text: str, width: int, between: str) -> str:
    return between.join(textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False))


def words_given(arguments: Sequence[str] | None) -> list[str]:
    """Return a command's arguments, those of this process by default, with ``~`` as a shell has it.

    A shell leaves ``~`` alone in quotes, in which patterns stand, and after ``=``.
    """
    words = sys.argv[1:] if arguments is None else arguments
    return [_with_home(word) for word in words]


def _with_home(word: str) -> str:
    flag, equals, value = word.partition("=")
    if flag.startswith("--") and equals:
        return f"{flag}={at_home(value)}"
    return at_home(word)


@contextmanager
def running(
    program: str,
    flags: Mapping[str, str],
    interrupted: str = "interrupted",
    arguments: Sequence[str] = (),
    names: Mapping[str, str] | None = None,
) -> Iterator[None]:
    """Run a command: what goes wrong is said on stderr, and becomes the exit status.

    ``flags`` shows the command's parameters, as ``flags_of`` returns them. A ``PipelineError``
    exits with 1, Ctrl-C with 130 and the words ``interrupted``, a closed pipe with 141 and
    without a word. Log records of the library are printed too. If the command's ``arguments`` begin
    with ``--version``, the release is printed, and that is all. ``names`` are what the user calls
    programs, by their own names, here and in commands that run inside this one.
    """
    global _command
    # Read when PyTorch loads: threads that spin while they wait slow a shared machine down.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    before = _command
    _command = _Command(program, flags, before.names if names is None else names, before.is_step)
    try:
        with (
            _logged(),
            heard_by(steps_shown),
            _never_silent(),
            _ending_with_the_reader(),
            _interrupts_kept() as kept,
        ):
            try:
                if list(arguments[:1]) == ["--version"]:
                    say(f"{program} {version('teacher-labels')}")
                    raise SystemExit(0)
                with _no_bar_left():
                    yield
            except PipelineError as error:
                tell_error(error)
                raise SystemExit(1) from None
            except KeyboardInterrupt:
                note(interrupted)
                raise SystemExit(INTERRUPTED) from None
            except Exception as error:
                # Compiled code may wrap it, or raise its own error over it.
                if kept.lost or any(isinstance(one, KeyboardInterrupt) for one in _causes(error)):
                    note(interrupted)
                    raise SystemExit(INTERRUPTED) from None
                if isinstance(error, OSError) and error.filename and error.errno:
                    tell_error(error, f"{error.filename}: {os.strerror(error.errno)}")
                elif isinstance(error, UnicodeEncodeError) and _SURROGATE.search(error.object):
                    # A path's, which the system holds as bytes; records hold texts.
                    near = error.object[max(0, error.start - _NEAR) : error.end + _NEAR]
                    tell_error(
                        error,
                        f"a name that is not UTF-8 can stand in no file: {near!r}; rename it, or "
                        "give another path",
                    )
                else:
                    raise  # a fault of ours, with its traceback
                raise SystemExit(1) from None
    finally:
        _command = before


def within_another() -> contextlib.AbstractContextManager[None]:
    """Let the commands in this context be steps of one, which says itself what comes next."""
    return _changed(is_step=True)


def programs_called(names: Mapping[str, str]) -> contextlib.AbstractContextManager[None]:
    """Let programs have these names for the user, who calls functions in place of commands."""
    return _changed(names=names)


@contextmanager
def _changed(**changes: Any) -> Iterator[None]:
    global _command
    before, _command = _command, dataclasses.replace(_command, **changes)
    try:
        yield
    finally:
        _command = before


@contextmanager
def _no_bar_left() -> Iterator[None]:
    """Close the bars of loops that an error broke off, before it is said."""
    outside = len(Progress.shown)
    try:
        yield
    finally:
        for one in reversed(Progress.shown[outside:]):
            one.__exit__()


def say(text: str) -> None:
    """Print a line on stdout, at once."""
    _write(printable(text), sys.stdout)


def say_lines(text: str) -> None:
    """Print a report of lines on stdout, in which names have no newlines."""
    lines = text.removesuffix("\n").split("\n")
    _write("\n".join(map(printable, lines)), sys.stdout)


def in_users_words(text: str) -> str:
    """Return a text with the command's flags for parameters in backticks, and programs by the names
    that the user has for them.
    """
    text = _PARAMETER.sub(lambda match: _flag(match[1]) or match[0], text)
    return _PROGRAM.sub(lambda match: f"{_command.names.get(match[1], match[1])}{match[2]}", text)


def note(text: str) -> None:
    """Print on stderr what the program has to say, in the user's words.

    A list's lines begin with two spaces; all else is one line, whatever the names in it hold.
    """
    lines = f"{_command.program}: {in_users_words(text)}".removeprefix(": ").split("\n  ")
    _write("\n  ".join(map(printable, lines)), sys.stderr)


def tell_error(error: Exception, text: str = "") -> None:
    """Say on stderr what went wrong: the error or ``text``, in one line.

    With ``TEACHER_LABELS_DEBUG`` in the environment it says where in the code too.
    """
    if os.environ.get(_DEBUG, "") not in ("", "0"):
        note("\n  ".join("".join(traceback.format_exception(error)).splitlines()))
    note(f"error: {text or error}")


def tell(text: str) -> None:
    """Say on stderr what comes next in words, unless this command is a step of another."""
    if not _command.is_step:
        note(text)


def tell_next(*command: str) -> None:
    """Say which command comes next, as the user types it: whole, to be pasted."""
    tell(f"next: {as_typed(*command)}")


def tell_page(page: Path | str) -> None:
    """Say what to do with a page that was written; a browser opens none in object storage."""
    tell(
        f"fetch {page}, and open it in a browser"
        if is_url(str(page))
        else f"open {page} in a browser"
    )


def as_typed(program: str, *arguments: str) -> str:
    """Return a command as the user types it, who may call the program by another name."""
    words = shlex.join(_from_here(word) for word in arguments)
    return f"{_command.names.get(program, program)} {words}".rstrip()


def _from_here(word: str) -> str:
    """Return a path below the current directory as it is called from there."""
    return word.removeprefix(f"{Path.cwd()}/")


def require_command(name: str, names: Collection[str]) -> None:
    """Raise ``ConfigError`` if there is no such subcommand."""
    if name not in names:
        close = get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]}?" if close else f"use {', '.join(names)}"
        raise ConfigError(f"there is no command {name!r}; {hint}")


def some_of(shards: Sequence[str], word: str = "SHARDS") -> tuple[str, ...]:
    """Return shards as a command that comes next names them; many, if they are all of a directory,
    by that, and else, as none, in one word.
    """
    if 0 < len(shards) <= _TOLD:
        return tuple(shards)
    folders = {Path(one).parent for one in shards}
    if len(folders) == 1 and set(map(Path, shards)) == set((folder := folders.pop()).glob("*.tar")):
        return (str(folder),)
    return (word,)


def unused(name: str) -> str:
    """Return a path at which nothing is yet: this one, or one with a number behind its name."""
    path = Path(name)
    for number in itertools.count(2):
        if not path.exists():
            break
        path = Path(name).with_stem(f"{Path(name).stem}-{number}")
    return str(path)


def printable(text: str) -> str:
    """Return a text in which escapes, newlines, marks of direction and the like are spelled out."""
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)


def _flag(name: str) -> str | None:
    flags = _command.flags
    return flags.get(name) or flags.get(_OTHER_NAMES.get(name, ""))


def quiet_seconds() -> float:
    """Return for how long nothing was said or shown; a bar that is there counts as said."""
    shown = any(one.bar is not None for one in Progress.shown)
    return 0.0 if shown else time.perf_counter() - _last_said


def _write(text: str, stream: TextIO) -> None:
    global _last_said
    _last_said = time.perf_counter()
    bars = [one.bar for one in Progress.shown if one.bar is not None]
    if bars:
        bars[0].write(text, file=stream)  # above all of them
    else:
        stream.write(f"{text}\n")
    stream.flush()


class _Loading:
    """Says on a terminal that a library is loaded that takes long; in a log `_Pulse` does.

    Python asks it for each module first, and it never knows where one is.
    """

    def __init__(self) -> None:
        self._waiting = {name for name in _SLOW if name not in sys.modules}

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Look whether a module is one of those."""
        if name in self._waiting:
            self._waiting.discard(name)
            if sys.stderr.isatty():
                with contextlib.suppress(OSError):
                    note(f"loading {_SLOW[name]} ...")


class _Pulse(threading.Thread):
    """Says what a command is at where nothing else has been said for a while."""

    def __init__(self) -> None:
        super().__init__(daemon=True, name="pulse")
        self._over, self._begun = threading.Event(), time.perf_counter()

    def run(self) -> None:
        """Look twice a second, until it is over."""
        while not self._over.wait(_BEAT_SECONDS):
            now = time.perf_counter()
            if min(quiet_seconds(), now - self._begun) > _quiet_for():
                with contextlib.suppress(OSError):
                    note(f"{_at_work()}, {now - self._begun:.0f} s so far")

    def end(self) -> None:
        """Say nothing more."""
        self._over.set()
        self.join(2.0)


def _quiet_for() -> float:
    """Return for how many seconds nothing need be said: in a log counts are told each ten."""
    if sys.stderr.isatty():
        return _SHORT_SECONDS
    return _LINE_SECONDS + 2 if any(one.counts for one in Progress.shown) else _LINE_SECONDS - 2


def _at_work() -> str:
    """Return what this command is at, as far as it is known."""
    for name, library in _SLOW.items():
        spec = getattr(sys.modules.get(name), "__spec__", None)
        if getattr(spec, "_initializing", False):
            return f"loading {library} ..."
    doing = [one.what for one in Progress.shown if one.what]
    return f"{doing[-1]} ..." if doing else "... at work"


@contextmanager
def _never_silent() -> Iterator[None]:
    """Say what goes on where it takes long, once where commands are nested, and by rank 0 alone."""
    others = any(isinstance(one, _Loading) for one in sys.meta_path)
    if others or os.environ.get("RANK", "0") != "0":
        yield
        return
    loading, pulse = _Loading(), _Pulse()
    sys.meta_path.insert(0, loading)
    pulse.start()
    try:
        yield
    finally:
        pulse.end()
        sys.meta_path.remove(loading)


class _Interrupts:
    """Sends Ctrl-C again that came while C called back, out of which no exception gets.

    numba is called back when LLVM has compiled a kernel, and finalizers run anywhere. Python hands
    such an exception to its hook, and goes on: what the callback was to do is not done.
    """

    def __init__(self, before: Callable[[sys.UnraisableHookArgs], object]) -> None:
        self.lost = False
        self.before = before
        self._again: threading.Timer | None = None

    def __call__(self, unraisable: sys.UnraisableHookArgs) -> None:
        """Take an exception that nobody can be told of."""
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            self.before(unraisable)
            return
        self.lost = True
        # Not at once: raised in here it would be lost again.
        self._again = threading.Timer(_AGAIN_SECONDS, self._send)
        self._again.daemon = True
        self._again.start()

    def end(self) -> None:
        """Send nothing any more."""
        if self._again is not None:
            self._again.cancel()

    def _send(self) -> None:
        # To the main thread itself, so that it wakes up from whatever it waits for.
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


@contextmanager
def _interrupts_kept() -> Iterator[_Interrupts]:
    """Let no Ctrl-C be lost in this context; its value tells whether one was."""
    if isinstance(sys.unraisablehook, _Interrupts):
        yield sys.unraisablehook
        return
    one = _Interrupts(sys.unraisablehook)
    sys.unraisablehook = one
    try:
        yield one
    finally:
        sys.unraisablehook = one.before
        one.end()


class _Notes(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):  # nobody reads them any more
            warns = record.levelno >= logging.WARNING
            level = f"{record.levelname.lower()}: " if warns else ""
            note(f"{level}{record.getMessage()}")


@contextmanager
def _logged() -> Iterator[None]:
    """Print the library's log records, once where commands are nested."""
    loggers = [logging.getLogger(name) for name in ("pipeline", "student", "jobs")]
    logging.getLogger("pipeline.views.compiled").setLevel(logging.INFO)  # it says what takes long
    handler = _Notes()
    silent = [one for one in loggers if not any(isinstance(x, _Notes) for x in one.handlers)]
    for one in silent:
        one.addHandler(handler)
    try:
        yield
    finally:
        for one in silent:
            one.removeHandler(handler)


@contextmanager
def _ending_with_the_reader() -> Iterator[None]:
    """End without a word once nobody reads the output, and else with all of it written."""
    try:
        try:
            yield
            sys.stdout.flush()
        except SystemExit:  # after --help too
            sys.stdout.flush()
            raise
    except OSError as error:
        if not isinstance(error, BrokenPipeError) and error.errno not in _FULL:
            raise
        streams = {stream: _fault_of(stream) for stream in (sys.stdout, sys.stderr)}
        if not any(streams.values()):
            raise  # another file's or pipe's, which is a fault
        for stream, fault in streams.items():
            if fault:  # or Python complains when it flushes them at its end
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        full = [fault for fault in streams.values() if fault not in (0, errno.EPIPE)]
        if full and not streams[sys.stderr]:
            note(f"error: its output cannot be written: {os.strerror(full[0])}")
        # A failure stays one, whether or not its table was read to the end.
        status = getattr(error.__context__, "code", None)
        raise SystemExit(status or (1 if full else CLOSED_PIPE)) from None


def _fault_of(stream: TextIO) -> int:
    """Return why a stream takes nothing, as the system numbers it; 0 if it does."""
    poll = select.poll()
    poll.register(stream.fileno(), 0)
    if any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0)):
        return errno.EPIPE
    try:
        stream.flush()
        if stat.S_ISCHR(os.fstat(stream.fileno()).st_mode) and not stream.isatty():
            os.write(stream.fileno(), b"\n")  # to /dev/full: what is not buffered is not kept
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, and all over which it was raised."""
    pending: list[BaseException | None] = [error]
    seen: set[int] = set()
    while pending:
        one = pending.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            yield one
            pending += [one.__cause__, one.__context__]


class Progress:
    """Shows a count on stderr: a bar on a terminal, in a log a line each ten seconds.

    Of work inside of other work, each shows its own. What is over within three seconds shows none.
    """

    shown: ClassVar[list[Progress]] = []

    def __init__(self, unit: str, what: str = "") -> None:
        """``unit`` is what is counted; ``what`` says what is done where that is not the command."""
        self.bar: tqdm | None = None
        self._unit, self.what = unit, what
        self._process = os.getpid()  # others share the terminal, and have nothing to say on it
        self._started = self._shown = time.monotonic()
        self._begun: tuple[float, int] | None = None  # when the first were through, and how many
        self._over = False
        self.counts = False  # whether something was through

    def __enter__(self) -> Progress:
        Progress.shown.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()
        if self in Progress.shown:
            Progress.shown.remove(self)

    def show(self, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` are through."""
        if os.getpid() != self._process:
            return
        now, self.counts = time.monotonic(), True
        self._begun = self._begun or (now, done)
        if sys.stderr.isatty():
            self._show_bar(done, total)
        elif not self._over and (
            now - self._shown > _LINE_SECONDS
            or (done == total and now - self._started > _SHORT_SECONDS)
        ):
            self._shown, self._over = now, done == total
            note(self._line(now, done, total))

    def _show_bar(self, done: int, total: int) -> None:
        if self.bar is None:
            # A terminal that nobody told its size, as of many containers, says 0.
            sized = os.get_terminal_size(sys.stderr.fileno()).columns > 0
            self.bar = tqdm(
                total=total,
                initial=done,  # no part of the rate: it had to wait for imports and the like
                desc=self.what or _command.program,
                unit=f" {self._unit}",
                unit_scale=total >= _SCALED,
                delay=_SHORT_SECONDS,
                leave=not self.what,
                ncols=None if sized else 80,
                nrows=None if sized else 24,
                dynamic_ncols=sized,
            )
            self.bar.start_t -= time.monotonic() - self._started
        self.bar.total = total
        self.bar.update(done - self.bar.n)

    def _line(self, now: float, done: int, total: int) -> str:
        """Return a count with its rate and the time that is left."""
        assert self._begun is not None
        begun, before = self._begun
        # What came first had to wait for imports and the like, and tells no rate.
        speed = (done - before) / max(1e-9, now - begun)
        if done == before:
            speed = done / max(1e-9, now - self._started)
        known = before < done < total
        left = f", about {duration((total - done) / speed)} left" if known else ""
        digits = 0 if speed > 9 else 1
        what = f"{self.what}: " * bool(self.what)
        return f"{what}{done} of {total} {self._unit}, {speed:.{digits}f} {self._unit}/s{left}"


@contextmanager
def steps_shown(what: str, unit: str) -> Iterator[ShowProgress]:
    """Show a step of the library's work; see ``pipeline.telling``."""
    with Progress(unit, what) as progress:
        yield progress.show


def counted(count: int, noun: str) -> str:
    """Return a count with its noun: 1 shard, 2 shards."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def first_of(names: Sequence[object], count: int) -> str:
    """Return the first names, and how many more there are."""
    more = len(names) - count
    return ", ".join(map(str, names[:count])) + (f" and {more} more" if more > 0 else "")


def duration(seconds: float) -> str:
    """Return seconds in words: 42 s, 3 min, 2.5 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
