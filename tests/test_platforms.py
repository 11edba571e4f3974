"""Every module can be imported where the system has no fcntl, no resource and no signals of POSIX."""

from __future__ import annotations

import importlib
import pkgutil
import signal
import sys
from typing import Any

import torch

from tests.forking import ForkServer, forget

MODULES = ("fcntl", "resource", "termios", "pwd", "grp", "tty", "pty")
NAMES = ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGQUIT", "SIGKILL", "SIGALRM", "pthread_sigmask")


def begin_without_posix() -> None:
    """With torch, filelock, rich and tokenizers, which know their platforms, and without what we have imported."""
    forget("weightdecay")
    without: dict[str, Any] = dict.fromkeys(MODULES)
    sys.modules.update(without)  # an import of what is None fails
    for name in NAMES:
        delattr(signal, name)

    import weightdecay
    from weightdecay.cli import main

    for module in pkgutil.walk_packages(weightdecay.__path__, "weightdecay."):
        if module.name != "weightdecay.__main__" and not module.name.startswith("weightdecay.integrations."):
            importlib.import_module(module.name)
    model = torch.nn.Linear(4, 4)
    optimizer = torch.optim.AdamW(weightdecay.plan(model, weight_decay=0.1).param_groups(lr=1e-3))
    assert weightdecay.audit(model, optimizer).ok
    main(["recipes"])


def test_the_library_and_the_command_start_without_the_modules_of_posix(forks: ForkServer) -> None:
    process = forks.call(begin_without_posix)
    said, _ = process.communicate()
    assert process.returncode == 0, said
    assert "llama2" in said
