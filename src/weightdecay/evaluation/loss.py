"""How well a trained model predicts a text: its own run's held-out part, or any other."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from weightdecay.data.corpus import open_corpus
from weightdecay.data.fidelity import Fidelity, FidelityProbe
from weightdecay.data.finding import is_prepared
from weightdecay.data.loader import IGNORE_INDEX, evaluation_batches
from weightdecay.data.prepare import Prepared, from_cache, open_prepared, prepared_for, refuse_another_reading
from weightdecay.data.reading import HowToRead
from weightdecay.data.shards import encode_documents
from weightdecay.data.stdin import STDIN
from weightdecay.data.tokenizer import Tokenizer
from weightdecay.errors import ConfigError
from weightdecay.evaluation.trained import Trained
from weightdecay.models.arithmetic import products_in, weights_in
from weightdecay.models.decoder import GPT
from weightdecay.recipes.settings import DataSettings
from weightdecay.runs import Run, read_json

# Tokens in one forward pass of an evaluation.
EVALUATION_TOKENS = 8_192
# Logits that are held at once: several times over, in two precisions and between operations.
_LOGITS = 1 << 20


@dataclass(frozen=True)
class Text:
    """Tokens to be predicted, and what they stand for.

    Attributes:
        name: for people.
        sha256: of the corpus; losses are comparable only where it, the part and the tokenizer are equal.
        part: `held out` or `all`.
        n_bytes: of text that they stand for.
        remarks: what a reader of the loss should know.
    """

    name: str
    sha256: str
    part: str
    tokens: npt.NDArray[Any]
    n_bytes: int
    fidelity: Fidelity
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class TextLoss:
    """What a model makes of a text.

    Attributes:
        loss: mean negative log-likelihood of a token, in nats.
        bits_per_byte: None where the tokenizer loses text.
    """

    loss: float
    tokens: int
    bits_per_byte: float | None

    @property
    def perplexity(self) -> float:
        """exp(loss), within the range of a float."""
        return math.exp(min(self.loss, 700.0))


@torch.inference_mode()
def nats(
    model: GPT, batches: Iterable[tuple[Tensor, Tensor]], *, device: torch.device, dtype: torch.dtype
) -> tuple[float, int]:
    """Σ of the negative log-likelihood in nats, and the number of tokens it is over.

    Args:
        batches: inputs and targets, as `evaluation_batches` makes them.
        dtype: of the matrix products.
    """
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    with weights_in(model, dtype):
        for tokens_BT, targets_BT in batches:
            targets = targets_BT.to(device).flatten()
            with products_in(model, dtype, device):
                x_ND = model.head_input(tokens_BT.to(device)).flatten(0, 1)
                rows = max(1, _LOGITS // model.config.vocab_size)
                for x_CD, targets_C in zip(torch.split(x_ND, rows), torch.split(targets, rows), strict=True):
                    logits_CV = model.logits(x_CD).float()
                    total += float(F.cross_entropy(logits_CV, targets_C, reduction="sum", ignore_index=IGNORE_INDEX))
            count += int((targets != IGNORE_INDEX).sum())
    model.train(was_training)
    return total, count


def loss_on(
    trained: Trained, text: Text, *, max_tokens: int | None = None, dtype: torch.dtype = torch.float32
) -> TextLoss:
    """The loss over a text, window by window, each token predicted once.

    Args:
        max_tokens: of the text's beginning; all of it if None.

    Raises:
        DataError: there is nothing to predict.
    """
    context = trained.model.config.context
    batches = evaluation_batches(
        text.tokens,
        context,
        max(1, EVALUATION_TOKENS // context),
        max_tokens,
        end_of_text_id=trained.tokenizer.end_of_text_id,
    )
    device = next(trained.model.parameters()).device
    total, count = nats(trained.model, batches, device=device, dtype=dtype)
    return TextLoss(total / count, count, _bits_per_byte(total, count, trained.tokenizer, text))


def own_text(run: Run, tokenizer: Tokenizer) -> Text:
    """The held-out part of what a run was trained on.

    Raises:
        ConfigError: its data is not there any longer, or is not what it was.
    """
    settings = run.config().data
    recorded = read_json(run.path / "environment.json")
    # The cache holds what was trained on even where it came through a pipe, or was changed since.
    kept = from_cache(str(recorded.get("corpus_sha256")), str(recorded.get("tokenizer_sha256")))
    if kept is not None:
        return _held_out_of(kept, tokenizer)
    if len(settings.sources) == 1 and is_prepared(Path(settings.sources[0])):
        prepared = open_prepared(Path(settings.sources[0]))
    elif STDIN in settings.sources:
        raise ConfigError(f"{run.path}: its text came through stdin and is not in the cache: name a text with --data")
    else:
        prepared = prepared_for(settings.sources, str(run.tokenizer_path), **_how(settings))
    found = {"corpus_sha256": prepared.corpus_sha256, "tokenizer_sha256": prepared.tokenizer.sha256}
    for key, value in found.items():
        if recorded.get(key) != value:
            raise ConfigError(
                f"{run.path}: was trained with {key} {str(recorded.get(key))[:12]}, its data has {value[:12]} now: "
                "name a text with --data"
            )
    return _held_out_of(prepared, tokenizer)


def text_of(settings: DataSettings, tokenizer: Tokenizer, max_tokens: int | None = None) -> Text:
    """Any text, all of it; of one directory that `data prepare` made, the held-out part.

    Args:
        settings: what to read and how; its tokenizer is not asked.
        max_tokens: no more than so many are read.

    Raises:
        DataError: it cannot be read, or was prepared with another tokenizer.
    """
    if len(settings.sources) == 1 and is_prepared(Path(settings.sources[0])):
        refuse_another_reading(Path(settings.sources[0]), HowToRead(**_how(settings)))
        return _held_out_of(open_prepared(Path(settings.sources[0])), tokenizer)

    corpus = open_corpus(settings.sources, **_how(settings))
    probe = FidelityProbe(tokenizer)
    parts: list[npt.NDArray[Any]] = []
    n_tokens, n_bytes = 0, 0
    for batch in encode_documents(corpus.documents(), tokenizer):
        tokens = np.asarray(batch.tokens)
        probe.count(tokens, batch.trials)
        parts.append(tokens.astype(np.uint32))
        n_tokens += tokens.size
        n_bytes += batch.n_bytes
        if max_tokens is not None and n_tokens >= max_tokens:
            break
    return Text(
        corpus.name,
        corpus.sha256,
        "all",
        np.concatenate(parts),
        n_bytes,
        probe.result(),
        tuple(corpus.summary.remarks()),
    )


def _how(settings: DataSettings) -> dict[str, Any]:
    return {
        "text_key": settings.text_key,
        "encoding_errors": settings.encoding_errors,
        "missing_text": settings.missing_text,
        "separator": settings.separator,
    }


def _held_out_of(prepared: Prepared, tokenizer: Tokenizer) -> Text:
    if prepared.tokenizer.sha256 != tokenizer.sha256:
        raise ConfigError(
            f"{prepared.path}: was prepared with another tokenizer than the model's, so its tokens mean nothing to it: "
            "name the text itself"
        )
    return Text(
        prepared.name,
        prepared.corpus_sha256,
        "held out",
        prepared.held_out.tokens,
        prepared.held_out.header.n_bytes,
        prepared.fidelity,
    )


def _bits_per_byte(total: float, count: int, tokenizer: Tokenizer, text: Text) -> float | None:
    if text.fidelity.loses_text:
        return None
    n_bytes = float(text.n_bytes)
    if count < len(text.tokens):
        lengths = tokenizer.byte_lengths()
        # Exact where each token stands for fixed bytes; otherwise in proportion.
        n_bytes = n_bytes * count / len(text.tokens) if lengths is None else float(lengths[text.tokens[:count]].sum())
    return total / math.log(2) / n_bytes
