"""Three mutants that PyTorch's own optimizer tests do not notice: no decay, coupled decay, decay of the wrong sign.

Our tests are run on each of them here, and have to fail.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.optim import test_contract, test_rules, test_twins
from weightdecay.optim.adafactor import Adafactor
from weightdecay.optim.adamw import AdamL2, AdamW
from weightdecay.optim.lion import Lion
from weightdecay.optim.muon import Muon
from weightdecay.optim.sgdw import SGDW

OPTIMIZERS = [AdamW, Lion, SGDW, Adafactor, Muon]


def mutant(cls: Any, how: str) -> Any:
    """The optimizer with its decay taken away, turned around, or put into the gradient."""

    class Mutant(cls):  # type: ignore[misc]
        def step(self, closure: Any = None) -> Any:
            given = [group["weight_decay"] for group in self.param_groups]
            with torch.no_grad():
                for group, weight_decay in zip(self.param_groups, given, strict=True):
                    for p in group["params"]:
                        if p.grad is None:
                            continue
                        if how == "coupled":
                            p.grad = p.grad + weight_decay * p
                        elif how == "decoupled":
                            p.mul_(1 - group["lr"] * weight_decay)
                        elif how == "wrong sign":
                            p.mul_(1 + group["lr"] * weight_decay)
                    group["weight_decay"] = 0.0
            try:
                return super().step(closure)
            finally:
                for group, weight_decay in zip(self.param_groups, given, strict=True):
                    group["weight_decay"] = weight_decay

    Mutant.__name__ = f"{cls.__name__} with {how}"
    return Mutant


@pytest.mark.parametrize("how", ["no decay", "coupled", "wrong sign"])
@pytest.mark.parametrize("cls", OPTIMIZERS, ids=lambda cls: cls.__name__)
def test_the_shrink_without_gradient_catches_every_mutant_of_every_optimizer(cls: Any, how: str) -> None:
    arguments = {"name": "decoupled", "dtype": torch.float64, "tolerance": 1e-12}
    test_rules.test_with_zero_gradients_weights_shrink_by_the_product_of_the_rule(cls, **arguments)
    with pytest.raises(AssertionError):
        test_rules.test_with_zero_gradients_weights_shrink_by_the_product_of_the_rule(mutant(cls, how), **arguments)


@pytest.mark.parametrize("how", ["no decay", "coupled", "wrong sign"])
@pytest.mark.parametrize("name", test_twins.DIRECTIONS)
def test_the_twins_catch_every_mutant(name: str, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, settings, reference = test_twins.DIRECTIONS[name]
    if how == "coupled" and name == "SGDW":
        pytest.skip("for plain SGD coupled and decoupled decay are one")
    monkeypatch.setitem(test_twins.DIRECTIONS, name, (mutant(make, how), settings, reference))
    with pytest.raises(AssertionError):
        test_twins.test_every_direction_follows_every_rule_as_its_twin_does(name, "decoupled")


@pytest.mark.parametrize("how", ["no decay", "decoupled", "wrong sign"])
def test_the_comparison_with_torch_catches_every_mutant_of_adam_l2(how: str) -> None:
    with pytest.raises(AssertionError):
        test_twins.test_where_torch_has_the_optimizer_ours_equals_it_bit_for_bit(
            mutant(AdamL2, how), torch.optim.Adam, {}, torch.float64, {}
        )


@pytest.mark.parametrize("how", ["no decay", "coupled", "wrong sign"])
def test_torchs_own_kind_of_test_does_not_notice(how: str) -> None:
    """Why all this is needed: that the loss falls and states load says nothing about the decay."""
    each = test_contract.info(mutant(AdamW, how), None)
    for case in test_contract.INFOS[0].optim_inputs_func(device="cpu", dtype=torch.float32):
        test_contract.test_the_loss_goes_the_right_way(each, case)
        test_contract.test_tensors_without_gradient_stay_and_get_no_state(each, case)
