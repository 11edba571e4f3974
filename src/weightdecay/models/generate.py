"""Continue a text token by token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from weightdecay.errors import ConfigError
from weightdecay.models.cache import Cache
from weightdecay.models.decoder import GPT


@torch.inference_mode()
def generate(
    model: GPT,
    prompt: Sequence[int],
    *,
    max_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    stop_token: int | None = None,
    cached: bool = True,
) -> Iterator[int]:
    """Draw up to `max_tokens` tokens, each from softmax(logits / temperature) over the likeliest ones.

    Keys and values of what was read are kept, until the text outgrows the context: from there on every token is
    predicted from a window that begins one token later, where nothing kept would be right.

    Args:
        prompt: at least one token; what exceeds the model's context is forgotten from the left.
        max_tokens: tokens to draw at most.
        temperature: 0 always takes the likeliest token.
        top_k: draw from so many likeliest tokens; 0 keeps the whole vocabulary.
        top_p: draw from the fewest likeliest tokens whose probabilities add up to at least so much; 1 keeps all.
        seed: of a generator of its own: the same call gives the same tokens.
        cached: False reads the whole text again for each token.
        stop_token: ends the text when drawn, and is not yielded.

    Raises:
        ConfigError: an empty prompt, a negative temperature or count, or a top_p outside (0, 1].

    Reference:
        top_p: Holtzman et al. 2020, The Curious Case of Neural Text Degeneration, section 3.1.
    """
    faults = []
    if not prompt:
        faults.append("an empty prompt: give at least one token (an end-of-text token begins a new document)")
    if temperature < 0 or top_k < 0 or max_tokens < 0:
        faults.append(f"temperature {temperature}, top-k {top_k} and max-tokens {max_tokens} must not be negative")
    if not 0 < top_p <= 1:
        faults.append(f"top-p {top_p} must be over 0 and at most 1")
    if faults:
        raise ConfigError(faults)
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    tokens = list(prompt)
    context = model.config.context
    cache = Cache(model.config)
    was_training = model.training
    model.eval()
    try:
        for _ in range(max_tokens):
            fits = cached and len(tokens) <= context
            unread = tokens[cache.length :] if fits else tokens[-context:]
            logits_V = model(torch.tensor([unread], device=device), cache if fits else None)[0, -1]
            token = _draw(logits_V.float(), temperature, top_k, generator, top_p)
            if token == stop_token:
                return
            tokens.append(token)
            yield token
    finally:
        model.train(was_training)


def _draw(logits_V: Tensor, temperature: float, top_k: int, generator: torch.Generator, top_p: float = 1.0) -> int:
    if temperature == 0:
        return int(logits_V.argmax())
    if 0 < top_k < logits_V.numel():
        threshold = logits_V.topk(top_k).values[-1]
        logits_V = logits_V.masked_fill(logits_V < threshold, float("-inf"))
    p_V = (logits_V.double() / temperature).softmax(dim=-1)
    if top_p < 1:
        p_V = _nucleus(p_V, top_p)

    # One number between 0 and the sum of all: `multinomial` draws one for each token of the vocabulary.
    cumulative_V = p_V.cumsum(dim=-1)
    point = cumulative_V[-1] * torch.rand((), dtype=torch.float64, device=logits_V.device, generator=generator)
    return int(torch.searchsorted(cumulative_V, point, right=True).clamp_(max=logits_V.numel() - 1))


def _nucleus(p_V: Tensor, top_p: float) -> Tensor:
    """The likeliest tokens up to and with the one that brings their sum to `top_p`; the others at 0."""
    sorted_V, order_V = p_V.sort(descending=True, stable=True)
    before_V = sorted_V.cumsum(dim=-1) - sorted_V
    return torch.zeros_like(p_V).scatter(0, order_V, sorted_V.where(before_V < top_p, 0.0))
