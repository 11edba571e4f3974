"""Every module can be imported where the system has no fcntl, no resource and no signals of POSIX."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import importlib, pkgutil, signal, sys

import torch, filelock, rich.console, tokenizers  # which know their platforms

for name in ("fcntl", "resource", "termios", "pwd", "grp", "tty", "pty"):
    sys.modules[name] = None  # an import of it fails
for name in ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGQUIT", "SIGKILL", "SIGALRM", "pthread_sigmask"):
    delattr(signal, name)

import weightdecay
from weightdecay.cli import main

for module in pkgutil.walk_packages(weightdecay.__path__, "weightdecay."):
    if module.name == "weightdecay.__main__" or module.name.startswith("weightdecay.integrations."):
        continue
    importlib.import_module(module.name)
model = torch.nn.Linear(4, 4)
optimizer = torch.optim.AdamW(weightdecay.plan(model, weight_decay=0.1).param_groups(lr=1e-3))
assert weightdecay.audit(model, optimizer).ok
sys.exit(main(["recipes"]))
"""


def test_the_library_and_the_command_start_without_the_modules_of_posix() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "llama2" in done.stdout
