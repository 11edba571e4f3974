"""Text that a trained model continues."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from weightdecay.data.tokenizer import Tokenizer
from weightdecay.evaluation.trained import Trained
from weightdecay.models.generate import generate


def continuation(
    trained: Trained, prompt: str, *, max_tokens: int, temperature: float, top_k: int, seed: int, top_p: float = 1.0
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
        top_p=top_p,
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
