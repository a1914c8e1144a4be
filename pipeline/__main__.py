"""The command line: `python -m pipeline COMMAND`, one of COMMANDS.

Every command is a module with `add_arguments(parser)` and `run(args) -> exit code`; only the one asked for is imported.

Exit codes: 0 done; 1 a command ran and its check failed; 2 a mistake of the user's or of the machine's, told in one
sentence on stderr; 130 Ctrl-C; 141 nobody reads stdout any more; 143 SIGTERM.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import importlib
import logging
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from pipeline.stream import UserError

log = logging.getLogger(__name__)

COMMANDS = {
    "ask": ("pipeline.commands.ask", "watch a file, then answer a question about it"),
    "events": ("pipeline.commands.events", "what happens when in a file: captions, chapters, alerts, costs"),
    "recall": ("pipeline.commands.recall", "what is still remembered of 1, 5, 15 and 60 minutes ago, by both models"),
    "resume": ("pipeline.commands.resume", "go on with a stream that `ask --keep` or the page has kept"),
    "mcp": ("pipeline.commands.mcp", "let a program watch and ask: the Model Context Protocol over stdin and stdout"),
    "probe": ("pipeline.commands.probe", "say what is in a video file, or why it cannot be read"),
    "bench": ("pipeline.bench.run", "what an hour costs: the model and its baseline over growing video"),
    "stress": (
        "pipeline.commands.stress",
        "visitors of a running page who watch, ask and leave, and what they wait for",
    ),
    "evaluate": ("pipeline.commands.evaluate", "how many questions of a published benchmark a model answers rightly"),
    "verify": ("pipeline.checks.verify", "recompute golden tensors and print the differences"),
    "fidelity": ("pipeline.checks.fidelity", "how far saving memory or time strays from exact answers"),
    "convert": ("pipeline.weights.convert", "put pickled weights into safetensors, once, and run nothing in them"),
}
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
NOBODY_READS = 128 + 13  # as a shell says of a program that SIGPIPE ended


class Parser(argparse.ArgumentParser):
    """argparse that leaves reporting to `main`, so that every mistake ends in one sentence and exit code 2."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"The command was not understood ({message}), so nothing was done; see {self.prog} --help.")


def program() -> NoReturn:
    """What a shell starts: `main`, with the process's streams and signals in order."""
    _fill_streams()
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:  # nohup's wish stays
            signal.signal(number, lambda number, _: sys.exit(128 + number))  # by way of every `finally`
    sys.exit(main())


def _fill_streams() -> None:
    """A service may start a program with 0, 1 or 2 closed.

    Python then has None in the stream's place, and `print(file=None)` writes to stdout. Opened in this order, each
    takes its own number again, so that no video gets it.
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), "r" if name == "stdin" else "w"))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        args = _parser(argv).parse_args(argv)
        code = args.run(args)
        sys.stdout.flush()  # a full disk is noticed here, not when Python ends
        return code
    except KeyboardInterrupt:
        return _told("Stopped.", 130)
    except UserError as error:
        return _told(str(error), 2)
    except BrokenPipeError:
        _forget_stdout()
        return NOBODY_READS
    except OSError as error:
        log.debug("the system refused", exc_info=error)
        _forget_stdout()
        return _told(_refusal(error), 2)


def _parser(argv: Sequence[str]) -> Parser:
    parser = Parser(prog="python -m pipeline", description="Watch a video and ask about it.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (module, summary) in COMMANDS.items():
        command = commands.add_parser(name, help=summary)
        if argv[:1] == [name]:
            code = importlib.import_module(module)
            code.add_arguments(command)
            command.set_defaults(run=code.run)
    return parser


def _told(sentence: str, code: int) -> int:
    try:
        print(sentence, file=sys.stderr, flush=True)
    except OSError:  # nobody can be told
        log.debug("stderr is gone", exc_info=True)
    return code


def _refusal(error: OSError) -> str:
    if error.errno in FULL:
        return "The disk is full, so what was found could not be written whole; make room and try again."
    why = str(error.strerror or error).splitlines()[0].rstrip(".")
    return f"The system refused what this command needs ({why}), so it stopped; mend that and try again."


def _forget_stdout() -> None:
    """What is still waiting to be written goes nowhere: Python would try again when it ends, and complain."""
    with contextlib.suppress(OSError):  # not a real stream, as in tests
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    program()
