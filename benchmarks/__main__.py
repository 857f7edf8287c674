"""`python -m benchmarks COMMAND`: see `--help`."""

import sys
from collections.abc import Callable

import tyro

from benchmarks import fitting, ops, report, scaling, steps

COMMANDS: dict[str, Callable[..., None]] = {
    "steps": steps.main,
    "ops": ops.main,
    "scaling": scaling.main,
    "fit": fitting.main,
    "report": report.main,
}


def main(arguments: list[str] | None = None) -> None:
    """Run the command that the arguments name; ValueError tells what is wrong with one."""
    tyro.extras.subcommand_cli_from_dict(COMMANDS, args=arguments, prog="python -m benchmarks")


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        sys.exit(2)
