"""An optimizer's state and settings by the names of its parameters: saved, compared, loaded, and taken from others.

In come an optimizer and its model; out come tensors for safetensors and settings for JSON, and back. Open first:

    by_name.py    `state_by_name` and `load_state_by_name`, side by side
    settings.py   `settings_by_name`, `changes`, and how far each group had come
    values.py     all that is no tensor's state, as JSON
    names.py      which tensor is which, and what it was called before
    tree.py       nested state under flat names
    expected.py   which state an optimizer keeps, and what cannot be its
    migrate.py    `from_positional`: checkpoints of other programs
"""

from __future__ import annotations

from weightdecay.optim.state.by_name import OnChange, load_state_by_name, state_by_name
from weightdecay.optim.state.migrate import Layout, from_positional, positional_names
from weightdecay.optim.state.names import Names
from weightdecay.optim.state.settings import Change, Settings, changes, describe, settings_by_name

__all__ = [
    "Change",
    "Layout",
    "Names",
    "OnChange",
    "Settings",
    "changes",
    "describe",
    "from_positional",
    "load_state_by_name",
    "positional_names",
    "settings_by_name",
    "state_by_name",
]
