"""What the atlas says of architectures, beside what is recorded of them and what transformers' own Trainer does."""

from __future__ import annotations

import re

import atlas_rows
import atlas_sizes
import make_atlas
import pytest

import weightdecay
from tests.planning.skeletons import names, read
from weightdecay.planning.patterns import INDEX

SPOTS = ("LlamaForCausalLM", "MambaForCausalLM", "GptOssForCausalLM", "RobertaPreLayerNormForCausalLM", "CLIPModel")
DATA = make_atlas.read_data()
ARCHITECTURES = {one[0]: one for one in DATA["architectures"]}


def decaying(name: str, policy: str) -> dict[str, bool]:
    """What the atlas says that a policy decays, by tensors' names without their indices; those of one fate alone."""
    found: dict[str, set[bool]] = {}
    place = [one["name"] for one in DATA["policies"]].index(policy)
    for row in ARCHITECTURES[name][5]:
        template = INDEX.sub("#", _first(DATA["words"][row[0]]))
        found.setdefault(template, set()).add(bool(row[7] >> place & 1))
    return {template: fates.pop() for template, fates in found.items() if len(fates) == 1}


def _first(pattern: str) -> str:
    return re.sub(r"\{(\d+)[^}]*\}", r"\1", pattern)


def test_every_recorded_architecture_is_there_with_the_versions_it_was_made_with() -> None:
    assert set(ARCHITECTURES) == {name for kind in ("causal", "other") for name in names(kind)}
    assert len(ARCHITECTURES) > 580
    assert DATA["made_with"] == {"weightdecay": weightdecay.__version__, "transformers": "5.23.0"}
    assert [policy["name"] for policy in DATA["policies"]] == list(atlas_rows.POLICIES)
    for policy in DATA["policies"]:
        assert policy["source"]


def test_the_page_is_made_of_its_parts_and_small() -> None:
    assert make_atlas.PAGE.read_text("utf-8") == make_atlas.page(DATA), "run docs/make_atlas.py page"
    assert make_atlas.PAGE.stat().st_size < 1_000_000
    assert make_atlas.DATA.stat().st_size < 1_000_000


def test_nothing_of_the_data_is_read_as_markup() -> None:
    script = (make_atlas.FOLDER / "page.js").read_text("utf-8")
    assert "innerHTML" not in script
    assert "insertAdjacentHTML" not in script


@pytest.mark.parametrize("name", SPOTS)
def test_tensors_are_those_of_the_record_with_its_verdicts(name: str) -> None:
    (model,) = (model for kind in ("causal", "other") for model in read(kind, only=[name]))
    rows = ARCHITECTURES[name][5]
    for row, kind in zip(rows, atlas_rows.kinds(model), strict=True):
        assert DATA["words"][row[1]] == str(kind.planned.role)
        assert row[7] == sum(1 << place for place, decays in enumerate(kind.decays) if decays)
        assert [DATA["words"][reason] for reason in row[9]] == list(kind.exemptions)


def test_parameters_are_those_of_the_default_configurations() -> None:
    sizes = atlas_sizes.read()["architectures"]
    own = [one for one in ARCHITECTURES.values() if one[3]]
    assert len(own) > 540
    for name, _, _, _, missing, rows in own:
        whole = sum(elements for _, _, elements in sizes[name]["kinds"].values())
        assert sum(row[6] for row in rows) + missing == pytest.approx(whole, abs=len(rows))  # shares are rounded
    assert sum(row[6] for row in ARCHITECTURES["GPT2LMHeadModel"][5]) == 124_439_808
    # Some default configurations have tensors that the small recorded models lack.
    assert sum(one[4] == 0 for one in own) > 0.9 * len(own)


def test_mamba_and_prelayernorm_are_wrong_in_the_trainer_as_its_issues_say() -> None:
    mamba = decaying("MambaForCausalLM", "transformers")
    assert mamba["backbone.layers.#.mixer.A_log"]
    assert mamba["backbone.norm_f.weight"]
    assert decaying("GptOssForCausalLM", "transformers")["model.layers.#.self_attn.sinks"]


@pytest.mark.long
@pytest.mark.transformers
@pytest.mark.parametrize("name", SPOTS)
def test_the_column_of_transformers_is_what_its_real_trainer_groups(name: str) -> None:
    pytest.importorskip("transformers")
    from transformers.trainer import Trainer

    from tests.planning.zoo import tiny

    model = tiny(name)
    assert model is not None
    decayed = set(Trainer.get_decay_parameter_names(None, model))
    fates: dict[str, set[bool]] = {}
    for one, _ in model.named_parameters():
        fates.setdefault(INDEX.sub("#", one), set()).add(one in decayed)
    said = decaying(name, "transformers")
    assert set(said) == {template for template, found in fates.items() if len(found) == 1}
    assert {template: {decays} for template, decays in said.items()} == {one: fates[one] for one in said}


@pytest.mark.long
def test_the_data_are_what_the_record_makes_today() -> None:
    assert make_atlas.read_data() == atlas_rows.document(), "run docs/make_atlas.py"
