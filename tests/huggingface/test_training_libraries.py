"""Three steps of other libraries' trainers on growlm's own class, and what they leave is a growlm model."""

import datasets
import pytest
import tokenizers
import torch
import transformers

from growlm.checkpoint import load_model
from growlm.growth import Deepen, Widen, grow
from growlm.huggingface import to_growlm
from growlm.huggingface.transformers_model import GrowLMConfig, GrowLMForCausalLM
from tests.huggingface.hf_models import tokens_for
from tests.huggingface.test_own_class_in_transformers import KINDS, SIZES

REASON = "needs pip install 'growlm[test-integrations]'"

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # they warn of each other


@pytest.fixture(autouse=True)
def _accelerate():
    """What transformers' own `Trainer` needs."""
    pytest.importorskip("accelerate", reason=REASON)


@pytest.fixture(params=["dense", "mixture"])
def model(request):
    torch.manual_seed(0)
    return GrowLMForCausalLM(GrowLMConfig(**SIZES | KINDS[request.param]))


def rows(config, count=12):
    return [{"input_ids": row, "labels": row} for row in tokens_for(config, count, 10)]


def arguments(folder, **changes):
    settings = {
        "output_dir": str(folder / "run"),
        "max_steps": 3,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return settings | changes


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("recomputed", [False, True])
def test_trainer(model, tmp_path, recomputed):
    tokens = tokens_for(model.config)
    before = model(tokens).logits.detach()
    changes = {"gradient_checkpointing": recomputed, "gradient_accumulation_steps": 2}
    changes |= {"eval_strategy": "steps", "eval_steps": 3}
    training = transformers.TrainingArguments(**arguments(tmp_path, **changes))
    data = rows(model.config)
    trainer = transformers.Trainer(model, training, train_dataset=data, eval_dataset=data[:4])
    trainer.train()
    assert len(losses(trainer)) == 3
    trainer.save_model(tmp_path / "saved")
    again = GrowLMForCausalLM.from_pretrained(tmp_path / "saved")
    after = model.eval()(tokens).logits
    assert torch.equal(again(tokens).logits, after)
    assert (after - before).abs().max() > 1e-3
    to_growlm(tmp_path / "saved", tmp_path / "ours")
    assert (load_model(tmp_path / "ours")[0](tokens) - after).abs().max() <= 1e-5


def test_recomputing_trains_the_same(model, tmp_path):
    state, found = model.state_dict(), []
    start = {name: tensor.clone() for name, tensor in state.items()}
    for recomputed in (False, True):
        model.load_state_dict(start)
        training = transformers.TrainingArguments(
            **arguments(tmp_path, gradient_checkpointing=recomputed)
        )
        trainer = transformers.Trainer(model, training, train_dataset=rows(model.config))
        trainer.train()
        found.append(losses(trainer))
    assert found[0] == pytest.approx(found[1], abs=1e-6)


@pytest.mark.parametrize("targets", [["query", "value", "up", "router"], "all-linear"])
def test_lora(model, tmp_path, targets):
    peft = pytest.importorskip("peft", reason=REASON)
    tokens = tokens_for(model.config)
    before = model(tokens).logits.detach()
    names = (
        targets
        if targets == "all-linear"
        else [*targets, *["head"] * (model.model.head is not None)]
    )
    stacks = ["experts.up", "experts.down"] if model.model.config.is_moe else None
    settings = peft.LoraConfig(
        r=2, target_modules=names, target_parameters=stacks, task_type="CAUSAL_LM"
    )
    adapted = peft.get_peft_model(model, settings)
    output = adapted(tokens, labels=tokens)
    assert output.loss is not None
    training = transformers.TrainingArguments(**arguments(tmp_path, gradient_checkpointing=True))
    trainer = transformers.Trainer(adapted, training, train_dataset=rows(model.config))
    trainer.train()
    added = {name: p for name, p in adapted.named_parameters() if ".lora_B." in name}
    assert all(p.any() for p in added.values())
    assert any(".experts." in name for name in added) == model.model.config.is_moe
    trained = adapted.eval()(tokens).logits
    assert (trained - before).abs().max() > 1e-4
    merged = adapted.merge_and_unload()
    assert type(merged) is GrowLMForCausalLM
    assert (merged(tokens).logits - trained).abs().max() <= 1e-5
    grown = grow(merged.model, [Widen(2.0), Deepen(1)], seed=0)
    assert (grown(tokens) - trained).abs().max() <= 1e-4
    merged.save_pretrained(tmp_path / "merged")
    to_growlm(tmp_path / "merged", tmp_path / "ours")
    assert (load_model(tmp_path / "ours")[0](tokens) - trained).abs().max() <= 1e-5


def test_sft_trainer(model, tmp_path):
    trl = pytest.importorskip("trl", reason=REASON)
    words = {f"w{i}": i for i in range(28)} | {"<end>": 28}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<end>", pad_token="<end>", unk_token="w0"
    )
    texts = [" ".join(f"w{i}" for i in row.tolist()) for row in tokens_for(model.config, 12, 10)]
    before = model.get_input_embeddings().weight.detach().clone()
    settings = trl.SFTConfig(**arguments(tmp_path, max_length=16, bf16=False))
    trainer = trl.SFTTrainer(
        model,
        args=settings,
        train_dataset=datasets.Dataset.from_dict({"text": texts}),
        processing_class=tokenizer,
    )
    trainer.train()
    assert len(losses(trainer)) == 3
    assert not torch.equal(model.get_input_embeddings().weight, before)
