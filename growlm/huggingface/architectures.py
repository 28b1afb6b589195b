"""List the transformers architectures that growlm can import and export, each described by one table.

A table lists the keys of `config.json` that correspond to `ModelConfig` fields, the keys that must have a certain
value, and the mapping rules of the tensors. Import and export use nothing else. The tables are in `families/`.

Sources: the classes of transformers 5 (`models/<model type>`), and the layouts of the files that Meta, Mistral AI,
Hugging Face, Alibaba, Google, AI2, Microsoft, EleutherAI, OpenAI, IBM, Z.ai and Baidu published under these names.
"""

from __future__ import annotations

from growlm.huggingface.architecture import Architecture
from growlm.huggingface.families.ernie import ERNIE4_5
from growlm.huggingface.families.gemma import GEMMA, GEMMA2, GEMMA3
from growlm.huggingface.families.glm import GLM, GLM4
from growlm.huggingface.families.gpt2 import GPT2
from growlm.huggingface.families.gpt_neox import GPT_NEOX
from growlm.huggingface.families.granite import GRANITE, GRANITE_MOE
from growlm.huggingface.families.llama import LLAMA, MISTRAL, MIXTRAL, SMOLLM3
from growlm.huggingface.families.olmo import FLEX_OLMO, OLMO2, OLMO3, OLMOE
from growlm.huggingface.families.phi import PHI3
from growlm.huggingface.families.qwen import QWEN2, QWEN2_MOE, QWEN2_UPCYCLED, QWEN3, QWEN3_MOE
from growlm.huggingface.families.shared_tables import SIZE_KEYS
from growlm.huggingface.mapping_rules import identity_rule
from growlm.model.config import ModelConfig

GROWLM = Architecture(
    model_type="growlm",
    class_name="GrowLMForCausalLM",
    fixed_fields={},
    field_to_key=SIZE_KEYS
    | {
        "n_kv_heads": "num_key_value_heads",
        "head_dim": "head_dim",
        "num_experts": "num_local_experts",
        "top_k": "num_experts_per_tok",
        "shared_d_ff": "shared_d_ff",
        "expert_d_ff": "expert_d_ff",
    }
    | {name: name for name in ModelConfig.part_types()},
    key_defaults={"shared_d_ff": 0, "embedding": {}, "layers": {}},
    required_values={},
    tensor_layouts=((identity_rule("{name}", "model.{name}"),),),
    ignored_tensors=(r"lm_head\.weight",),  # the embedding of a tied model once more
    rotary=None,
)
"""growlm's own architecture, for any model: transformers loads its class from growlm through `auto_map`."""

ARCHITECTURES = (
    *(LLAMA, MISTRAL, MIXTRAL),
    *(QWEN2, QWEN3, QWEN2_MOE, QWEN2_UPCYCLED, QWEN3_MOE),
    *(GEMMA, GEMMA2, GEMMA3),
    PHI3,
    *(OLMO2, OLMO3, OLMOE, FLEX_OLMO),
    GPT_NEOX,
    GPT2,
    SMOLLM3,
    *(GRANITE, GRANITE_MOE),
    *(GLM, GLM4),
    ERNIE4_5,
    GROWLM,
)
"""All architectures, in the order in which an export tries them."""

assert set(GROWLM.field_to_key) == set(ModelConfig.__dataclass_fields__)
