"""The command line: `internvl2 chat|generate|info|convert|train|eval|bench|data|migrate`.

One class each.

Results go to standard output and everything else to standard error. Exit codes: 0 done, 1 some
requests were skipped, data have faults or flags no counterpart, 2 bad usage or bad input (one line
says which), 130 interrupted, 143 ended by SIGTERM.
"""

import contextlib
import io
import os
import sys
from collections.abc import Sequence

import tyro

from internvl2 import console
from internvl2.cli.bench import Bench
from internvl2.cli.chat import Chat
from internvl2.cli.convert import Convert
from internvl2.cli.data import Data
from internvl2.cli.data_check import CheckRecipe, parse_check
from internvl2.cli.evaluate import Eval
from internvl2.cli.generate import Generate
from internvl2.cli.info import Info
from internvl2.cli.migrate import Migrate, with_command
from internvl2.cli.mistakes import as_line
from internvl2.cli.plan import PlanTraining
from internvl2.cli.termination import unwinding_on_sigterm
from internvl2.cli.train import Train, TrainRecipe, parse_train
from internvl2.cores import read_cores

Command = Chat | Generate | Info | Convert | Train | Eval | Bench | Data | Migrate

BAD_INPUT, INTERRUPTED, BROKEN_PIPE = 2, 130, 141
SPINS = "3000"
"""How often a thread of torch's OpenMP looks for more work before it sleeps, 0.1 ms in all. Its
usual 300,000 keep a core from whoever else wants it, the other threads among them: on a machine
that is not idle an answer would take several times as long."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and gives its exit code; SIGTERM raises `SystemExit` with it."""
    console.set_up_logging()
    _set_threads()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal without Chinese letters
    with unwinding_on_sigterm():
        return _run(arguments)


def _run(arguments: Sequence[str] | None) -> int:
    """The exit code of a command, or of the mistake that it ends with."""
    try:
        command = _parse(sys.argv[1:] if arguments is None else arguments)
        code = command if isinstance(command, int) else command.run()
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _discard_standard_output()
        return BROKEN_PIPE
    except (ValueError, OSError, MemoryError) as error:
        return _complain(error)
    except RuntimeError as error:
        if "out of memory" not in str(error).lower():  # what torch says of every device
            raise
        return _complain(error)


def _set_threads() -> None:
    """How many threads torch has and how they wait, read when it is first imported."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    if "MKL_NUM_THREADS" not in os.environ:
        os.environ.setdefault("OMP_NUM_THREADS", str(read_cores().threads))


def _parse(
    arguments: Sequence[str],
) -> Command | TrainRecipe | PlanTraining | CheckRecipe | int:
    """The command that was typed; an exit code where help or a mistake was answered instead."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            if arguments[0:1] == ["migrate"]:
                arguments = with_command(arguments)
            if arguments[0:1] == ["train"] and len(arguments) > 2:
                return parse_train(arguments[1:])
            if arguments[:2] == ["data", "check"] and not _starts_with_option(arguments[2:]):
                return parse_check(arguments[2:])
            return tyro.cli(
                Command,
                prog="internvl2",
                description="Ask the InternVL2 family about pictures and videos.",
                args=list(arguments),
                config=(
                    tyro.conf.AvoidSubcommands,
                    tyro.conf.OmitArgPrefixes,
                    tyro.conf.OmitSubcommandPrefixes,
                    tyro.conf.FlagCreatePairsOff,
                    tyro.conf.HelptextFromCommentsOff,
                ),
            )
    except SystemExit as stop:
        if complaint.getvalue():
            line = as_line(complaint.getvalue(), _command_of(arguments))
            print(f"internvl2: error: {line}", file=sys.stderr)
        return stop.code if isinstance(stop.code, int) else BAD_INPUT


def _starts_with_option(arguments: Sequence[str]) -> bool:
    return not arguments or arguments[0].startswith("-")


def _complain(error: Exception) -> int:
    print(f"internvl2: error: {console.one_line(error)}", file=sys.stderr)
    return BAD_INPUT


def _command_of(arguments: Sequence[str]) -> str:
    """The part of a command line that `--help` follows."""
    command, action = [*arguments[:2], "", ""][:2]
    if command == "data" and action in ("make", "check", "convert"):
        return f"internvl2 data {action}"
    if command == "bench" and action in ("latency", "throughput"):
        return f"internvl2 bench {action}"
    known = command in ("chat", "generate", "info", "convert", "bench", "data", "migrate")
    return f"internvl2 {command}" if known else "internvl2"


def _discard_standard_output() -> None:
    """Whoever read our output is gone; the interpreter must not complain when it flushes."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
