"""The command ``attnlens``: one subcommand per file, imported light and run when chosen."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

import attnlens
from attnlens.cli import (
    bench,
    dilution,
    explore,
    families,
    figures,
    recover,
    replay,
    score,
    testbed,
    trend,
)
from attnlens.errors import InputError
from attnlens.text import one_line


class _Parser(argparse.ArgumentParser):
    """A parser that reports bad input in one line."""

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with status 2."""
        self.exit(2, f"{self.prog}: error: {one_line(message)} (see {self.prog} --help)\n")


def parser() -> argparse.ArgumentParser:
    """Build the parser of the whole command."""
    top = _Parser(
        prog="attnlens",
        description="How much does a vision-language model still look at the image while it "
        "reasons, and what makes it look again?",
    )
    top.add_argument("--version", action="version", version=f"attnlens {attnlens.__version__}")
    commands = top.add_subparsers(dest="command", metavar="command", parser_class=_Parser)
    for module in (
        trend,
        recover,
        dilution,
        figures,
        replay,
        score,
        explore,
        families,
        testbed,
        bench,
    ):
        module.add_parser(commands)
    return top


def spell_options(arguments: Sequence[str]) -> list[str]:
    """Spell option names with underscores, so that ``--image-path`` is ``--image_path``."""
    spelled: list[str] = []
    for argument in arguments:
        if spelled and spelled[-1] == "--layers" and argument.startswith("-"):
            spelled[-1] += "=" + argument  # --layers -1,0: an index, not an option
            continue
        if argument.startswith("--") and len(argument) > 2:
            name, equals, value = argument.partition("=")
            argument = "--" + name[2:].replace("-", "_") + equals + value
        spelled.append(argument)
    return spelled


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; exit status 0, 1 on failure, 2 on bad input, 130 on Ctrl-C."""
    words = spell_options(sys.argv[1:] if arguments is None else arguments)
    top = parser()
    for argument in words:
        if any(0xD800 <= ord(character) <= 0xDFFF for character in argument):
            # no model can read it, and no JSON file can name it
            top.error(f"{argument!r} is not UTF-8: rename the file, or set the terminal to UTF-8")
    if words and words[0] in ("--image_path", "--video_path", "--question", "--data"):
        top.error(f"{words[0]} comes before the command: write attnlens trend {words[0]} ...")
    options, unknown = top.parse_known_args(words)
    if unknown:
        command = f"attnlens {options.command or ''}".strip()
        top.exit(
            2,
            f"{command}: error: unrecognized arguments: {one_line(' '.join(unknown))} "
            f"(see {command} --help)\n",
        )
    if options.command is None:
        top.print_help()
        return 0
    try:
        return int(options.run(options) or 0)
    except InputError as error:
        print(f"attnlens {options.command}: error: {one_line(str(error))}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"attnlens {options.command}: error: {one_line(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"attnlens {options.command}: interrupted", file=sys.stderr)
        return 130
