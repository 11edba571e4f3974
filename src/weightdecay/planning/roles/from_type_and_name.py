"""Verdicts from what stands in the module tree: the owner's torch type, the names, the shape.

The torch type decides for torch's own modules. Names and shapes serve where nothing could be traced: they are the
habits of the field, and the verdict says that it rests on them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Set as AbstractSet
from dataclasses import replace

from weightdecay.planning.evidence.recorder import LOOKUPS, Use
from weightdecay.planning.evidence.tensors import Site, TensorFacts
from weightdecay.planning.roles.roles import Role, Strength, Verdict

_NORMS = frozenset({
    "LayerNorm", "RMSNorm", "GroupNorm", "BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm",
    "InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d", "LocalResponseNorm",
})  # fmt: skip
_LINEARS = frozenset({"Linear", "Bilinear", "NonDynamicallyQuantizableLinear"})
_CONVOLUTIONS = frozenset(f"Conv{transposed}{d}d" for transposed in ("", "Transpose") for d in (1, 2, 3))
_RECURRENT = frozenset({"RNNBase", "RNNCellBase"})
_TABLES = frozenset({"Embedding", "EmbeddingBag"})

# (pattern in the attribute's or owner's name, role); the first that is found decides
_ATTRIBUTE_HABITS: tuple[tuple[re.Pattern[str], Role], ...] = tuple(
    (re.compile(pattern), role)
    for pattern, role in (
        (r"relative|(^|_)rel(_|$)|distance_emb", Role.RELATIVE_POSITION),
        (r"bias|beta$|^b\d?$|_b\d?$", Role.BIAS),
        (r"a_log|dt_bias|^d$|^a$|ssm|dt_proj_scale", Role.STATE_SPACE),
        (r"time_(mix|maa|decay|first|faaaa)|^mix_|^x_[rwkvag]$|miu", Role.TIME_MIX),
        (r"norm|gamma|^g$|_gain$|^gain$", Role.NORM_GAIN),
        (r"scale|alpha|temperature|tau$|logit|gate_?(attn|mlp|ffn|ffd)?$|sinks?$|lambda", Role.SCALE),
        (r"gammas$|residual|multiplier|slope", Role.SCALE),
        (r"pos(ition)?(al)?_?emb|^wpe|^pos|position", Role.POSITION_EMBEDDING),
        (r"tokens?$|quer(y|ies)$|cls|latents?(_\d+d)?$|prompts?$|probe$|registers?$", Role.LEARNED_TOKEN),
        (r"prototype|mask_emb|no_obj", Role.LEARNED_TOKEN),
        (r"newline|separator|_(begin|end|sep)$", Role.LEARNED_TOKEN),
        (r"lora_a", Role.LORA_A),
        (r"lora_b", Role.LORA_B),
        (r"router|^gate$|gate_weight|topk", Role.ROUTER),
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
_FEW_TOKENS = 64  # rows: a vocabulary has more
_OWNER_NORM = re.compile(r"norm|(^|_)ln(_|\d|$)", re.IGNORECASE)
_ADAPTERS = {"lora_a": Role.LORA_A, "lora_b": Role.LORA_B}
_GAINS = re.compile(r"(^|_)(scales?|gains?|gamma|temperature|sinks?)$")  # names that matrices do not have
_HEAD = re.compile(r"head|output|unembed|embed_out|logits|decoder\.weight")
_ROUTER = re.compile(r"router|^gate |^wg |topk", re.IGNORECASE)
_SMALLEST_MATRIX = 4  # rows and columns below which a shape says nothing


def rows_and_columns(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape without the axes of length 1, which only serve to broadcast."""
    return tuple(size for size in shape if size != 1)


def by_torch_type(site: Site, facts: TensorFacts) -> Verdict | None:
    """The verdict for a parameter that one of torch's own modules registered."""
    bases, attribute = frozenset(site.bases), site.attribute
    role: Role | None = None
    if attribute.startswith("bias") and (bases - {"ModuleList", "ModuleDict", "Sequential"}):
        role = Role.BIAS
    elif "ParametrizationList" in bases:
        role = _parametrized(site, facts)
    elif attribute in ("weight_g", "weight_v") and bases:
        role = Role.WEIGHT_NORM_GAIN if attribute == "weight_g" else Role.WEIGHT_NORM_DIRECTION
    elif bases & _RECURRENT and attribute.startswith("weight"):
        role = Role.RECURRENT
    elif "MultiheadAttention" in bases and attribute.endswith("proj_weight"):
        role = Role.ATTENTION_IN_PROJECTION
    elif attribute == "weight":
        role = _weight_of(bases, facts.shape)
    if role is None:
        return None
    kind = next((base for base in site.bases if base not in ("Module",)), site.owner)
    owner = site.owner if kind == site.owner else f"{site.owner}, a torch.nn.{kind}"
    return Verdict(role, f"`{attribute}` of {owner}", Strength.TYPE)


def _weight_of(bases: frozenset[str], shape: tuple[int, ...]) -> Role | None:
    if bases & _NORMS:
        return Role.NORM_GAIN
    if bases & _LINEARS:
        return Role.LINEAR
    if bases & _CONVOLUTIONS:
        return Role.CONVOLUTION
    if bases & _TABLES:
        return Role.EMBEDDING if shape[0] > 1 else Role.LEARNED_TOKEN
    if "PReLU" in bases:
        return Role.SCALE
    return None


def kind_of_table(verdict: Verdict, site: Site, facts: TensorFacts) -> Verdict:
    """Which table it is: sums and look-ups of positions, distances, biases and queries are alike, so names may tell."""
    may_be = _NAMED_TABLES.get(verdict.role, frozenset())
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
    return replace(verdict, role=named, evidence=f"{verdict.evidence}, named `{name}`")


def _is_looked_up(facts: TensorFacts) -> bool:
    """Whether the input was seen to choose rows."""
    uses = [Use.parse(text) for text in facts.uses or ()]
    return any(use.operation in LOOKUPS and use.partner != "constant" for use in uses)


def kind_of_matrix(verdict: Verdict, site: Site, facts: TensorFacts, vocabularies: AbstractSet[int]) -> Verdict:
    """Which matrix it is: adapters, routers and output heads are called so, or are tied to an embedding."""
    path = site.name.split(".")
    adapter = next((role for part, role in _ADAPTERS.items() if part in site.name.lower().split(".")), None)
    role, why = verdict.role, ""
    if adapter:
        role, why = adapter, ", under the name of an adapter"
    elif any("Embedding" in other.bases for other in facts.sites):
        role, why = Role.OUTPUT_HEAD, ", tied to the embedding"
    elif len(path) < 4 and facts.shape[0] in vocabularies and _HEAD.search(site.name):
        role, why = Role.OUTPUT_HEAD, ": one row per token, and named so"
    elif _ROUTER.search(f"{_parent(site.name)} {site.owner}") and facts.shape[0] < facts.shape[-1]:
        role, why = Role.ROUTER, ", named a router"
    return replace(verdict, role=role, evidence=f"{verdict.evidence}{why}")


def _parametrized(site: Site, facts: TensorFacts) -> Role:
    """`original0`/`original1` of torch's weight norm; any other parametrisation keeps its tensor's own job."""
    if site.attribute == "original0":
        return Role.WEIGHT_NORM_GAIN
    if site.attribute == "original1":
        return Role.WEIGHT_NORM_DIRECTION
    target = site.name.split(".")[-2]
    if target.startswith("bias") or len(rows_and_columns(facts.shape)) < 2:
        return Role.BIAS
    return Role.CONVOLUTION if len(facts.shape) > 2 else Role.LINEAR


def by_name(site: Site, facts: TensorFacts) -> Verdict | None:
    """The verdict by the habits of naming, checked against the shape: a matrix is no gain, a vector no table."""
    attribute = site.attribute.lower()
    vector = len(rows_and_columns(facts.shape)) < 2
    owner = site.owner or _parent(site.name)
    if attribute in ("weight", "scale", "w", "g") and vector and _OWNER_NORM.search(owner):
        return Verdict(Role.NORM_GAIN, f"`{site.attribute}` of {owner}: a vector in a norm, by its name", Strength.NAME)
    if re.search(r"sin(usoid|cos)", f"{owner} {attribute}", re.IGNORECASE) and not vector:
        return Verdict(Role.SINUSOIDAL_TABLE, f"`{site.attribute}` of {owner}: sinusoidal, by its name", Strength.NAME)
    for pattern, habit in _ATTRIBUTE_HABITS:
        role = Role.LEARNED_TOKEN if vector and habit in (Role.EMBEDDING, Role.POSITION_EMBEDDING) else habit
        if pattern.search(attribute) and (_fits(role, facts.shape) or _GAINS.search(attribute)):
            return Verdict(role, f"named `{site.attribute}`, shape {list(facts.shape)}", Strength.NAME)
    if attribute == "weight" and not site.owner:
        return _table_or_matrix(site, facts)
    return None


def _habit(name: str) -> Role | None:
    """What a name alone suggests."""
    return next((role for pattern, role in _ATTRIBUTE_HABITS if pattern.search(name)), None)


def _table_or_matrix(site: Site, facts: TensorFacts) -> Verdict | None:
    parent = _parent(site.name).lower()
    if len(rows_and_columns(facts.shape)) < 2:
        return None
    role = Role.EMBEDDING if re.search(r"emb|wte|wpe", parent) else Role.LINEAR
    return Verdict(role, f"named `{site.name}`, shape {list(facts.shape)}", Strength.NAME)


def _parent(name: str) -> str:
    return name.rpartition(".")[0].rpartition(".")[2]


def _fits(role: Role, shape: tuple[int, ...]) -> bool:
    effective = len(rows_and_columns(shape))
    if role in (Role.NORM_GAIN, Role.SCALE):
        return effective < 2
    if role is Role.EXPERT_STACK:
        return effective > 2
    if role in (Role.EMBEDDING, Role.POSITION_EMBEDDING, Role.ROUTER, Role.LINEAR):
        return effective >= 2
    return True


def by_shape(facts: TensorFacts) -> Verdict:
    """The last resort. Vectors do not decay and large matrices do; small ones are left unknown."""
    effective = rows_and_columns(facts.shape)
    shape = f"shape {list(facts.shape)}"
    if not effective:
        return Verdict(Role.SCALE, f"{shape}: a single number", Strength.SHAPE)
    if len(effective) == 1:
        return Verdict(Role.SCALE, f"{shape}: one number per feature", Strength.SHAPE)
    if sorted(effective)[-2] < _SMALLEST_MATRIX:
        return Verdict(Role.UNKNOWN, f"{shape}, and neither its use, its owner nor its name says more", Strength.SHAPE)
    role = Role.LINEAR if len(effective) == 2 else Role.EXPERT_STACK
    return Verdict(role, f"{shape}: a matrix of {math.prod(facts.shape):,} elements, by shape alone", Strength.SHAPE)
