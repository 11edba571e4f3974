"""`python -m weightdecay.watching PROGRAM…`: a watched program that has started itself again."""

import os
import sys
from dataclasses import replace

from weightdecay.watching.launching import launch
from weightdecay.watching.program import Program
from weightdecay.watching.settings import Settings

if __name__ == "__main__":
    settings = Settings.of_environment()
    if settings is None:
        raise SystemExit("this is `weightdecay watch` on its way from one program to the next; use the command")
    launch(replace(settings, program=Program.of(sys.argv[1:]).words, root=os.getpid()))
