"""Arguments and options of the commands, and the group that turns errors into one message and an exit code."""

from __future__ import annotations

import os
import signal
import tomllib
import warnings
from contextlib import contextmanager
from functools import reduce, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from study.errors import StudyError
from trainables import storage
from trainables.errors import DataError
from trainables.usercode.importing import UserCodeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# In the order of `study --help`.
SECTIONS = {
    "Start": ("init", "check", "list", "run"),
    "Follow": ("status", "dashboard"),
    "Continue": ("resume", "extend"),
    "Read": ("best", "export", "report", "figures", "table"),
    "Cluster": ("manifest", "submit"),
    "Verify": ("bench", "reproduce"),
}


class Folder(click.Path):
    """A path of a folder. A URI is refused: taken as a path it would create folders."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path, unless it is a URI."""
        if "://" in str(value):
            self.fail(f"{value!r} is a URI; give a folder of this machine")
        return super().convert(value, param, ctx)


class Place(Folder):
    """A folder as a path, or the URI of an object store as text."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path or the URI."""
        try:
            place = storage.place(value)
        except ValueError as error:
            self.fail(str(error))
        return place if isinstance(place, str) else super().convert(value, param, ctx)


class SpecName(click.ParamType):
    """A TOML file or the name of a shipped spec; the commands read it."""

    name = "spec"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Shipped specs and TOML files that begin with the incomplete text; otherwise the shell completes it."""
        folder = incomplete[: incomplete.rfind("/") + 1]
        specs = sorted(f"{folder}{file.name}" for file in Path(folder or ".").glob("*.toml"))
        items = [CompletionItem(name, help=about) for name, about in shipped("**/*.toml").items()]
        items += map(CompletionItem, specs)
        begun = [item for item in items if item.value.startswith(incomplete)]
        # Not both: if one item asks bash to complete files, it drops the items before it.
        return begun or [CompletionItem(incomplete, type="file")]


FOLDER = Folder(path_type=Path)
PLACE = Place(path_type=Path)
SPEC = SpecName()


class Group(click.Group):
    """Turns errors into one message and an exit code."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands by purpose."""
        for title, names in SECTIONS.items():
            with formatter.section(title):
                commands = {name: self.get_command(ctx, name) for name in names}
                formatter.write_dl([(name, each.get_short_help_str(60)) for name, each in commands.items() if each])

    def invoke(self, context: click.Context) -> Any:
        """Run a command."""
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _show_warning
                return super().invoke(context)
        except (click.ClickException, click.exceptions.Exit):
            raise
        except (KeyboardInterrupt, click.Abort) as error:  # click raises Abort at a question
            click.echo("study: interrupted", err=True)
            raise SystemExit(130) from error
        except StudyError as error:
            click.echo(f"study: {error}", err=True)
            raise SystemExit(error.exit_code) from error
        except Exception as error:
            from analysis import ResultsError

            if isinstance(error, DataError | UserCodeError | ResultsError):
                click.echo(f"study: {error}", err=True)
                raise SystemExit(2) from error
            if type(error).__module__.startswith("ray.") and not context.params.get("debug"):
                why = (str(error).strip() or type(error).__name__).splitlines()[0]
                advice = (
                    "finished trials are safe, and `study resume` continues; `study --debug ...` shows the traceback"
                )
                click.echo(f"study: Ray failed ({why}); {advice}", err=True)
                raise SystemExit(1) from error
            raise


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
) -> None:
    """Show what is wrong with results in one line; a warning that is not for users stays as Python shows it."""
    ours = category.__name__ == "ResultsWarning"
    shown = f"study: note: {message}" if ours else warnings.formatwarning(message, category, filename, lineno).rstrip()
    click.echo(shown, err=True)


def _with(*options: Any) -> Callable[[Any], Any]:
    return lambda command: reduce(lambda inner, option: option(inner), reversed(options), command)


def _duration(context: click.Context, option: click.Parameter, value: str | None) -> str | None:
    from study.spec.dimensions import checked_duration

    try:
        checked_duration(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} {error}") from None
    return value


TIMEOUT = click.option(
    "--timeout",
    metavar="TIME",
    callback=_duration,
    help="Begin no further trial after this time: 90s, 30m, 2h, 1d. The confirmation still runs.",
)


SIGNIFICANT = click.option(
    "--until-significant",
    is_flag=True,
    help="Add fresh seeds until one optimizer wins or more seeds cannot decide, up to confirm.most_seeds (if not set, "
    "5 x confirm.seeds).",
)


def sized(command: Callable[..., None]) -> Any:
    """Add the argument SPEC and options that change a study's size; the command takes the spec that they make."""

    @wraps(command)
    def read_first(
        spec: str, optimizers: str | None, trials: int | None, epochs: int | None, seeds: int | None,
        timeout: str | None, until_significant: bool, **options: Any
    ) -> None:  # fmt: skip
        from study.spec import changes as changing
        from study.spec import read

        changes: dict[str, dict[str, Any]] = {"budget": {"trials": trials, "epochs": epochs}, "lanes": {"seeds": seeds}}
        changes["tuning"] = {"timeout": timeout}
        changes["search"] = {"optimizer": optimizers and [name.strip() for name in optimizers.split(",")]}
        given = {name: {key: value for key, value in table.items() if value} for name, table in changes.items()}
        resized = read(spec, given)
        command(changing.until_significant(resized) if until_significant else resized, **options)

    return _with(
        click.argument("spec", type=SPEC),
        click.option(
            "--optimizers",
            metavar="A,B",
            help="Optimizers to compare. Each gets as many trials as an optimizer of the spec.",
        ),
        click.option("--trials", type=click.IntRange(1), help="Cells to try, instead of the spec's."),
        click.option("--epochs", type=click.IntRange(1), help="Epochs per lane, instead of the spec's budget."),
        click.option("--seeds", type=click.IntRange(1), help="Seeds per learning rate, instead of the spec's."),
        TIMEOUT,
        SIGNIFICANT,
    )(read_first)


# Options of commands that run trials; these take them as `how`, for `_go`.
running = _with(
    click.option("--address", help="Ray cluster to join (auto or host:port); this machine if not given."),
    click.option("--wait", default=0.0, help="Seconds to wait for a node that has room for a trial."),
    click.option("--quiet", "show", flag_value="quiet", help="Show no progress."),
    click.option("--plain", "show", flag_value="plain", help="Show plain lines, also in a terminal."),
    click.option("--json", "show", flag_value="json", help="Print JSON lines, for programs."),
)


@contextmanager
def ended_by_second_interrupt() -> Iterator[None]:
    """End this process, and the Ray that it has started, at a second Ctrl-C; the first one raises KeyboardInterrupt."""
    from study.cluster.compat import kill_descendants
    from study.session import ASKED

    def interrupt(number: int, frame: object) -> None:
        if ASKED.is_set():
            show_cursor = b"\x1b[?25h" if os.isatty(2) else b""
            os.write(2, show_cursor + b"study: ended at once; `study resume` continues from what was saved before\n")
            kill_descendants()
            os._exit(130)
        ASKED.set()
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    ASKED.clear()  # which an earlier session in this process may have set
    try:
        if before is not signal.SIG_IGN:  # as in a shell's background
            signal.signal(signal.SIGINT, interrupt)
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def shipped(pattern: str) -> dict[str, str]:
    """Shipped specs by name, each with a line about it."""
    folder = Path(__file__).parents[1] / "spec" / "shipped"
    specs = {file.relative_to(folder).with_suffix("").as_posix(): file for file in sorted(folder.glob(pattern))}
    return {name: tomllib.loads(file.read_text(encoding="utf-8"))["description"] for name, file in specs.items()}
