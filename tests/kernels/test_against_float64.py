"""Each kernel's values and gradients beside the same formula in float64, from the same bfloat16 inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from weightdecay.kernels import library
from weightdecay.kernels.activations import GATED, activation
from weightdecay.kernels.attention import attention, split_heads
from weightdecay.kernels.branches import Layer, attention_branch, feedforward_branch
from weightdecay.kernels.lookup import tied
from weightdecay.kernels.loss import head_loss
from weightdecay.kernels.norms import Norm, column_sums, norm_of_all, normed, normed_beside
from weightdecay.kernels.products import input_gradient, multiplied, product, products_by_torch, weight_gradient
from weightdecay.kernels.scores import Heads, Scores
from weightdecay.models.attention import score_mask
from weightdecay.models.feedforward import activated
from weightdecay.models.layers import Rotary

pytestmark = pytest.mark.skipif(library.library() is None, reason="no C compiler here")
# The relative error, by norms, that inputs and outputs of 8 bits leave; a product of two such sums has more.
ROUNDED, SUMMED = 6e-3, 1.5e-2


def draw(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    return (scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).to(torch.bfloat16)


def check(
    ours: Callable[..., Tensor], theirs: Callable[..., Tensor], inputs: Sequence[Tensor], within: float = ROUNDED
) -> None:
    """Both functions' outputs and gradients agree, the second one's in float64."""
    low = [x.clone().requires_grad_() for x in inputs]
    exact = [x.double().requires_grad_() for x in inputs]
    y, reference = ours(*low), theirs(*exact)
    above = torch.randn(y.shape, generator=torch.Generator().manual_seed(99)).to(y.dtype)
    torch.autograd.backward(y, above)
    torch.autograd.backward(reference, above.double())

    pairs = [(y, reference), *((x.grad, e.grad) for x, e in zip(low, exact, strict=True))]
    for place, (found, expected) in enumerate(pairs):
        assert found is not None
        assert expected is not None
        error = (found.double() - expected).norm()
        assert error <= within * expected.norm() + 1e-5, f"{place}: off by {error / expected.norm():.2g}"


@pytest.mark.parametrize("kind", ["relu", "relu_squared", "gelu", "gelu_tanh", "swiglu", "geglu", "geglu_tanh"])
@pytest.mark.parametrize("width", [1, 16, 37])
def test_activations(kind: str, width: int) -> None:
    h = draw(3, 5, 2 * width if kind in GATED else width, seed=width, scale=2.0)
    check(lambda h: activation(h, kind), lambda h: activated(h, kind), [h])


@pytest.mark.parametrize("kind", ["relu", "relu_squared", "gelu", "gelu_tanh", "swiglu", "geglu", "geglu_tanh"])
def test_activations_keep_their_limits_and_what_is_not_a_number(kind: str) -> None:
    ends = torch.tensor([-1e30, -100.0, 0.0, 100.0, math.nan], dtype=torch.bfloat16)
    h = torch.stack((ends, torch.ones_like(ends)), dim=-1) if kind in GATED else ends[:, None]
    torch.testing.assert_close(
        activation(h, kind).double(), activated(h.double(), kind), equal_nan=True, rtol=0.01, atol=1e-7
    )


@given(
    rows=st.integers(1, 9), width=st.integers(1, 70), centred=st.booleans(),
    gain=st.booleans(), bias=st.booleans(), offset=st.sampled_from([0.0, 1.0]),
)  # fmt: skip
@settings(max_examples=40)
def test_norms(rows: int, width: int, centred: bool, gain: bool, bias: bool, offset: float) -> None:
    x = draw(rows, width, seed=rows * 100 + width)
    own = [draw(width, seed=1).float()] if gain else []
    own += [draw(width, seed=2).float()] if gain and bias else []

    def described(own: Sequence[Tensor]) -> Norm:
        return Norm(own[0] if gain else None, own[1] if len(own) > 1 else None, 1e-2, centred, offset)

    def theirs(x: Tensor, *own: Tensor) -> Tensor:
        x = x - x.mean(-1, keepdim=True) if centred else x
        y = x / (x.square().mean(-1, keepdim=True) + 1e-2).sqrt()
        y = y * (own[0] + offset) if gain else y
        return y + own[1] if len(own) > 1 else y

    check(lambda x, *own: normed(x, described(own)), theirs, [x, *own], within=SUMMED)
    check(
        lambda x, *own: torch.stack(normed_beside(x, described(own))),
        lambda x, *own: torch.stack((x, theirs(x, *own))),
        [x, *own],
        within=SUMMED,
    )


@given(
    batch=st.integers(1, 3), heads=st.sampled_from([1, 2, 3]), time=st.integers(1, 40) | st.integers(60, 200),
    width=st.sampled_from([1, 8, 24, 40]), window=st.integers(0, 45), softcap=st.sampled_from([0.0, 3.0]),
    alibi=st.booleans(), block=st.sampled_from([7, 256]), kept=st.booleans(), tiles=st.booleans(),
)  # fmt: skip
@settings(max_examples=80)
def test_attention(
    batch: int,
    heads: int,
    time: int,
    width: int,
    window: int,
    softcap: float,
    alibi: bool,
    block: int,
    kept: bool,
    tiles: bool,
) -> None:
    """Over lengths, windows, caps and slopes, in one block and in many, with weights kept and formed anew, by one call
    and by batched products."""
    q, k, v = (draw(batch, heads, time, width, seed=seed) for seed in (1, 2, 3))
    slopes = tuple(2.0**-head for head in range(heads)) if alibi else ()
    scores = Scores(0.7 / math.sqrt(width), softcap, window, slopes)

    def theirs(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        logits = q @ k.transpose(-1, -2) * scores.scale
        logits = softcap * torch.tanh(logits / softcap) if softcap else logits
        weights = (logits + score_mask(time, time, window, slopes, logits)).softmax(dim=-1)
        return (weights @ v).transpose(1, 2).flatten(2)

    with pytest.MonkeyPatch.context() as patch:
        if not tiles:
            patch.setattr("weightdecay.kernels.attention.has_tiles", lambda: False)
        patch.setattr("weightdecay.kernels.attention.BLOCK", block)
        patch.setattr("weightdecay.kernels.attention._KEPT", 100 if kept else 0)
        check(lambda q, k, v: attention(q, k, v, scores), theirs, [q, k, v], within=SUMMED)


@pytest.mark.skipif(not library.has_tiles(), reason="scores are rounded here")
def test_sharp_attention_has_gradients_as_exact_as_other() -> None:
    """Where one key has nearly all the weight, a gradient is the small difference of large numbers."""
    q, k, v = (draw(2, 3, 200, 32, seed=seed, scale=3.0 if seed < 3 else 1.0) for seed in (1, 2, 3))

    def theirs(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        hidden = torch.ones(200, 200, dtype=torch.bool).triu(1)
        return (
            ((q @ k.transpose(-1, -2) * 0.2).masked_fill(hidden, -math.inf).softmax(dim=-1) @ v)
            .transpose(1, 2)
            .flatten(2)
        )

    check(lambda q, k, v: attention(q, k, v, Scores(0.2)), theirs, [q, k, v], within=3.5e-3)


@pytest.mark.parametrize("time", [40, 64, 70])
def test_attention_of_a_sequence_reads_no_other(time: int) -> None:
    """One full of NaN lies behind it."""
    heads = [draw(2, 2, time, 32, seed=seed) for seed in (1, 2, 3)]
    for x in heads:
        x[1] = math.nan
        x.requires_grad_()
    y = attention(heads[0], heads[1], heads[2], Scores(0.2))
    torch.autograd.backward(y, torch.ones_like(y))
    assert y[0].isfinite().all()
    assert all(x.grad is not None and x.grad[0].isfinite().all() for x in heads)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (3, 1)])
@pytest.mark.parametrize("fraction", [0.0, 0.5, 1.0])
def test_heads_are_split_repeated_and_turned(heads: int, kv_heads: int, fraction: float) -> None:
    qkv, rotary = draw(2, 5, (heads + 2 * kv_heads) * 8, seed=5), Rotary(8, 9, 100.0, fraction or 1.0)
    angles = rotary.angles(5) if fraction else (None, None)

    def theirs(qkv: Tensor) -> Tensor:
        q, k, v = torch.split(qkv.view(2, 5, -1, 8).transpose(1, 2), [heads, kv_heads, kv_heads], dim=1)
        q, k = (rotary(x) if fraction else x for x in (q, k))
        return torch.stack((q, *(x.repeat_interleave(heads // kv_heads, dim=1) for x in (k, v))))

    check(lambda qkv: torch.stack(split_heads(qkv, heads, kv_heads, *angles)), theirs, [qkv])


@given(
    tokens=st.integers(1, 12), vocabulary=st.integers(1, 50), rows=st.integers(1, 13),
    z_loss=st.sampled_from([0.0, 0.1]), multiplier=st.sampled_from([1.0, 0.6]), softcap=st.sampled_from([0.0, 4.0]),
)  # fmt: skip
@settings(max_examples=50)
def test_the_loss_of_a_head(
    tokens: int, vocabulary: int, rows: int, z_loss: float, multiplier: float, softcap: float
) -> None:
    """All rows at once and in parts, with z-loss, multiplier and cap."""
    x, weight = draw(tokens, 8, seed=tokens), draw(vocabulary, 8, seed=vocabulary).float()
    targets = torch.arange(tokens) * 7 % vocabulary

    def ours(x: Tensor, weight: Tensor) -> Tensor:
        loss, auxiliary = head_loss(
            x, weight, weight.detach().to(x.dtype), targets, z_loss=z_loss, multiplier=multiplier, softcap=softcap
        )
        return loss + auxiliary

    def theirs(x: Tensor, weight: Tensor) -> Tensor:
        logits = x @ weight.T * multiplier
        logits = softcap * torch.tanh(logits / softcap) if softcap else logits
        return F.cross_entropy(logits, targets) + z_loss * logits.logsumexp(dim=-1).square().mean()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("weightdecay.kernels.loss._LOGITS", rows * vocabulary)
        check(ours, theirs, [x, weight], within=0.03)


@pytest.mark.parametrize("target", [-1, 5, 1 << 40])
def test_a_target_that_is_no_token_is_refused_before_anything_is_read(target: int) -> None:
    weight = torch.zeros(5, 8)
    with pytest.raises(IndexError, match="vocabulary of 5"):
        head_loss(draw(1, 8, seed=0), weight, weight.to(torch.bfloat16), torch.tensor([target]))


@pytest.mark.parametrize("uses", ["rows", "head", "both"])
@given(tokens=st.lists(st.integers(0, 6), min_size=1, max_size=20), width=st.integers(1, 9), threads=st.integers(1, 3))
@settings(max_examples=25)
def test_both_uses_of_a_tied_table_give_it_one_gradient(uses: str, tokens: list[int], width: int, threads: int) -> None:
    table, chosen = draw(7, width, seed=1).float().requires_grad_(), torch.tensor([tokens])
    of_rows, of_head = draw(1, len(tokens), width, seed=2).float(), draw(7, width, seed=3).float()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: threads)
        patch.setattr(library, "_WORTH_THREADS", 0)
        rows, head = tied(table, chosen)
        assert torch.equal(rows, table[chosen])
        assert torch.equal(head, table)
        used = {"rows": (rows * of_rows).sum(), "head": (head * of_head).sum()}
        torch.autograd.backward(used[uses] if uses in used else used["rows"] + used["head"])

    expected = of_head.double() if uses != "rows" else torch.zeros(7, width, dtype=torch.float64)
    if uses != "head":
        expected = expected.index_add(0, chosen[0], of_rows[0].double())
    assert table.grad is not None
    torch.testing.assert_close(table.grad.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bias", [True, False])
def test_products_give_float32_parameters_their_gradients(bias: bool) -> None:
    weight, own = draw(6, 8, seed=1).float(), [draw(6, seed=2).float()] if bias else []

    def ours(x: Tensor, weight: Tensor, *own: Tensor) -> Tensor:
        return product(x, weight, own[0] if own else None, weight.detach().to(x.dtype))

    check(ours, F.linear, [draw(2, 5, 8, seed=0), weight, *own], within=SUMMED)


def plainly_normed(x: Tensor, gain: Tensor, shift: Tensor | None) -> Tensor:
    """LayerNorm with a shift, RMSNorm without."""
    x = x - x.mean(-1, keepdim=True) if shift is not None else x
    y = x / (x.square().mean(-1, keepdim=True) + 1e-2).sqrt() * gain
    return y if shift is None else y + shift


def layer_of(weight: Tensor, bias: Tensor | None) -> Layer:
    return Layer(weight, bias, weight.detach().to(torch.bfloat16))


@given(
    batch=st.integers(1, 3), time=st.integers(1, 20), width=st.integers(1, 20), inner=st.integers(1, 40),
    kind=st.sampled_from(["gelu", "relu_squared", "swiglu"]), biases=st.booleans(), threads=st.integers(1, 3),
)  # fmt: skip
@settings(max_examples=20)
def test_a_feedforward_branch_in_one_function(
    batch: int, time: int, width: int, inner: int, kind: str, biases: bool, threads: int
) -> None:
    x = draw(batch, time, width, seed=batch)
    rows = 2 * inner if kind in GATED else inner
    weights = [draw(rows, width, seed=1).float(), draw(width, inner, seed=2).float()]
    vectors = [draw(size, seed=size).float() for size in (width, width, rows, width)]

    def ours(x: Tensor, up: Tensor, down: Tensor, *own: Tensor) -> Tensor:
        shift, up_bias, down_bias = own[1:] if biases else (None, None, None)
        norm = Norm(own[0], shift, 1e-2, centred=biases)
        return feedforward_branch(x, norm, layer_of(up, up_bias), layer_of(down, down_bias), kind)

    def theirs(x: Tensor, up: Tensor, down: Tensor, *own: Tensor) -> Tensor:
        shift, up_bias, down_bias = own[1:] if biases else (None, None, None)
        h = F.linear(plainly_normed(x, own[0], shift), up, up_bias)
        return x + F.linear(activated(h, kind), down, down_bias)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: threads)
        patch.setattr(library, "_WORTH_THREADS", 0)
        check(ours, theirs, [x, *weights, *(vectors if biases else vectors[:1])], within=0.03)


@given(
    batch=st.integers(1, 3), time=st.integers(1, 20), kv_heads=st.sampled_from([1, 2]), group=st.integers(1, 2),
    head_dim=st.sampled_from([2, 8]), turns=st.booleans(), window=st.sampled_from([0, 5]), biases=st.booleans(),
    threads=st.integers(1, 3),
)  # fmt: skip
@settings(max_examples=20)
def test_an_attention_branch_in_one_function(
    batch: int, time: int, kv_heads: int, group: int, head_dim: int, turns: bool, window: int, biases: bool,
    threads: int,
) -> None:  # fmt: skip
    heads, width = kv_heads * group, 12
    x, rotary = draw(batch, time, width, seed=batch), Rotary(head_dim, 20, 100.0)
    rows = (heads + 2 * kv_heads) * head_dim
    weights = [draw(rows, width, seed=1).float(), draw(width, heads * head_dim, seed=2).float()]
    vectors = [draw(size, seed=size).float() for size in (width, width, rows, width)]
    scores = Scores(0.3 / math.sqrt(head_dim), window=window)
    of_heads = Heads(heads, kv_heads, *(rotary.angles(time) if turns else (None, None)))

    def ours(x: Tensor, qkv: Tensor, out: Tensor, *own: Tensor) -> Tensor:
        shift, qkv_bias, out_bias = own[1:] if biases else (None, None, None)
        norm = Norm(own[0], shift, 1e-2, centred=biases)
        return attention_branch(x, norm, layer_of(qkv, qkv_bias), layer_of(out, out_bias), of_heads, scores)

    def theirs(x: Tensor, qkv: Tensor, out: Tensor, *own: Tensor) -> Tensor:
        shift, qkv_bias, out_bias = own[1:] if biases else (None, None, None)
        rows_BTX = F.linear(plainly_normed(x, own[0], shift), qkv, qkv_bias)
        q, k, v = torch.split(rows_BTX.view(batch, time, -1, head_dim).transpose(1, 2), [heads, kv_heads, kv_heads], 1)
        q, k = (rotary(of) if turns else of for of in (q, k))
        k, v = (of.repeat_interleave(group, dim=1) for of in (k, v))
        logits = q @ k.transpose(-1, -2) * scores.scale
        weights = (logits + score_mask(time, time, window, (), logits)).softmax(dim=-1)
        return x + F.linear((weights @ v).transpose(1, 2).flatten(2), out, out_bias)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: threads)
        patch.setattr(library, "_WORTH_THREADS", 0)
        check(ours, theirs, [x, *weights, *(vectors if biases else vectors[:1])], within=0.05)


@given(
    rows=st.one_of(st.integers(1, 70), st.sampled_from([32, 64])), outputs=st.integers(1, 70),
    inputs=st.integers(1, 70), adds=st.booleans(), threads=st.integers(1, 3), whole=st.booleans(),
)  # fmt: skip
@settings(max_examples=60)
def test_gradients_of_weights(rows: int, outputs: int, inputs: int, adds: bool, threads: int, whole: bool) -> None:
    """By our own kernels where the processor has the instructions, with either factor the larger, and by torch's."""
    dy, x, before = draw(rows, outputs, seed=1), draw(rows, inputs, seed=2), draw(outputs, inputs, seed=3).float()
    expected = dy.double().T @ x.double() + (before.double() if adds else 0)
    with pytest.MonkeyPatch.context() as patch, products_by_torch() if whole else nullcontext():
        patch.setattr(torch, "get_num_threads", lambda: threads)
        patch.setattr(library, "_WORTH_THREADS", 0)
        found = weight_gradient(dy, x, before if adds else None)
    assert (found.double() - expected).norm() <= ROUNDED * (expected.norm() + 1)


@pytest.mark.parametrize(
    ("rows", "outputs", "inputs"),
    [
        (2100, 70, 45),  # gradients add up over three parts of the rows
        (2100, 45, 70),
        (513, 40, 9000),  # products over three parts of what they sum over, and what is added comes once
        (520, 1024, 1100),  # the weight is packed in parts, and what comes of it goes past the cache
        (700, 1100, 1024),
    ],
)
def test_products_in_parts(rows: int, outputs: int, inputs: int) -> None:
    x, weight, above = draw(rows, inputs, seed=1), draw(outputs, inputs, seed=2), draw(rows, outputs, seed=3)
    bias, before = draw(outputs, seed=4).float(), draw(outputs, inputs, seed=5).float()
    gradient = above.double().t() @ x.double()
    found = [
        (multiplied(x, weight, bias, above), x.double() @ weight.double().t() + bias + above.double()),
        (input_gradient(above, weight), above.double() @ weight.double()),
        (weight_gradient(above, x), gradient),
        (weight_gradient(above, x, before.clone()), gradient + before),
    ]
    for place, (ours, exact) in enumerate(found):
        assert (ours.double() - exact).norm() <= ROUNDED * exact.norm(), place


def test_sums_over_rows_are_the_same_with_any_number_of_rows_to_a_thread() -> None:
    x = draw(100_000, 3, seed=0)
    torch.testing.assert_close(column_sums(x).double(), x.double().sum(dim=0), rtol=1e-4, atol=1e-2)


@given(sizes=st.lists(st.integers(0, 5_000), max_size=6), threads=st.integers(1, 3), scale=st.sampled_from([1.0, 1e25]))
@settings(max_examples=20)
def test_the_norm_of_many_tensors(sizes: list[int], threads: int, scale: float) -> None:
    tensors = [scale * draw(size, seed=size).float() for size in sizes]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: threads)
        patch.setattr(library, "_WORTH_THREADS", 0)
        found = norm_of_all(iter(tensors))
    exact = math.sqrt(sum(float(t.double().square().sum()) for t in tensors))
    assert float(found) == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("end", [math.nan, math.inf])
def test_the_norm_of_what_is_not_finite_is_not(end: float) -> None:
    assert not norm_of_all([torch.ones(40), torch.tensor([1.0, end])]).isfinite()


@pytest.mark.parametrize("other", [torch.ones(3).double(), torch.ones(4, 4).T[::2], torch.ones(3, device="meta")])
def test_the_norm_of_tensors_that_would_be_misread_is_refused(other: Tensor) -> None:
    with pytest.raises(TypeError, match="contiguous"):
        norm_of_all([torch.ones(3), other])


def test_a_tensor_that_a_kernel_would_misread_is_refused() -> None:
    x = torch.zeros(4, 4)
    with pytest.raises(TypeError, match="column_sums"):
        library.call("column_sums", x, x, 4, 4)
    with pytest.raises(TypeError, match="column_sums"):
        library.call("column_sums", x.to(torch.bfloat16).T[::2], x, 4, 2)


@given(rows=st.integers(1, 70), outputs=st.integers(1, 70), inputs=st.integers(1, 70), whole=st.booleans())
@settings(max_examples=40)
def test_products_with_what_is_added(rows: int, outputs: int, inputs: int, whole: bool) -> None:
    """By our own kernels where the processor has the instructions, and by torch's; of rows that nothing pads."""
    x, weight = draw(rows, inputs, seed=1), draw(outputs, inputs, seed=2)
    stream, bias = draw(rows, outputs, seed=3), draw(outputs, seed=4).float()
    with products_by_torch() if whole else nullcontext():
        found = [
            (multiplied(x, weight), x.double() @ weight.double().t()),
            (multiplied(x, weight, bias, stream), x.double() @ weight.double().t() + bias + stream.double()),
            (multiplied(x, weight, bias), x.double() @ weight.double().t() + bias),
            (input_gradient(stream, weight), stream.double() @ weight.double()),
            (weight_gradient(stream, x), stream.double().t() @ x.double()),
        ]
    for place, (ours, exact) in enumerate(found):
        assert (ours.double() - exact).norm() <= ROUNDED * exact.norm() + 1e-5, place


@pytest.mark.parametrize(("rows", "outputs", "inputs"), [(0, 5, 7), (3, 5, 0), (3, 0, 4), (0, 0, 4), (0, 700, 800)])
def test_products_of_nothing(rows: int, outputs: int, inputs: int) -> None:
    """An expert without tokens has a gradient of zeros; a sum over nothing is what is added to it."""
    x, weight, above = draw(rows, inputs, seed=1), draw(outputs, inputs, seed=2), draw(rows, outputs, seed=3)
    bias, before = draw(outputs, seed=4).float(), draw(outputs, inputs, seed=5).float()
    gradient = above.float().t() @ x.float()
    torch.testing.assert_close(weight_gradient(above, x), gradient, rtol=0.02, atol=0.02)
    torch.testing.assert_close(weight_gradient(above, x, before.clone()), before + gradient, rtol=0.02, atol=0.02)
    product_of_both = x.float() @ weight.float().t() + bias + above.float()
    torch.testing.assert_close(multiplied(x, weight, bias, above).float(), product_of_both, rtol=0.02, atol=0.02)
    torch.testing.assert_close(
        input_gradient(above, weight).float(), above.float() @ weight.float(), rtol=0.02, atol=0.02
    )


def test_rows_that_are_long_beyond_measure() -> None:
    x, weight = draw(2, 1 << 17, seed=1), draw(1, 1 << 17, seed=2)
    exact = x.double() @ weight.double().t()
    assert (multiplied(x, weight).double() - exact).norm() <= ROUNDED * exact.norm()
    assert (input_gradient(x, weight.t().contiguous()).double() - exact).norm() <= ROUNDED * exact.norm()


def test_every_number_of_threads_gives_the_same() -> None:
    x, weight, stream = draw(1100, 96, seed=1), draw(288, 96, seed=2), draw(1100, 288, seed=3)
    q, k, v = (draw(3, 4, 150, 40, seed=seed) for seed in (4, 5, 6))

    def all_of_it() -> list[Tensor]:
        heads = [of.clone().requires_grad_() for of in (q, k, v)]
        y = attention(heads[0], heads[1], heads[2], Scores(0.2))
        torch.autograd.backward(y, torch.ones_like(y))
        products = [multiplied(x, weight), input_gradient(stream, weight), weight_gradient(stream, x)]
        return [*products, y.detach(), *(of.grad for of in heads if of.grad is not None)]

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = all_of_it()
        torch.set_num_threads(3)
        assert all(torch.equal(a, b) for a, b in zip(one, all_of_it(), strict=True))
    finally:
        torch.set_num_threads(before)
