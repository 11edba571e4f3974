"""Roles from the module tree: torch's own modules say what their parameters are."""

from __future__ import annotations

from weightdecay.planning.evidence.tensors import Site, TensorFacts
from weightdecay.planning.roles.roles import ByType, Role

_NORMS = frozenset({
    "LayerNorm", "RMSNorm", "GroupNorm", "BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm",
    "InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d", "LocalResponseNorm",
})  # fmt: skip
_LINEARS = frozenset({"Linear", "Bilinear", "NonDynamicallyQuantizableLinear"})
_CONVOLUTIONS = frozenset(f"Conv{transposed}{d}d" for transposed in ("", "Transpose") for d in (1, 2, 3))
_RECURRENT = frozenset({"RNNBase", "RNNCellBase"})
_TABLES = frozenset({"Embedding", "EmbeddingBag"})
_WEIGHT_NORM = {
    "original0": Role.WEIGHT_NORM_GAIN, "original1": Role.WEIGHT_NORM_DIRECTION,
    "weight_g": Role.WEIGHT_NORM_GAIN, "weight_v": Role.WEIGHT_NORM_DIRECTION,
}  # fmt: skip


def by_types(facts: TensorFacts) -> list[ByType | None]:
    """What the type of its owner says of a parameter, for each of its sites; None for what is not torch's own."""
    roles = [_role(site, facts.shape) for site in facts.sites]
    return [
        None if role is None else ByType(site.attribute, site.owner, site.bases[0] if site.bases else site.owner, role)
        for site, role in zip(facts.sites, roles, strict=True)
    ]


def _role(site: Site, shape: tuple[int, ...]) -> Role | None:
    bases, attribute = frozenset(site.bases), site.attribute
    # torch's weight norm parts a tensor in two; any other parametrisation leaves it what it is
    if site.original in _WEIGHT_NORM:
        return _WEIGHT_NORM[site.original]
    if not site.is_torchs:
        return None
    if attribute.startswith("bias"):
        return Role.BIAS
    if attribute in _WEIGHT_NORM:
        return _WEIGHT_NORM[attribute]
    if bases & _RECURRENT and attribute.startswith("weight"):
        return Role.RECURRENT
    if "MultiheadAttention" in bases and attribute.endswith("proj_weight"):
        return Role.ATTENTION_IN_PROJECTION
    if attribute != "weight":
        return None

    if bases & _NORMS:
        return Role.NORM_GAIN
    if bases & _LINEARS:
        return Role.LINEAR
    if bases & _CONVOLUTIONS:
        return Role.CONVOLUTION
    if bases & _TABLES:
        return Role.EMBEDDING if shape[0] > 1 else Role.LEARNED_TOKEN
    return Role.SCALE if "PReLU" in bases else None
