"""Nested state under flat names: what comes out is what went in."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor, nn

from weightdecay.errors import OptimizerError
from weightdecay.optim.state import load_state_by_name, settings_by_name, state_by_name
from weightdecay.optim.state.tree import flattened, unflattened

KEYS = st.one_of(
    st.text("ab/[](){}<>:.%0", max_size=4),
    st.sampled_from(["step:int", "a:none", "GG[0]", "{0}", "", "x.y", "%2f", "a/b"]),
    st.integers(-3, 3),
    st.sampled_from([0.5, -1e-7, 0.0, 1e30]),
)
TENSORS = st.sampled_from(
    [torch.ones(2, 3), torch.tensor(3), torch.arange(6.0).reshape(2, 3).t(), torch.zeros(0), torch.ones(2).bfloat16()]
)
LEAVES = st.one_of(
    TENSORS, st.none(), st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False),
    st.text(max_size=5),
)  # fmt: skip
TREES = st.dictionaries(
    KEYS,
    st.recursive(
        LEAVES,
        lambda inside: st.one_of(
            st.lists(inside, max_size=3),
            st.lists(inside, max_size=3).map(tuple),
            st.sets(st.integers(0, 9), max_size=3),
            st.dictionaries(KEYS, inside, max_size=3),
        ),
        max_leaves=8,
    ),
    min_size=1,
    max_size=4,
)


def equal(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and a.stride() == b.stride() and torch.equal(a, b)
    if isinstance(a, dict):
        return {(type(key), key) for key in a} == {(type(key), key) for key in b} and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


@given(tree=TREES)
@settings(max_examples=300, deadline=None)
def test_what_comes_out_is_what_went_in_types_and_hostile_keys_included(tree: dict[Any, Any]) -> None:
    flat = load(save({key: value.clone() for key, value in flattened("h.0/odd.weight", tree).items()}))
    assert all(full.rpartition("/")[0] == "h.0/odd.weight" for full in flat)
    paths = {
        full.rpartition("/")[2]: value.t().clone().t() if full.endswith(":t") else value for full, value in flat.items()
    }
    assert equal(unflattened(paths), tree)


def test_names_can_be_read() -> None:
    state = {"exp_avg": torch.ones(2), "step": 3, "GG": [torch.ones(1), None], 0: {"m": (torch.ones(1),)}, "Q": []}
    assert list(flattened("w", state)) == [
        "w/exp_avg", "w/step:int", "w/GG[0]", "w/GG[1]:none", "w/{0}.m(0)", "w/Q:list",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (b"bytes", r"w/a is a bytes: only tensors, numbers and text"),
        ([1, object()], r"w/a\[1\] is a object"),
        ({"b": {(1, 2): 3}}, r"w/a\.b has the key \(1, 2\), a tuple"),
        (2**70, r"w/a is an int of more than 64 bits"),
        (3j, r"w/a is a complex"),
        (torch.eye(2).to_sparse(), "w/a is a tensor of layout sparse_coo"),
        ([torch.ones(2, device="meta")], r"w/a\[0\] is a tensor on meta"),
    ],
)
def test_what_cannot_be_saved_is_named_with_path_and_type(value: Any, words: str) -> None:
    with pytest.raises(OptimizerError, match=words):
        flattened("w", {"a": value, "b": 1})


def test_a_list_with_a_gap_or_two_kinds_at_once_is_damage() -> None:
    for entries, words in (
        ({"GG[0]": 1, "GG[2]": 1}, "number 1 of its 3 is missing"),
        ({"GG[0]": 1, "GG(1)": 1}, "is a list and a tuple at once"),
        ({"GG": 1, "GG[0]": 1}, "value and a container at once"),
        ({"GG[0]": 1, "GG": 1}, "value and a container at once"),
    ):
        with pytest.raises(OptimizerError, match=words):
            unflattened({path: torch.ones(1) for path in entries})


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("step:int", torch.zeros(2)),
        ("step:int", torch.tensor(math.nan)),
        ("step:int", torch.tensor(2.5)),
        ("GG[0]:float", torch.tensor(1j)),
        ("begun:bool", torch.tensor(3)),
        ("how:text", torch.tensor([255], dtype=torch.uint8)),
        ("how:text", torch.tensor(1.0)),
        ("Q:t", torch.zeros(2, 3, 4)),
        ("{many}.m", torch.ones(1)),
    ],
)
def test_what_is_not_what_its_path_says_is_damage(path: str, value: Tensor) -> None:
    optimizer = Preconditioned([("w", nn.Parameter(torch.ones(2)))])
    with pytest.raises(OptimizerError, match=f"^w/{re.escape(path)}: it cannot be read as what it says"):
        load_state_by_name(optimizer, {f"w/{path}": value})


class Preconditioned(torch.optim.Optimizer):
    """State as SOAP, HeavyBall and others have it: lists with nothing in them, dicts in dicts, counts, sets."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.1, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        del closure
        for p in self.param_groups[0]["params"]:
            state = self.state[p]
            if not state:
                state["GG"] = [torch.eye(n) if n < 9 else [] for n in p.shape]
                state[0] = {"m": torch.zeros_like(p), "begun": set(), "count": 0, "last": None, "way": "a,b→ab"}
            inner = state[0]
            inner["begun"].add(inner["count"])
            assert inner["way"] == "a,b→ab"
            inner["count"] += 1
            inner["m"].lerp_(p.grad, 1 / len(inner["begun"]))
            for gram in state["GG"]:
                if isinstance(gram, Tensor):
                    gram.mul_(0.9)
            inner["last"] = math.sqrt(inner["count"])
            p.sub_(inner["m"] * state["GG"][0].diagonal().sum() / inner["last"], alpha=0.01)


def test_nested_state_resumes_bit_for_bit() -> None:
    def train(p: Tensor, optimizer: Any, first: int) -> None:
        for step in range(first, first + 3):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(step))
            optimizer.step()

    through = nn.Parameter(torch.ones(4, 10))
    first = Preconditioned([("w", through)])
    train(through, first, 0)
    resumed = nn.Parameter(through.detach().clone())
    second = Preconditioned([("w", resumed)])
    load_state_by_name(second, load(save(state_by_name(first))), settings_by_name(first))
    train(through, first, 3)
    train(resumed, second, 3)
    assert torch.equal(through, resumed)
    assert second.state[resumed][0]["begun"] == {0, 1, 2, 3, 4, 5}


class Pair(Tensor):
    """A tensor made of two others, as quantised state is; its `to` gives itself, as some do."""

    codes: Tensor
    scale: Tensor

    @staticmethod
    def __new__(cls, codes: Tensor, scale: Tensor) -> Any:
        made = Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)
        made.codes, made.scale = codes, scale
        return made

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["codes", "scale"], None

    @classmethod
    def __tensor_unflatten__(cls, parts: dict[str, Tensor], *_: Any) -> Any:
        return cls(parts["codes"], parts["scale"])

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        del types, kwargs
        if func in (torch.ops.aten.detach.default, torch.ops.aten._to_copy.default):
            return cls(args[0].codes, args[0].scale)
        return NotImplemented


def test_loaded_state_shares_no_memory_with_what_it_was_loaded_from() -> None:
    p = nn.Parameter(torch.ones(3))
    given = {"plain": torch.ones(3), "nested": [torch.ones(3)], "quantised": Pair(torch.ones(3), torch.ones(1))}
    old = torch.optim.SGD([("w", p)], lr=0.1)
    old.state[p] = given
    new = Preconditioned([("w", p)])
    load_state_by_name(new, state_by_name(old))
    loaded = new.state[p]
    loaded["plain"].zero_()
    loaded["nested"][0].zero_()
    loaded["quantised"].codes.zero_()
    assert bool(given["plain"].all())
    assert bool(given["nested"][0].all())
    assert bool(given["quantised"].codes.all())


@pytest.mark.parametrize("order", [1, -1])
def test_lbfgs_whose_state_is_of_all_tensors_together_resumes_bit_for_bit(order: int) -> None:
    inputs, targets = torch.randn(9, 4, generator=torch.Generator().manual_seed(1)), torch.ones(9, 3)

    def steps(net: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
        def loss() -> float:
            optimizer.zero_grad()
            error: Tensor = (net(inputs) - targets).square().mean()
            error.backward()  # type: ignore[no-untyped-call]
            return float(error.detach())

        for _ in range(count):
            optimizer.step(loss)

    def make(net: nn.Module) -> torch.optim.LBFGS:
        return torch.optim.LBFGS(list(net.parameters())[::order], lr=0.1, max_iter=3)

    through, resumed = nn.Linear(4, 3), nn.Linear(4, 3)
    optimizer, again = make(through), make(resumed)
    steps(through, optimizer, 3)
    resumed.load_state_dict(through.state_dict())
    load_state_by_name(
        again, load(save(state_by_name(optimizer, through))), settings_by_name(optimizer, through), resumed
    )
    steps(through, optimizer, 2)
    steps(resumed, again, 2)
    assert all(torch.equal(a, b) for a, b in zip(through.parameters(), resumed.parameters(), strict=True))
