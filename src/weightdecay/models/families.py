"""The families of transformers that our decoder has, and which of them a decoder belongs to."""

from __future__ import annotations

from weightdecay.errors import ConfigError
from weightdecay.models.config import ModelConfig
from weightdecay.models.family import Family
from weightdecay.models.family_deepseek import DEEPSEEK_V3
from weightdecay.models.family_gpt import BLOOM, GPT2, GPT_NEOX, OPT
from weightdecay.models.family_llama import LLAMA, MISTRAL, MIXTRAL, OLMO2

# A decoder that two can say is the first one's: with GELU and norms before, GPT-2's and not OPT's.
_ALL = (GPT2, OPT, LLAMA, MISTRAL, MIXTRAL, OLMO2, DEEPSEEK_V3, GPT_NEOX, BLOOM)
FAMILIES = {family.model_type: family for family in _ALL}


def family_of(config: ModelConfig) -> Family:
    """The family whose members include this decoder.

    Raises:
        ConfigError: there is none; the message names the nearest and what it lacks.
    """
    differences = [(family.differences(config), family) for family in FAMILIES.values()]
    lacking, nearest = min(differences, key=lambda pair: len(pair[0]))
    if lacking:
        raise ConfigError(
            f"transformers has no counterpart of this model: the nearest, {nearest.architecture}, cannot say "
            + ", ".join(lacking)
        )
    return nearest
