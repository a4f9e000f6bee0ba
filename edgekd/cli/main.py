"""Entry point of ``edgekd``: finds the command, turns errors into one line and an exit code.

Exit codes: 0 done; 1 the verdict is no; 2 wrong use or unreadable input; 3 the environment lacks
something; 70 a fault in edgekd itself.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from pathlib import Path

import click

from edgekd import __version__
from edgekd.contracts.registry import nearest
from edgekd.errors import EdgeKDError

_ORDER = [
    "doctor", "ls", "validate", "simulate", "series", "distill", "search", "finetune", "adapt",
    "eval", "export", "quantize", "check", "build", "finalize", "keygen", "sign", "verify",
    "inspect", "run", "watch", "serve", "bench", "report", "power", "carbonation",
]  # fmt: skip


class _Commands(click.Group):
    """Commands are the files of this folder; each is imported when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        names = [
            path.stem
            for path in Path(__file__).parent.glob("*.py")
            if not path.stem.startswith("_") and path.stem != "main"
        ]
        return sorted(names, key=lambda name: (_ORDER.index(name) if name in _ORDER else 99, name))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        command: click.Command = importlib.import_module(f"edgekd.cli.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        valid = self.list_commands(ctx)
        if args and args[0] not in valid and not args[0].startswith("-"):
            raise click.UsageError(
                f"command '{args[0]}' does not exist{nearest(args[0], valid)} "
                f"(valid: {', '.join(valid)})"
            )
        return super().resolve_command(ctx, args)


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Every command has --help. Start with: make demo, or edgekd ls recipes.",
)
@click.version_option(__version__, prog_name="edgekd")
def cli() -> None:
    """From a big teacher model to a small student that runs on a board."""


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code and prints errors as one line on stderr."""
    args = sys.argv[1:] if argv is None else argv
    args = args or ["--help"]
    own = args[: args.index("--")] if "--" in args else args  # what follows is another program's
    debug = "--debug" in own
    try:
        result = cli.main(args=args, prog_name="edgekd", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as err:
        return int(err.exit_code)
    except click.UsageError as err:
        return _fail(_one_line(err.format_message()), 2, debug)
    except click.ClickException as err:
        return _fail(_one_line(err.format_message()), 2, debug)
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted", 130, False)
    except EdgeKDError as err:
        return _fail(_one_line(str(err)), err.exit_code, debug)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as err:
        return _fail(_one_line(f"{err.filename or 'file system'}: {err.strerror or err}"), 2, debug)
    except MemoryError:
        return _fail("out of memory; use a smaller tile, crop or batch", 3, debug)
    except Exception as err:
        text = f"unexpected {type(err).__name__}: {err}; this is a fault in edgekd: run it again "
        return _fail(_one_line(text + "with --debug and report what it prints"), 70, debug)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _fail(text: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"error: {text}", file=sys.stderr)
    return code


def run_and_exit() -> None:
    """Entry point of the installed command."""
    sys.exit(main())


if __name__ == "__main__":
    run_and_exit()
