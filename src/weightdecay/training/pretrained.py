"""Training that starts from a model of transformers, or from one exported here, instead of random weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from weightdecay.data.prepare import Prepared
from weightdecay.errors import ConfigError
from weightdecay.evaluation.tokenizerfiles import tokenizers_of
from weightdecay.models import huggingface
from weightdecay.recipes.settings import TrainConfig


def holds_a_model(config: TrainConfig) -> bool:
    """Whether `run.init_from` names a directory of transformers or an exported one, not a run."""
    return bool(config.run.init_from) and huggingface.holds_a_model(Path(config.run.init_from))


def with_pretrained_shape(config: TrainConfig) -> TrainConfig:
    """The configuration with the shape of the model it starts from.

    What only training sees (dropout, z-loss …) stays the recipe's. Sequences may be shorter than the model's longest,
    except where positions are learned, whose table goes with the context.

    Raises:
        ConfigError: an architecture that is not known here.
    """
    if not holds_a_model(config):
        return config
    theirs = huggingface.read_config(Path(config.run.init_from))
    context = theirs.context if theirs.positions == "learned" else min(theirs.context, config.model.context)
    own, mixing = config.model, theirs.mixing
    if mixing and own.mixing:
        mixing = dataclasses.replace(mixing, gate_init_max=own.mixing.gate_init_max)
    model = dataclasses.replace(
        theirs, context=context, training=own.training, initialisation=own.initialisation, mixing=mixing
    )
    return dataclasses.replace(config, model=model, scaling="")  # the recipe's scaled-down shape this is not


def tokenizer_advice(config: TrainConfig, data: Prepared, tokenizer: Path) -> str:
    """How the data comes to have the tokenizer that weights were trained with; prepared data keeps its own."""
    if [Path(source) for source in config.data.sources] == [data.path]:
        return f"prepare the text again: weightdecay data prepare SRC… --tokenizer {tokenizer} --out DIR"
    return f"give --tokenizer {tokenizer}"


def pretrained_weights(
    path: Path, tokenizer_sha256: str, report: Callable[[str], None], advice: Callable[[Path], str]
) -> dict[str, Tensor]:
    """The weights in a directory that `holds_a_model`, under our names and in float32.

    Args:
        tokenizer_sha256: of the data's tokenizer, which must be the directory's too.
        report: told what cannot be checked, and what weights in another precision become.
        advice: what to do about another tokenizer, of a `tokenizer.json`; see `tokenizer_advice`.

    Raises:
        ConfigError: there are no weights, or its tokenizer is another than the data's.
        DamagedError: missing, extra or misshapen tensors, all of them named.
    """
    spoken = tokenizers_of(path)
    if not spoken:
        report(f"{path}: has no tokenizer.json, so nothing says whether its weights speak the data's tokenizer")
    elif tokenizer_sha256 not in {tokenizer.sha256 for tokenizer in spoken.values()}:
        named = path / next(iter(spoken))
        raise ConfigError(f"{path}: its weights speak another tokenizer than the data: {advice(named)}")
    return huggingface.read_weights(path, huggingface.read_config(path), report)
