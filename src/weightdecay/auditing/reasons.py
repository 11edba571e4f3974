"""What a finding says: its title, by how much, and why it matters, with who has shown that and how sure it is.

Behind a source stands how it is known: read in the paper or its code, derived, computed here, or read in a thread.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from weightdecay.auditing.asking import Asked
from weightdecay.auditing.judging import Judgement
from weightdecay.auditing.probed import Probe
from weightdecay.auditing.scales import Scale
from weightdecay.errors import WeightDecayError
from weightdecay.optim.convert import convert
from weightdecay.planning.policies.opinions import consequence, opinion
from weightdecay.planning.roles.roles import Role


@dataclass(frozen=True)
class Circumstances:
    """What titles and reasons speak of.

    Attributes:
        asked: of each tensor, by name.
        scales: of each group, by (optimizer, group).
        policy: the name of what decides who is exempt.
        strangers: how many tensors of the optimizers are no tensors of the model.
    """

    probe: Probe
    asked: Mapping[str, Asked]
    scales: Mapping[tuple[int, int], Scale]
    policy: str
    policy_is_given: bool
    strangers: int


_SHOWN = 4  # tables in one sentence
_L_AND_H = "Loshchilov & Hutter 2019, arXiv:1711.05101 [read]"
_COMPUTED = "torch 2.13 on a CPU [computed]"

# why it matters, and who says so
_WHY: dict[str, tuple[str, str]] = {
    "not-decaying": (
        (
            "without decay norms grow and the effective learning rate falls through training; nothing in the loss "
            "curve says why"
        ),
        "D'Angelo et al. 2023, arXiv:2310.04415 [read]; tinygrad #17709, whose test was too coarse [thread]",
    ),
    "lost-to-rounding": (
        (
            "weights of 8 bits take up a step of lr·λ only from 2⁻⁹ = 0.002 on, and float32 from 3e-8 on: below, every "
            "step is rounded away, however many there are"
        ),
        _COMPUTED,
    ),
    "decays-twice": (
        (
            "the norm at equilibrium goes with √(lr/λ), and the memory of the run with 1/(lr·λ): both are those of "
            "another λ"
        ),
        "Kosson et al. 2023, arXiv:2305.17212 [read]",
    ),
    "coupled": (
        (
            "λ·w goes through the moments and is divided by √v: what decays depends on the gradients' size, least "
            "where they are largest, and no λ of AdamW does the same"
        ),
        f"{_L_AND_H}, prop. 2",
    ),
    "decoupled": (
        "a λ that was tuned for Adam with L2 means another decay here, by the size of the gradients",
        f"{_L_AND_H}, prop. 2",
    ),
    "missing": (
        "what no optimizer holds neither trains nor decays, and the loss falls all the same: the rest learns around it",
        "HVPNeT #5 [thread]",
    ),
    "doubled": (
        "each step moves and decays it as often as it is held",
        "veGiantModel #6 [thread]; torch refuses it at construction alone",
    ),
    "stale": (
        (
            "load_state_dict puts the saved λ and lr of every group in place of those just asked for, and schedulers "
            "write into groups"
        ),
        "Megatron-LM #7468 and NeMo Automodel #3882 [thread]",
    ),
    "wrong-scale": (
        "with one lr or one peak for all, a group at ten times the lr decays ten times too much, or too little",
        "timm@29993ff adamw.py and optimi@0060dd9 optimizer.py [read]",
    ),
    "ignored-key": ("nothing fails where nobody reads a key", "timm #2532 [thread]"),
    "idle-decay": (
        "a gradient of zero is a gradient: what is not used shrinks by lr·λ a step; a gradient of None leaves it alone",
        "diffusers #1009 and KellerJordan/Muon #54 [thread]",
    ),
    "wrong-order": (
        "the update shrinks along with the weights, by a part of lr·λ of itself; torch decays first",
        "bitsandbytes #2010 [thread]",
    ),
    "by-design": ("norms are held by something else, and λ has nothing to do", "arXiv:2606.16899 [abstract]"),
    "opaque": (
        (
            "what cannot be seen cannot be vouched for: audit where a step can be made without a closure, or compare "
            "the weights after a step at weight_decay 0 by hand"
        ),
        "",
    ),
}


# (for one tensor, for several); `{what}` is its name or their number
_TITLES: dict[str, tuple[str, str]] = {
    "not-decaying": (
        "{what} asks for decay, and the step takes less than half of it",
        "{what} ask for decay, and the step takes less than half of it",
    ),
    "growing": ("{what} grows by its decay: the sign is wrong", "{what} grow by their decay: the sign is wrong"),
    "lost-to-rounding": (
        "{what} asks for decay that {about} rounds away",
        "{what} ask for decay that {about} rounds away",
    ),
    "decays-twice": ("{what} decays more than once in a step", "{what} decay more than once in a step"),
    "coupled": (
        "λ of {what} goes through the gradient of an adaptive optimizer",
        "λ of {what} goes through the gradient of an adaptive optimizer",
    ),
    "coupled sgd": ("λ of {what} goes through the gradient", "λ of {what} goes through the gradient"),
    "decoupled": (
        "{what} decays beside the gradient, where L2 is wanted or named",
        "{what} decay beside the gradient, where L2 is wanted or named",
    ),
    "decays-exempt": (
        "{what} decays, and policy '{policy}' exempts it",
        "{what} decay, and policy '{policy}' exempts them",
    ),
    "unasked": ("{what} decays, and no decay was asked for", "{what} decay, and no decay was asked for"),
    "exempt-matrix": (
        "{what} does not decay, and by policy '{policy}' it does",
        "{what} do not decay, and by policy '{policy}' they do",
    ),
    "missing": ("{what} is in no optimizer", "{what} are in no optimizer"),
    "doubled": ("{what} stands in {about} more than once", "{what} stand in {about} more than once"),
    "stale": ("{about} of {what} is {own} and not {told}", "{about} of {what} is {own} and not {told}"),
    "wrong-scale": (
        "the decay of {what} does not follow its own lr and peak",
        "the decay of {what} does not follow their own lr and peak",
    ),
    "foreign": ("λ of {what} means a decay per step of {formula}", "λ of {what} means a decay per step of {formula}"),
    "ignored-key": ("nobody reads '{about}' of {what}", "nobody reads '{about}' of {what}"),
    "rows": ("rows of {what} that had no gradient decay", "rows of {what} that had no gradient decay"),
    "idle-decay": ("{what} had no gradient and decays", "{what} had no gradient and decay"),
    "wrong-order": ("{what} decays after the update", "{what} decay after the update"),
    "nobody asks": ("no decay anywhere, and nobody asks for any", "no decay anywhere, and nobody asks for any"),
    "by-design": (
        "{what} is normalised after each step, which undoes the decay",
        "{what} are normalised after each step, which undoes the decay",
    ),
    "opaque": ("{what} could not be probed", "{what} could not be probed"),
}


def title_of(ones: Sequence[Judgement], names: Sequence[str], circumstances: Circumstances) -> str:
    """One line of what is wrong."""
    first = ones[0]
    numbers = [one.numbers for one in ones if one.numbers is not None]
    one, several = _TITLES[_kind(first, circumstances)]
    scale = circumstances.scales.get((first.optimizer, first.group))
    template = one if len(names) == 1 else several
    return template.format(
        what=names[0] if len(names) == 1 else f"{len(names)} tensors",
        about=first.about,
        policy=circumstances.policy,
        formula="" if scale is None else formula(scale),
        own=_range([own for own, _ in numbers]),
        told=_range([told for _, told in numbers]),
    )


def _range(values: Sequence[float]) -> str:
    """`0.1`, or `0.01 to 0.1`."""
    shown = dict.fromkeys(f"{value:g}" for value in sorted(values))
    return " to ".join(list(shown)[:: max(len(shown) - 1, 1)])


def _kind(first: Judgement, circumstances: Circumstances) -> str:
    """Which of the titles: that of its code, or of what is special about it."""
    if first.code == "coupled" and first.severity == "note":
        return "coupled sgd"
    if first.code == "wrong-scale" and first.severity == "note":
        return "foreign"
    if first.code == "decays-exempt" and first.severity == "error" and not circumstances.policy_is_given:
        return "unasked"
    return first.about if first.about in ("growing", "rows", "nobody asks") else first.code


def formula(scale: Scale) -> str:
    """`λ·lr²/peak`."""
    rule = scale.rule
    power = {0: "", 1: "·lr", 2: "·lr²"}.get(int(rule.lr_power), f"·lr^{rule.lr_power:g}")
    return f"λ{power}{'/peak' if rule.peak_power else ''}"


def detail_of(
    first: Judgement,
    ones: Sequence[Judgement],
    asked: float | None,
    realised: float | None,
    circumstances: Circumstances,
    over_run: tuple[float, float] | None,
) -> str:
    """By how much, per step and over the planned run."""
    said = []
    if first.code == "opaque":
        said.append(first.about)
    if asked is not None and realised is not None and first.code != "missing":
        times = f" ({realised / asked:.3g} times)" if asked else ""
        said.append(f"per step {asked:.3g} asked, {realised:.3g} done{times}")
    if over_run is not None:
        said.append(_of_run(first, over_run, realised / asked if asked and realised is not None else None))
    if first.code == "missing" and circumstances.strangers:
        said.append(
            f"the optimizers hold {circumstances.strangers} tensors that are not the model's: of a copy, or from "
            "before it was wrapped, moved or changed"
        )
    if first.code in ("decays-exempt", "exempt-matrix"):
        said.append(_roles(ones, circumstances))
    if first.code == "decays-twice" and (hooks := _hooks(ones, circumstances)):
        said.append(f"beside the step run: {hooks}")
    if first.code == "idle-decay":
        said.append(_idle_rows(ones, circumstances))
    if first.code == "wrong-order" and asked:
        said.append(f"each update is {asked:.2g} of itself smaller")
    if first.code == "wrong-scale" and first.severity == "note":
        said.append(_converted(first, circumstances))
    return "; ".join(part for part in said if part)


def _of_run(first: Judgement, over_run: tuple[float, float], ratio: float | None) -> str:
    """Σ a_t: what is asked for, and what comes of it where each step does the same."""
    total, part = over_run
    if first.code == "decays-exempt":
        return f"over the run Σ a = {total:.3g} is done, {part:.0%} of a weight"
    asked = f"over the run Σ a = {total:.3g} is asked, {part:.0%} of a weight"
    if ratio is None or first.code in ("coupled", "decoupled"):
        return asked
    return f"{asked}, and {max(total * ratio, 0.0):.3g} is done"


def _idle_rows(ones: Sequence[Judgement], circumstances: Circumstances) -> str:
    """How many rows of which tables had no gradient."""
    places = {(one.optimizer, one.group, one.name) for one in ones if one.about == "rows"}
    rows = [t for t in circumstances.probe.tensors if (t.optimizer, t.group, t.name) in places]
    return ", ".join(f"{t.idle_rows:,} of {t.shape[0]:,} rows of {t.name}" for t in rows[:_SHOWN])


def _roles(ones: Sequence[Judgement], circumstances: Circumstances) -> str:
    known = (circumstances.asked.get(one.name) for one in ones)
    roles = Counter(asked.role for asked in known if asked is not None and asked.role is not None)
    return ", ".join(f"{count} × {role}" for role, count in roles.most_common())


def _hooks(ones: Sequence[Judgement], circumstances: Circumstances) -> str:
    places = dict.fromkeys(one.optimizer for one in ones)
    return ", ".join(hook for place in places for hook in circumstances.probe.optimizers[place].hooks)


def _converted(first: Judgement, circumstances: Circumstances) -> str:
    """What λ is called elsewhere."""
    scale = circumstances.scales[first.optimizer, first.group]
    group = next(
        (g for g in circumstances.probe.groups if (g.optimizer, g.group) == (first.optimizer, first.group)), None
    )
    if group is None or not scale.peak or not group.weight_decay:
        return ""
    try:
        there = convert(group.weight_decay, source=scale.rule, target="torch", lr=scale.peak)
    except WeightDecayError:
        return ""
    return f"λ {group.weight_decay:g} at a peak lr of {scale.peak:g} is {there:.3g} in torch.optim.AdamW"


def why_of(first: Judgement, ones: Sequence[Judgement], circumstances: Circumstances) -> tuple[str, str]:
    """Why it matters, and where that is shown."""
    if first.code not in ("decays-exempt", "exempt-matrix"):
        return ("", "") if first.about == "nobody asks" else _WHY[first.code]
    said: dict[str, None] = {}
    for one in ones:
        asked = circumstances.asked.get(one.name)
        if asked is None or asked.role is None:
            continue
        differ = opinion(asked.role, asked.norm)
        said.setdefault(str(differ) if differ is not None else _consequence(asked.role))
    return "; ".join(filter(None, said)), ""


def _consequence(role: Role) -> str:
    found = consequence(role)
    return f"{role}: {found}" if found else ""
