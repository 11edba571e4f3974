"""The `weightdecay` command: parse, call, print."""


def main() -> None:
    """Entry point of the console script."""
