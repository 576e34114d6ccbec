"""What every command shares with the terminal: sizes, one-line errors with an exit status, progress, printing.

Only click is imported here; the rest when it is needed.
"""
import contextlib
import errno
import os
import re
import sys
import time
import traceback

import click

from .errors import RtsegError, first_line, one_line, printable

COUNTING_SECONDS = 5                # between lines of a step that counts


class Size(click.ParamType):
    """HEIGHTxWIDTH -> (height, width)."""
    name = "HxW"

    def convert(self, value, param, ctx):
        height, _, width = value.partition("x")
        if not (height.isdecimal() and width.isdecimal() and 0 < int(height) <= 16384 and 0 < int(width) <= 16384):
            self.fail(f"{value!r} is not HEIGHTxWIDTH in pixels, such as 360x480 or 1024x2048", param, ctx)
        return int(height), int(width)


class Commands(click.Group):
    """A group whose every failure is one line and an exit status; RTSEG_DEBUG=1 shows the traceback as well."""

    def main(self, *args, **kwargs):
        try:
            status = super().main(*args, **{**kwargs, "standalone_mode": False})
        except RtsegError as error:
            fail(error.what, error.fix)
        except click.UsageError as error:
            command = error.ctx.command_path if error.ctx else "rtseg-deploy"
            fail(error.format_message(), f"see {command} --help", error.exit_code)
        except click.ClickException as error:
            fail(error.format_message(), status=error.exit_code)
        except BrokenPipeError:  # who reads the pipe has enough: end without a word
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except (KeyboardInterrupt, click.Abort):
            exec("")    # Python forgets that an interrupt went through code run as text, of which it would die by the signal: importing torch runs such
            fail("interrupted; nothing half-written was left", "what was finished is kept: run it again to go on")
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            fail(f"{error.filename or 'writing'}: {error.strerror or error}", "nothing half-written was left; free some space" if full else "")
        sys.exit(status if isinstance(status, int) else 0)


def fail(what, fix="", status=1):
    """End with one line on stderr."""
    if os.environ.get("RTSEG_DEBUG"):
        traceback.print_exc()
    line = " ".join(f"rtseg-deploy: {what}{'; ' + fix if fix else ''}".split())
    click.echo(printable(line), err=True)
    sys.exit(status)


def unforeseen(kind, error, trace):
    """The last resort, a hook and not an except clause: a fault of ours is also one line."""
    if os.environ.get("RTSEG_DEBUG"):
        traceback.print_exception(kind, error, trace)
    what = f"a fault of rtseg-deploy itself: {kind.__name__}: {first_line(error)}"
    click.echo(printable(f"rtseg-deploy: {what}; please report it with the output of RTSEG_DEBUG=1"), err=True)


@contextlib.contextmanager
def progress():
    """Yields tell(step, fraction done or None): a bar on a terminal, a line a step elsewhere.

    What is printed meanwhile, by a network of the user's own, goes to stderr: stdout is data.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        tell = lines()
        with contextlib.redirect_stdout(sys.stderr):
            yield tell
        return
    # twice a second: drawing must not take processor time from what is measured
    with Progress(SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn(), console=console,
                  transient=True, refresh_per_second=2) as bar:
        task = bar.add_task("", total=None)
        yield lambda step, done: bar.update(task, description=one_line(step), total=None if done is None else 1.0, completed=done or 0)


def lines():
    """tell for a file: a line a step, and of one that counts a line at times."""
    told, since = "", 0.0

    def tell(step, done):
        nonlocal told, since
        counts = done is not None and done < 1 and re.sub("[0-9]+", "0", step) == re.sub("[0-9]+", "0", told)
        if step != told and not (counts and time.monotonic() - since < COUNTING_SECONDS):
            told, since = step, time.monotonic()
            click.echo(f"  {one_line(step)}", err=True)
    return tell


def show(*renderables):
    """Print to stdout, at the terminal's width or wide enough for a file."""
    from rich.console import Console

    console = Console() if sys.stdout.isatty() else Console(width=160)
    for renderable in renderables:
        text = isinstance(renderable, str)
        console.print(Plain(one_line(renderable) if text else renderable), highlight=False, markup=False, soft_wrap=text)


def put(*lines):
    """Print data to stdout: as it is, names of files with all their letters, but to a terminal without what that would obey."""
    for line in lines:
        print(one_line(line) if sys.stdout.isatty() else line)


def document(text):
    """Print a text of several lines, as data."""
    put(*text.split("\n"))


class Plain:
    """What a table or a text draws, without what names in files would have the terminal do."""

    def __init__(self, renderable):
        self.renderable = renderable

    def __rich_console__(self, console, options):
        for segment in console.render(self.renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))


def warn(lines):
    for line in lines:
        click.echo(one_line(f"warning: {line}"), err=True)
