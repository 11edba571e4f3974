"""How a step decays: the rules by name, and `Rule` for one of your own: `from weightdecay.rules import Rule`."""

from weightdecay.optim.rules import (
    CAUTIOUS,
    CORRECTED,
    DECOUPLED,
    FIXED,
    INDEPENDENT,
    L2,
    LR_SQUARED,
    RULES,
    TOWARDS_INITIAL,
    TOWARDS_ONE,
    Rule,
    RuleLike,
    RuleName,
    as_rule,
    group_decay_per_step,
)

__all__ = [
    "CAUTIOUS",
    "CORRECTED",
    "DECOUPLED",
    "FIXED",
    "INDEPENDENT",
    "L2",
    "LR_SQUARED",
    "RULES",
    "TOWARDS_INITIAL",
    "TOWARDS_ONE",
    "Rule",
    "RuleLike",
    "RuleName",
    "as_rule",
    "group_decay_per_step",
]
