"""The command line; heavy rooms are imported when a verb runs, so that `--help` is instant."""

from __future__ import annotations


def main() -> None:
    """Entry point: run the app; errors of ours become one red line and exit code 2."""
    import sys

    from allaprima.cli.app import app
    from allaprima.core.errors import AllaprimaError

    try:
        app()
    except AllaprimaError as e:
        from rich.console import Console

        Console(stderr=True, highlight=False, soft_wrap=True).print(f"[bold red]error:[/] {_escape(str(e))}")
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; run the same command with --resume to go on", file=sys.stderr)
        sys.exit(130)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)
