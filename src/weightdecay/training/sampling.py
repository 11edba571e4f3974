"""Text from a run's newest good checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from weightdecay.data.tokenizer import Tokenizer, load_tokenizer
from weightdecay.errors import ConfigError
from weightdecay.models.decoder import GPT
from weightdecay.models.generate import generate
from weightdecay.runs import Run
from weightdecay.training import checkpoint
from weightdecay.training.resuming import load_weights

Report = Callable[[str], None]


@dataclass(frozen=True)
class Trained:
    """A model as a run left it, with the tokenizer it was trained on."""

    model: GPT
    tokenizer: Tokenizer
    step: int


def load(run: Run, report: Report) -> Trained:
    """The model of the newest good checkpoint.

    Raises:
        ConfigError: the run has no checkpoint yet.
        DamagedError: it has, and none is good.
    """
    found = checkpoint.newest_good(run.checkpoints, report)
    if found is None:
        raise ConfigError(f"{run.path}: no checkpoint yet; let the training reach its first one")
    model = GPT(run.config().model)
    load_weights(model, found.model(), found.path / checkpoint.MODEL)
    return Trained(model.eval(), load_tokenizer(run.tokenizer_path), found.step)


def continuation(
    trained: Trained, prompt: str, *, max_tokens: int, temperature: float, top_k: int, seed: int
) -> Iterator[str]:
    """Pieces of text that follow the prompt, until the model ends its document.

    Raises:
        DataError: the prompt has no bytes in UTF-8.
    """
    tokenizer = trained.tokenizer
    tokens = generate(
        trained.model,
        [tokenizer.end_of_text_id, *tokenizer.encode(prompt)],
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        seed=seed,
        stop_token=tokenizer.end_of_text_id,
    )
    return _whole_characters(tokenizer, tokens)


def _whole_characters(tokenizer: Tokenizer, tokens: Iterable[int]) -> Iterator[str]:
    """The text as it grows; a character whose bytes are spread over several tokens comes with the last of them."""
    drawn: list[int] = []
    written = ""
    for token in tokens:
        drawn.append(token)
        text = tokenizer.decode(drawn).removesuffix("\ufffd")
        if len(text) > len(written):
            yield text[len(written) :]
            written = text
