"""`grow` takes a transformers model and returns one that computes the same, bit for bit as through folders."""

import pytest
import torch

from growlm.checkpoint.offline_growth import grow_checkpoint
from growlm.growth import Deepen, MultiplyExperts, Upcycle, Widen, grow
from growlm.huggingface import to_growlm, to_huggingface
from tests.huggingface.hf_models import FIXED, load, make, precision, tokens_for
from tests.huggingface.test_grown_families import FAMILIES, UPCYCLED

OWN_CLASS = "GrowLMForCausalLM"
WIDEN_TWICE = Widen(scale_factor=2, noise_std=1e-3)
SINGLE = {
    "experts": Upcycle(num_experts=4),
    "x1.5": Widen(scale_factor=1.5, noise_std=1e-3),
    "x2": WIDEN_TWICE,
    "fresh": Widen(scale_factor=2),
    "deeper": Deepen(extra_layers=1),
}
WHOLE_FACTORS_ONLY = ("olmo2", "olmo3", "olmoe", "flex_olmo")
SCALED_EPSILONS_LEAVE = ("qwen3", "qwen3_moe", "gemma3_text", "exaone4", "opt", "olmo")
"""Classes that can be widened by copies of all channels only, or else become growlm's own."""


def is_mixture(model):
    return getattr(model.config, "num_experts_per_tok", None) is not None


def largest_difference(model, grown):
    """Of the logits; the experts' default implementation knows no fp64."""
    grown.config._experts_implementation = "eager"
    tokens = tokens_for(model.config)
    with torch.no_grad(), precision(model.dtype):
        before, after = model(tokens).logits, grown(tokens).logits
    assert before.abs().max() > 0.1 or model.config.model_type.startswith("granite")
    assert after.dtype == before.dtype
    return (after - before).abs().max()


def operators_for(family, mixture):
    """All kinds of growth at once."""
    experts = MultiplyExperts(noise_std=1e-3) if mixture else Upcycle(num_experts=4)
    return [experts, WIDEN_TWICE, Deepen(extra_layers=1)]


DEFAULT = ("llama", "qwen2", "gemma3_text", "gpt2", "gpt_neox", "granitemoe", "phi3", "qwen3_moe")
"""Of these, tensors are fused, transposed, stacked, scaled, tied or new."""


def families(*default):
    return [pytest.param(name, marks=[] if name in default else pytest.mark.slow) for name in FIXED]


@pytest.mark.parametrize("family", families(*DEFAULT))
def test_it_computes_the_same_in_the_class_that_fits(family):
    model = make(family)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random_state = torch.get_rng_state()

    grown = grow(model, operators_for(family, is_mixture(model)), seed=3)

    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())
    own = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
    for tensor in (*grown.state_dict().values(), *grown.buffers()):
        assert tensor.device == model.device
        assert tensor.is_contiguous()
        assert tensor.untyped_storage().data_ptr() not in own
        assert tensor.untyped_storage().nbytes() == tensor.nbytes
    expected = type(model).__name__ if is_mixture(model) else UPCYCLED.get(family, OWN_CLASS)
    assert type(grown).__name__ == expected
    assert not grown.training
    assert largest_difference(model, grown) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("growth", SINGLE)
@pytest.mark.parametrize(("family", "changes"), FAMILIES.values(), ids=FAMILIES)
def test_each_growth_alone_in_fp64(family, changes, growth):
    model = make(family, dtype=torch.float64, **changes)
    operator, uneven = SINGLE[growth], growth in ("x1.5", "fresh")
    upcycled = growth == "experts" and not is_mixture(model)
    if growth == "experts" and is_mixture(model):
        operator = MultiplyExperts(noise_std=1e-3)
    if uneven and family in WHOLE_FACTORS_ONLY:
        operator = WIDEN_TWICE
    grown = grow(model, [operator])
    if not upcycled:
        leaves = uneven and family in SCALED_EPSILONS_LEAVE
        leaves |= (family, growth) == ("codegen", "x1.5")  # its heads are a multiple of four
        # Twice as many channels halve the gains before a tied head, and OLMo's class has none.
        leaves |= (family, growth) == ("olmo", "x2") and model.config.tie_word_embeddings
        assert (type(grown) is type(model)) is not leaves
    assert largest_difference(model, grown) <= 1e-10


@pytest.mark.parametrize("family", families("qwen2", "gpt2"))
def test_in_memory_it_has_the_bits_that_the_folder_has(tmp_path, family):
    model = make(family)
    operators = operators_for(family, is_mixture(model))
    model.save_pretrained(tmp_path / "hf")
    to_growlm(tmp_path / "hf", tmp_path / "ours")
    grow_checkpoint(tmp_path / "ours", tmp_path / "grown", operators, seed=3, boundary_index=2)
    done = to_huggingface(tmp_path / "grown", tmp_path / "out")
    own = {"trust_remote_code": True} if done.class_name == OWN_CLASS else {}
    expected = load(tmp_path / "out", **own)

    grown = grow(model, operators, seed=3, boundary_index=2)

    assert type(grown) is type(expected)
    assert grown.state_dict().keys() == expected.state_dict().keys()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(grown.state_dict()[name], tensor), name
    for name, buffer in expected.named_buffers():
        assert torch.equal(grown.get_buffer(name), buffer), name
    # Beside what a checkpoint does not keep, and what a folder says about its own files.
    ours, theirs = grown.config.to_diff_dict(), expected.config.to_diff_dict()
    for key in ("auto_map", "growlm", "_name_or_path"):
        ours.pop(key, None), theirs.pop(key, None)
    assert {key: ours.get(key) for key in theirs} == theirs
