"""What is wrong is said, with what to do about it."""

from __future__ import annotations

import json
import socket
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import weightdecay
from tests.planning.test_plan import RootMeanSquare, TiedDecoder
from weightdecay.errors import DamagedError, PlanError
from weightdecay.planning.lockfile import read_lock, write_lock
from weightdecay.planning.model_sources import open_source, safetensors_shapes
from weightdecay.planning.policies.overrides import Override
from weightdecay.planning.policies.policy_file import read_policy
from weightdecay.planning.roles.roles import Role


def test_faults_in_the_arguments_come_together() -> None:
    with pytest.raises(PlanError) as caught:
        weightdecay.plan(TiedDecoder(), weight_decay=-0.1, policy="defualt", unknown="ignore")  # type: ignore[arg-type]
    assert len(caught.value.faults) == 3
    assert "did you mean 'default'" in str(caught.value)


def test_an_override_must_match_something() -> None:
    with pytest.raises(PlanError, match=r"matches no tensor: did you mean 'norm\.weight'"):
        weightdecay.plan(TiedDecoder(), overrides={"nrm.weight": 0.0})


def test_an_override_that_is_no_pattern_or_no_number_is_refused() -> None:
    overrides = [Override("(", 1.0), Override("mix", -1.0), Override("mix", 1.0, lr_multiplier=float("nan"))]
    with pytest.raises(PlanError) as caught:
        weightdecay.plan(TiedDecoder(), overrides=overrides)
    assert len(caught.value.faults) == 3


@pytest.mark.parametrize(
    "overrides",
    ["mix", ["mix"], [("mix", 0.0)], {3: 0.0}, {"mix": "0"}, {"mix": True}, None, 3, [Override(None)]],  # type: ignore[arg-type]
)
def test_overrides_of_another_type_are_named(overrides: Any) -> None:
    with pytest.raises(PlanError, match=r"overrides holds|is no regular expression|is no finite number"):
        weightdecay.plan(TiedDecoder(), overrides=overrides)


@pytest.mark.parametrize("weight_decay", ["0.1", True, None, [0.1], float("nan"), float("inf")])
def test_a_lambda_of_another_type_is_named(weight_decay: Any) -> None:
    with pytest.raises(PlanError, match="weight_decay is"):
        weightdecay.plan(TiedDecoder(), weight_decay)


@pytest.mark.parametrize("policy", [3, None, ["default"], b"default", object])
def test_a_policy_of_another_type_is_named(policy: Any) -> None:
    with pytest.raises(PlanError, match="policy is"):
        weightdecay.plan(TiedDecoder(), policy=policy)


@pytest.mark.parametrize("model", [3, "gpt2", [1], nn.Linear, nn.Linear(2, 2).parameters()])
def test_what_is_no_model_is_named(model: Any) -> None:
    plan = weightdecay.plan(TiedDecoder())
    for ask in (weightdecay.plan, plan.on):
        with pytest.raises(PlanError, match="model is"):
            ask(model)
    with pytest.raises(PlanError, match="'a' is int"):
        weightdecay.plan({"a": 3})  # type: ignore[dict-item]


@pytest.mark.parametrize("lr", ["1e-3", None, True, float("nan"), float("inf"), -1.0, torch.ones(2)])
def test_an_lr_of_another_type_is_named(lr: Any) -> None:
    with pytest.raises(PlanError, match="lr is"):
        weightdecay.plan(TiedDecoder()).param_groups(lr=lr)


def test_overrides_decide_in_order_by_name_or_alias_and_pass_a_learning_rate_through() -> None:
    plan = weightdecay.plan(
        TiedDecoder(),
        0.1,
        overrides=[Override(r"^head\.", 0.5, lr_multiplier=2.0, reason="tied"), Override("weight", 0.0)],
    )
    assert plan["embed.weight"].weight_decay == pytest.approx(0.05)
    assert plan["embed.weight"].reason == r"override '^head\.': tied"
    assert not plan["mix.weight"].decays
    groups = {group["name"]: group for group in plan.param_groups(lr=1e-3)}
    assert groups["decay×0.5 lr×2"]["lr"] == pytest.approx(2e-3)
    assert groups["decay×0.5 lr×2"]["param_names"] == ["embed.weight"]


class Mystery(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.zzz = nn.Parameter(torch.ones(3, 2))


def test_a_tensor_that_nothing_tells_about_is_an_error_until_someone_decides() -> None:
    with pytest.raises(PlanError, match=r"unknown role: zzz \[3, 2\].*override"):
        weightdecay.plan(Mystery())
    assert not weightdecay.plan(Mystery(), unknown="exempt")["zzz"].decays
    assert weightdecay.plan(Mystery(), overrides={"zzz": 1.0})["zzz"].decays
    assert weightdecay.plan(Mystery(), policy="nanogpt")["zzz"].decays  # emulated rules ask for no role


def test_a_model_without_parameters_has_nothing_to_plan() -> None:
    with pytest.raises(PlanError, match="no parameters"):
        weightdecay.plan(nn.ReLU())


def test_lazy_modules_must_run_once() -> None:
    model = nn.Sequential(nn.LazyLinear(4), nn.LazyConv1d(2, 3))
    with pytest.raises(PlanError, match="run one forward pass"):
        weightdecay.plan(model)
    ready = nn.Sequential(nn.LazyLinear(4))
    ready(torch.ones(2, 3))
    assert weightdecay.plan(ready)["0.weight"].decays


def test_quantised_tensors_are_frozen_and_complex_ones_planned() -> None:
    model = nn.Module()
    model.packed = nn.Parameter(torch.ones(8, 8, dtype=torch.int8), requires_grad=False)
    model.mix = nn.Linear(8, 8, dtype=torch.complex64)
    plan = weightdecay.plan(model, unknown="exempt")
    assert plan["packed"].role is Role.FROZEN
    assert "int8" in plan["packed"].evidence
    assert plan["mix.weight"].decays
    assert "packed" not in str(plan.param_groups(lr=1.0)[0]["param_names"])


def test_a_tensor_of_two_kinds_of_modules_has_both_roles_and_one_exemption_exempts_it() -> None:
    model = nn.ModuleDict({"scale": RootMeanSquare(8), "head": nn.Linear(8, 8), "embed": nn.Embedding(8, 8)})
    model["head"].bias = model["scale"].weight
    model["head"].weight = model["embed"].weight
    plan = weightdecay.plan(model, policy="no-embeddings")
    assert set(plan["head.weight"].roles) == {Role.OUTPUT_HEAD, Role.EMBEDDING}
    assert not plan["head.weight"].decays
    assert "one exempt role exempts" in plan["head.weight"].reason
    assert plan["scale.weight"].aliases == ("head.bias",)


def test_marks_set_by_the_models_author_are_honoured_and_shown() -> None:
    model = TiedDecoder()
    model.mix.weight._no_weight_decay = True  # type: ignore[attr-defined]
    plan = weightdecay.plan(model)
    assert not plan["mix.weight"].decays
    assert "_no_weight_decay" in plan["mix.weight"].reason


def test_a_lock_is_read_back_and_says_what_changed(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    plan = weightdecay.plan(TiedDecoder())
    write_lock(plan, path)
    locked = read_lock(path)
    assert list(locked) == list(plan)
    assert not locked.diff(plan)
    changes = locked.diff(weightdecay.plan(TiedDecoder(), policy="no-embeddings", weight_decay=0.2))
    assert "embed.weight: multiplier 1 → 0, λ 0.1 → 0" in str(changes)
    assert "mix.weight: λ 0.1 → 0.2" in str(changes)


def test_a_lock_of_another_model_names_what_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    write_lock(weightdecay.plan(nn.Linear(2, 2)), path)
    with pytest.raises(PlanError, match=r"does not know embed\.weight"):
        read_lock(path).on(TiedDecoder())
    assert "not in the other plan" in str(read_lock(path).diff(weightdecay.plan(TiedDecoder())))


def test_what_changed_alike_in_many_layers_is_one_line() -> None:
    deep, wide = (nn.ModuleDict({"layers": nn.Sequential(*(nn.Linear(2, n) for _ in range(9)))}) for n in (2, 3))
    changes = str(weightdecay.plan(deep).diff(weightdecay.plan(wide))).splitlines()
    assert changes == [
        "layers.{0-8}.weight (×9): shape [2, 2] → [3, 2]",
        "layers.{0-8}.bias (×9): shape [2] → [3]",
    ]


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("{", DamagedError, "no valid JSON"),
        ("[]", PlanError, "no lock of a decay plan"),
        ('{"format": "weightdecay plan", "version": 99}', PlanError, "update weightdecay"),
        ('{"format": "weightdecay plan", "version": 1, "tensors": [{}]}', DamagedError, "damaged lock"),
    ],
)
def test_a_lock_that_cannot_be_used_says_why(
    tmp_path: Path, content: str, error: type[Exception], message: str
) -> None:
    path = tmp_path / "plan.json"
    path.write_text(content)
    with pytest.raises(error, match=message):
        read_lock(path)


def test_a_lock_that_is_not_there_says_how_to_write_one(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="--lock"):
        read_lock(tmp_path / "none.json")


def test_a_policy_file_changes_roles_and_adds_overrides(tmp_path: Path) -> None:
    path = tmp_path / "ours.toml"
    path.write_text(
        'base = "no-embeddings"\n[roles]\n"linear weight" = 0.5\n[[override]]\npattern = "mix"\nmultiplier = 2\n'
    )
    spelt: Any = str(path)
    assert weightdecay.plan(TiedDecoder(), 0.1, policy=spelt).policy == "ours"
    plan = weightdecay.plan(TiedDecoder(), 0.1, policy=path)
    assert plan.policy == "ours"
    assert plan["mix.weight"].weight_decay == pytest.approx(0.2)
    assert not plan["embed.weight"].decays


def test_faults_in_a_policy_file_come_together(tmp_path: Path) -> None:
    path = tmp_path / "ours.toml"
    path.write_text('bse = 1\nbase = "dfault"\n[roles]\nembeding = 0\nbias = -1\n[[override]]\nmultiplier = 1\n')
    with pytest.raises(PlanError) as caught:
        read_policy(path)
    assert len(caught.value.faults) == 5
    assert "did you mean 'embedding'" in str(caught.value)
    with pytest.raises(PlanError, match="no valid TOML"):
        read_policy(Path(__file__))


def safetensors(path: Path, header: object, length: int | None = None) -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text)
    return path


def test_names_and_shapes_of_a_safetensors_file_suffice_for_a_weaker_plan(tmp_path: Path) -> None:
    entry = {"dtype": "F32", "data_offsets": [0, 0]}
    header = {
        "__metadata__": {"format": "pt"},
        "model.norm.weight": {**entry, "shape": [8]},
        "up.weight": {**entry, "shape": [8, 9]},
    }
    source = open_source(str(safetensors(tmp_path / "m.safetensors", header)))
    assert source is not None
    assert source.model is None
    assert [facts.name for facts in source.shapes] == ["model.norm.weight", "up.weight"]
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(["model.norm.weight", "up.weight"], "m.safetensors")}))
    assert open_source(str(index)) == source


def test_a_bare_state_dict_is_planned_by_names_and_shapes_and_says_so() -> None:
    plan = weightdecay.plan(TiedDecoder().state_dict())
    assert plan["mix.weight"].decays
    assert not plan["mix.bias"].decays
    assert "weak" in plan["norm.weight"].evidence


@pytest.mark.parametrize("content", [b"", b"\x01\x02", struct.pack("<Q", 99) + b"{}", struct.pack("<Q", 2) + b"[]"])
def test_a_truncated_safetensors_header_is_damage(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    with pytest.raises(DamagedError):
        safetensors_shapes(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "no valid JSON"), ("{}", "model_type"),
     ('{"model_type": "lama"}', "knows no model type 'lama': did you mean 'llama'"),
     ('{"model_type": "llama", "hidden_size": "wide"}', "no configuration could be had|cannot build")],
)  # fmt: skip
@pytest.mark.transformers
def test_a_configuration_that_makes_no_model_says_why(tmp_path: Path, content: str, message: str) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(PlanError, match=message):
        open_source(str(tmp_path))


@pytest.mark.transformers
def test_a_hub_that_cannot_be_reached_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client would try six times, for half a minute."""
    pytest.importorskip("transformers")

    def nowhere(*_: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", nowhere)
    with pytest.raises(PlanError, match=r"hub cannot be reached.*plan that file"):
        open_source("hf:nobody/nothing")


def failing_factory() -> nn.Module:
    raise RuntimeError("the user's own fault")


def no_factory() -> int:
    return 3


def test_a_factory_that_raises_is_the_users_own_error() -> None:
    with pytest.raises(RuntimeError, match="the user's own fault"):
        open_source("python:tests.planning.test_bad_input:failing_factory")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tests.planning.test_bad_input:failing_fctory", "did you mean 'failing_factory'"),
        ("tests.planning.test_bad_input:no_factory", "must return a torch.nn.Module"),
        ("tests.planning.not_there:build", "no module 'tests.planning.not_there'"),
        ("tests.planning", "names no factory"),
    ],
)
def test_a_factory_that_is_none_is_refused(text: str, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        open_source(f"python:{text}")


def test_what_is_no_source_of_ours_is_left_to_others() -> None:
    assert open_source("gpt2:124m") is None
