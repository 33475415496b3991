"""The command `seqtrain`: verbs, exit codes, and the one place that prints a user's error."""

import os
import sys
import warnings
from functools import partial
from typing import Annotated, Any, TextIO

import typer
import typer.core

import seqtrain
from seqtrain.cli import bench, compare, config, data, embed, evaluate, export, info, predict, train
from seqtrain.cli.signals import INTERRUPTED, Interrupts
from seqtrain.errors import SeqtrainError, SeqtrainWarning
from seqtrain.escaping import for_terminal, print


def _interrupted() -> typer.Exit:
    print("seqtrain: interrupted.", file=sys.stderr)
    return typer.Exit(INTERRUPTED)


class Verbs(typer.core.TyperGroup):
    """Answers Ctrl-C and a closed pipe before Typer does, which would say nothing of either."""

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        """Read the command line."""
        try:
            return super().make_context(*arguments, **options)
        except KeyboardInterrupt:
            raise _interrupted() from None

    def invoke(self, ctx: Any) -> Any:
        """Run a verb."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("default", SeqtrainWarning)
                warnings.showwarning = partial(_show_warning, set())
                result = super().invoke(ctx)
            sys.stdout.flush()
        except (
            typer.BadParameter
        ) as error:  # Typer prints it; a file's name in it may hold anything
            error.message = for_terminal(error.message)
            raise
        except KeyboardInterrupt:
            raise _interrupted() from None
        except BrokenPipeError:
            _drop_stdout()  # whoever read our output has seen enough (`| head`)
            raise typer.Exit from None
        return result


def _show_warning(
    said: set[str],
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """One line, once; the place in the code only for warnings that are not ours."""
    if issubclass(category, SeqtrainWarning):
        if str(message) not in said:
            print(f"warning: {message}", file=file or sys.stderr)
        said.add(str(message))
    else:
        (file or sys.stderr).write(
            warnings.formatwarning(message, category, filename, lineno, line)
        )


class Verb(typer.core.TyperCommand):
    """Refuses an option of one value that is given twice, of which the last would count."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments of a verb."""
        *_, given = self.make_parser(ctx).parse_args(args=list(args))
        for param in self.params:
            if not isinstance(param, typer.core.TyperOption) or param.multiple or param.is_flag:
                continue
            if given.count(param) > 1:
                ctx.fail(f"Option {param.opts[0]} is given twice; it takes one value.")
        return super().parse_args(ctx, args)


app = typer.Typer(
    name="seqtrain",
    cls=Verbs,
    help="Train and evaluate sequence encoders whose results never depend on padding.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("train")(train.train)
app.command("eval")(evaluate.evaluate)
app.command("predict")(predict.predict)
app.command("compare-norms")(compare.compare_norms)
app.add_typer(data.app, name="data")
app.add_typer(config.app, name="config")
app.add_typer(bench.app, name="bench")
app.command("export")(export.export)
app.command("embed")(embed.embed)
app.command("info")(info.info)

for _verbs in (app, data.app, config.app, bench.app):
    for _verb in _verbs.registered_commands:
        _verb.cls = Verb


def _print_version(wanted: bool) -> bool:
    if wanted:
        print(f"seqtrain {seqtrain.__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line and exit: 0 done, 1 fixable by the user, 2 usage, 130 interrupted."""
    # Read when torch loads. By default its threads wait by spinning, and when another process has
    # one of the cores they wait for each other: 37,000 residues per second against 1,200.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    _open_closed()
    interrupts = Interrupts()
    interrupts.listen()
    try:
        app(standalone_mode=True)
    except SeqtrainError as error:
        print(f"seqtrain: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:  # a full disk, a folder that may not be written
        where = error.filename or "a file could not be written"
        print(f"seqtrain: {where}: {error.strerror or error}.", file=sys.stderr)
        sys.exit(1)
    finally:
        interrupts.leave()
        _flush()


def _open_closed() -> None:
    """Replace what Python leaves None where a shell closed a stream (``>&-``)."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115


def _flush() -> None:
    """Write what stdout still holds; python must not complain at exit if nobody reads it."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _drop_stdout()


def _drop_stdout() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
