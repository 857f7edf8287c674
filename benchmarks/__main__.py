"""`python -m benchmarks COMMAND`: see `--help`."""

import sys

import tyro

from benchmarks import ops, steps

COMMANDS = {"steps": steps.main, "ops": ops.main}


def main(arguments: list[str] | None = None) -> None:
    """Run the command that the arguments name."""
    try:
        tyro.extras.subcommand_cli_from_dict(COMMANDS, args=arguments, prog="python -m benchmarks")
    except ValueError as error:
        sys.exit(f"benchmarks: {error}")


if __name__ == "__main__":
    main()
