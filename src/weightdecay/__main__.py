"""`python -m weightdecay` is the `weightdecay` command."""

from weightdecay.cli import main

if __name__ == "__main__":
    main()
