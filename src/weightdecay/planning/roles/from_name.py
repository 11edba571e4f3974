"""Roles from names and shapes: the habits of the field, where nothing could be traced, and where use leaves a choice.

A verdict says that it rests on them. What a name says must fit the shape, and the other way round: a small or square
table of which nothing but its shape is known may be anything, and is unknown.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace

from weightdecay.planning.evidence.tensors import Site, TensorFacts
from weightdecay.planning.evidence.uses import LOOKUPS
from weightdecay.planning.roles.from_use import rows_and_columns
from weightdecay.planning.roles.roles import DECAYING, ByName, ByShape, NameHow, Role, Strength, Verdict

# (pattern in the attribute's or owner's name, role); the first that is found decides
_HABITS: tuple[tuple[re.Pattern[str], Role], ...] = tuple(
    (re.compile(pattern), role)
    for pattern, role in (
        (r"relative|(^|_)rel(_|$)|distance_emb", Role.RELATIVE_POSITION),
        (r"bias|beta$|^b\d?$|_b\d?$", Role.BIAS),
        (r"a_log|dt_bias|^d$|^a$|ssm|dt_proj_scale", Role.STATE_SPACE),
        (r"time_(mix|maa|decay|first|faaaa)|^mix_|^x_[rwkvag]$|miu", Role.TIME_MIX),
        (r"norm|gamma|^g$|_gain$|^gain$", Role.NORM_GAIN),
        (r"gate$", Role.ROUTER),
        (r"scale|alpha|temperature|tau$|logit|gate_?(attn|mlp|ffn|ffd)?$|sinks?$|lambda", Role.SCALE),
        (r"gammas$|residual|multiplier|slope", Role.SCALE),
        (r"pos(ition)?(al)?_?emb|^wpe|^pos|position", Role.POSITION_EMBEDDING),
        (r"tokens?$|quer(y|ies)$|cls|latents?(_\d+d)?$|prompts?$|probe$|registers?$", Role.LEARNED_TOKEN),
        (r"prototype|mask_emb|no_obj", Role.LEARNED_TOKEN),
        (r"newline|separator|_(begin|end|sep)$", Role.LEARNED_TOKEN),
        (r"lora_a", Role.LORA_A),
        (r"lora_b", Role.LORA_B),
        (r"router|gate_weight|topk", Role.ROUTER),
        (r"emb|codebook|lookup", Role.EMBEDDING),
        (r"expert|gate_up|gate_proj|up_proj|down_proj|^w[123]$", Role.EXPERT_STACK),
        (r"weight|kernel|matrix|proj|^w", Role.LINEAR),
    )
)  # fmt: skip
# what a name may make of a table that use or type has found
_NAMED_TABLES: dict[Role, frozenset[Role]] = {
    Role.EMBEDDING: frozenset({Role.POSITION_EMBEDDING, Role.RELATIVE_POSITION, Role.SINUSOIDAL_TABLE}),
    Role.POSITION_EMBEDDING: frozenset(
        {Role.EMBEDDING, Role.RELATIVE_POSITION, Role.SINUSOIDAL_TABLE, Role.BIAS, Role.SCALE, Role.LEARNED_TOKEN}
    ),
    Role.RELATIVE_POSITION: frozenset({Role.POSITION_EMBEDDING, Role.BIAS, Role.SCALE, Role.LEARNED_TOKEN}),
    Role.BIAS: frozenset({Role.POSITION_EMBEDDING, Role.RELATIVE_POSITION, Role.SCALE, Role.LEARNED_TOKEN}),
    Role.LINEAR: frozenset({Role.RELATIVE_POSITION}),
}
_QUERIES = re.compile(r"quer(y|ies)|latent")
_TOKENS = re.compile(r"^(?!.*emb).*_tokens?$")
# several of something that a layer then reads, in attributes of the author's own; `query` alone may be a matrix
_LEARNED_INPUTS = re.compile(r"(^|_)(queries|latents|prompts?|registers)$|(^|_)(latent|prompt|query)_tokens?$")
# factors of covariances that a variational posterior learns: they start as the identity
_COVARIANCE = re.compile(r"chol|covar|precision_(matrix|factor)")
_CODEBOOK = re.compile(r"codebook|^(embed|embeds|embedding|embeddings)$|vocab")
_FEW_TOKENS = 64  # rows: a vocabulary has more
_OWNER_NORM = re.compile(r"norm|(^|_)ln(_|\d|$)", re.IGNORECASE)
_OWNER_STATE_SPACE = re.compile(r"ssm|mamba|s4|s5|s6|state.?space|selective", re.IGNORECASE)
_ADAPTERS = {
    "lora_a": Role.LORA_A, "lora_b": Role.LORA_B, "lora_embedding_a": Role.LORA_A, "lora_embedding_b": Role.LORA_B,
}  # fmt: skip
_GAINS = re.compile(r"(^|_)(scales?|gains?|gamma|temperature|sinks?)$")  # names that matrices do not have
_HEAD = re.compile(r"head|output|unembed|embed_out|logits|decoder\.weight")
_ROUTER = re.compile(r"router|^gate |^wg |topk", re.IGNORECASE)
_SMALLEST_MATRIX = 64  # rows and columns below which a shape says nothing: modulation tables and mixes are smaller


def by_names(tensors: Sequence[TensorFacts], known: Sequence[Sequence[Verdict | None]]) -> list[list[Verdict]]:
    """A verdict for every site: what is known of it, or its name or shape says; names settle what that leaves open."""
    vocabularies = {facts.shape[0] for facts in tensors for site in facts.sites if "Embedding" in site.bases}
    widths = _widths(tensors, known)
    found = [
        [
            _settled(verdict or _by_name(site, facts) or _by_shape(facts, widths), site, facts, vocabularies)
            for site, verdict in zip(facts.sites, verdicts, strict=True)
        ]
        for facts, verdicts in zip(tensors, known, strict=True)
    ]
    _choose_routers(tensors, found, widths)
    return found


def _choose_routers(tensors: Sequence[TensorFacts], found: list[list[Verdict]], widths: AbstractSet[int]) -> None:
    """A module that holds one row of the model's width for each matrix of a stack beside it chooses among them."""
    stacks = {
        (facts.shape[0], facts.name)
        for facts, verdicts in zip(tensors, found, strict=True)
        if verdicts[0].role is Role.EXPERT_STACK
    }
    for facts, verdicts in zip(tensors, found, strict=True) if stacks else ():
        if verdicts[0].role is not Role.UNKNOWN or not isinstance(verdicts[0].source, ByShape):
            continue
        owner = facts.name.rpartition(".")[0]
        around = f"{owner.rpartition('.')[0]}."
        beside = {count for count, name in stacks if name.startswith(around) and not name.startswith(f"{owner}.")}
        if len(facts.shape) == 2 and facts.shape[0] in beside and facts.shape[1] in widths:
            verdicts[0] = replace(verdicts[0], role=Role.ROUTER)


def _settled(verdict: Verdict, site: Site, facts: TensorFacts, vocabularies: AbstractSet[int]) -> Verdict:
    if verdict.role is Role.NORM_GAIN:
        return verdict
    verdict = _kind_of_table(verdict, site, facts)
    return _kind_of_matrix(verdict, site, facts, vocabularies) if verdict.role is Role.LINEAR else verdict


def _kind_of_table(verdict: Verdict, site: Site, facts: TensorFacts) -> Verdict:
    """Which table it is: sums and look-ups of positions, distances, biases and queries are alike, so names may tell."""
    may_be = _NAMED_TABLES.get(verdict.role, frozenset())
    if verdict.role is Role.LEARNED_TOKEN and not site.is_torchs and _CODEBOOK.search(site.attribute.lower()):
        return replace(verdict, role=Role.EMBEDDING, settled_by=("named", site.attribute))
    if not may_be or len(rows_and_columns(facts.shape)) < 2 or verdict.strength < Strength.TYPE:
        return verdict

    is_module = site.attribute == "weight" and "Embedding" in site.bases
    name = _parent(site.name).lower() if is_module else site.attribute.lower()
    named = _habit(name)
    are_tokens = _QUERIES.search(name) or (_TOKENS.search(name) and facts.shape[0] <= _FEW_TOKENS)
    if is_module and are_tokens and not _is_looked_up(facts):
        named, may_be = Role.LEARNED_TOKEN, may_be | {Role.LEARNED_TOKEN}
    if re.search("sinus", site.owner, re.IGNORECASE):
        named = Role.SINUSOIDAL_TABLE
    if named is None or named is verdict.role or named not in may_be:
        return verdict
    return replace(verdict, role=named, settled_by=("named", name))


def _is_looked_up(facts: TensorFacts) -> bool:
    """Whether the input was seen to choose rows."""
    return any(use.operation in LOOKUPS and use.partner != "constant" for use in facts.uses or ())


def _kind_of_matrix(verdict: Verdict, site: Site, facts: TensorFacts, vocabularies: AbstractSet[int]) -> Verdict:
    """Which matrix it is: adapters, routers and output heads are called so, or are tied to an embedding."""
    path = site.name.split(".")
    adapter = next((role for part, role in _ADAPTERS.items() if part in site.name.lower().split(".")), None)
    if adapter is not None:
        return replace(verdict, role=adapter, settled_by=("adapter", ""))
    if not site.is_torchs and _LEARNED_INPUTS.search(site.attribute.lower()):
        return replace(verdict, role=Role.LEARNED_TOKEN, settled_by=("named", site.attribute))
    if not site.is_torchs and _COVARIANCE.search(site.attribute.lower()):
        return replace(verdict, role=Role.SCALE, settled_by=("named", site.attribute))
    if any("Embedding" in other.bases for other in facts.sites):
        return replace(verdict, role=Role.OUTPUT_HEAD, settled_by=("tied", ""))
    if len(path) < 4 and facts.shape[0] in vocabularies and _HEAD.search(site.name):
        return replace(verdict, role=Role.OUTPUT_HEAD, settled_by=("head", ""))
    if _ROUTER.search(f"{_parent(site.name)} {site.owner}") and facts.shape[0] < facts.shape[-1]:
        return replace(verdict, role=Role.ROUTER, settled_by=("router", ""))
    return verdict


def _by_name(site: Site, facts: TensorFacts) -> Verdict | None:
    """The verdict by the habits of naming, checked against the shape: a matrix is no gain, a vector no table."""
    attribute = site.attribute.lower()
    vector = len(rows_and_columns(facts.shape)) < 2
    owner = site.owner or _parent(site.name)
    if attribute in ("weight", "scale", "w", "g") and vector and _OWNER_NORM.search(owner):
        return _named(Role.NORM_GAIN, site, facts, "norm")
    if re.search(r"sin(usoid|cos)", f"{owner} {attribute}", re.IGNORECASE) and not vector:
        return _named(Role.SINUSOIDAL_TABLE, site, facts, "sinusoidal")

    misfit = False
    for pattern, habit in _HABITS:
        role = Role.LEARNED_TOKEN if vector and habit in (Role.EMBEDDING, Role.POSITION_EMBEDDING) else habit
        if not pattern.search(attribute):
            continue
        if _fits(role, facts.shape, owner, attribute) or _GAINS.search(attribute):
            # A name of scales on what is no scale: whatever else the name may say, it is not to be trusted.
            return _named(Role.UNKNOWN if misfit else role, site, facts, "misfit" if misfit else "habit")
        misfit = misfit or role not in DECAYING
    if misfit:
        return _named(Role.UNKNOWN, site, facts, "misfit")
    return _table_or_matrix(site, facts) if attribute == "weight" and not site.owner else None


def _named(role: Role, site: Site, facts: TensorFacts, how: NameHow) -> Verdict:
    source = ByName(site.name if how == "path" else site.attribute, site.owner or _parent(site.name), facts.shape, how)
    return Verdict(role, Strength.NAME, source)


def _habit(name: str) -> Role | None:
    """What a name alone suggests."""
    return next((role for pattern, role in _HABITS if pattern.search(name)), None)


def _table_or_matrix(site: Site, facts: TensorFacts) -> Verdict | None:
    if len(rows_and_columns(facts.shape)) < 2:
        return None
    role = Role.EMBEDDING if re.search(r"emb|wte|wpe", _parent(site.name).lower()) else Role.LINEAR
    return _named(role, site, facts, "path")


def _parent(name: str) -> str:
    return name.rpartition(".")[0].rpartition(".")[2]


def _fits(role: Role, shape: tuple[int, ...], owner: str, attribute: str) -> bool:
    effective = len(rows_and_columns(shape))
    if role in (Role.NORM_GAIN, Role.SCALE):
        return effective < 2
    if role is Role.STATE_SPACE and effective > 1:
        return _OWNER_STATE_SPACE.search(owner) is not None
    if role is Role.BIAS and effective > 1:
        return attribute != "b"  # the matrix of a pair, A and B, as likely
    if role is Role.EXPERT_STACK:
        return effective > 2
    if role is Role.ROUTER and attribute.endswith("_gate"):  # what is this small may be the gates themselves
        return effective >= 2 and min(shape[-2:]) >= _SMALLEST_MATRIX
    if role in (Role.EMBEDDING, Role.POSITION_EMBEDDING, Role.ROUTER, Role.LINEAR):
        return effective >= 2
    return True


def _widths(tensors: Sequence[TensorFacts], known: Sequence[Sequence[Verdict | None]]) -> set[int]:
    """How wide the model's streams are: sizes that several matrices of which more is known have in common."""
    count: Counter[int] = Counter()
    for facts, verdicts in zip(tensors, known, strict=True):
        if len(facts.shape) == 2 and any(verdict is not None and verdict.role in DECAYING for verdict in verdicts):
            count.update({*facts.shape})
    return {size for size, matrices in count.items() if matrices > 1 and size > 1}


def _by_shape(facts: TensorFacts, widths: AbstractSet[int]) -> Verdict:
    """The last resort: vectors do not decay, large matrices do; what is small or square is left unknown.

    Small is what is narrower than a usual model, and leads from none of this model's widths to another.
    """
    effective = rows_and_columns(facts.shape)
    role = Role.SCALE
    if len(effective) > 1:
        rows, columns = effective[-2:]
        is_stack = len(effective) > 2
        # Of experts a gate and what it gates are often one matrix, twice as wide.
        joined = {2 * width for width in widths} if is_stack and not widths.isdisjoint((rows, columns)) else set()
        is_small = min(rows, columns) < _SMALLEST_MATRIX and not {rows, columns} <= widths | joined
        # One square table may hold a covariance or distances; of many squares nothing else is known than a stack.
        is_unclear = is_small or (rows == columns and not is_stack)
        role = Role.UNKNOWN if is_unclear else Role.EXPERT_STACK if is_stack else Role.LINEAR
    return Verdict(role, Strength.SHAPE, ByShape(facts.shape))
