"""List the transformers architectures that growlm can import and export, each described by one table.

A table lists the keys of `config.json` that correspond to `ModelConfig` fields, the keys that must have a certain
value, and the mapping rules of the tensors. Import and export use nothing else. The tables are in `families/`.

Sources: the classes of transformers 5 (`models/<model type>`), and the layouts of the files that Meta, Mistral AI,
Hugging Face, Alibaba, Google, AI2, Microsoft, EleutherAI, OpenAI, IBM, Z.ai, Baidu, BigCode, Stability AI,
ByteDance, NVIDIA, Arcee AI, Kyutai, LG, TII, Cohere and Salesforce published under these names.
"""

from __future__ import annotations

from growlm.huggingface.architecture import Architecture
from growlm.huggingface.families.cohere import COHERE, COHERE2
from growlm.huggingface.families.falcon import FALCON, FALCON_GROUPED
from growlm.huggingface.families.gemma import GEMMA, GEMMA2, GEMMA3, VAULTGEMMA
from growlm.huggingface.families.glm import GLM, GLM4
from growlm.huggingface.families.gpt2 import GPT2, GPT_BIGCODE
from growlm.huggingface.families.gptj import CODEGEN, GPTJ
from growlm.huggingface.families.granite import GRANITE, GRANITE_MOE, GRANITE_MOE_SHARED
from growlm.huggingface.families.layernorm_families import (
    GPT_NEOX,
    NEMOTRON,
    OPT,
    STABLELM,
    STARCODER2,
)
from growlm.huggingface.families.llama import LLAMA, MISTRAL, MIXTRAL, SMOLLM3
from growlm.huggingface.families.llama_relatives import (
    ARCEE,
    CWM,
    ERNIE4_5,
    EXAONE4,
    HELIUM,
    MINISTRAL,
    SEED_OSS,
)
from growlm.huggingface.families.olmo import FLEX_OLMO, OLMO, OLMO2, OLMO3, OLMOE
from growlm.huggingface.families.phi import PHI, PHI3
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
    ignored_tensors=(r"lm_head\.(weight|bias)",),  # tied: tensors of `model` once more
    rotary=None,
    wide_modules=("router", "selection_bias"),
)
"""growlm's own architecture, for any model: transformers loads its class from growlm through `auto_map`."""

ARCHITECTURES = (
    *(LLAMA, MISTRAL, MIXTRAL),
    *(QWEN2, QWEN3, QWEN2_MOE, QWEN2_UPCYCLED, QWEN3_MOE),
    *(GEMMA, GEMMA2, GEMMA3, VAULTGEMMA),
    PHI3,
    *(OLMO, OLMO2, OLMO3, OLMOE, FLEX_OLMO),
    GPT_NEOX,
    *(GPT2, GPT_BIGCODE),
    SMOLLM3,
    *(GRANITE, GRANITE_MOE, GRANITE_MOE_SHARED),
    *(GLM, GLM4),
    ERNIE4_5,
    PHI,
    *(FALCON, FALCON_GROUPED),
    *(COHERE, COHERE2),
    *(GPTJ, CODEGEN),
    *(STARCODER2, STABLELM, NEMOTRON, OPT),
    *(SEED_OSS, ARCEE, HELIUM, MINISTRAL, CWM, EXAONE4),
    GROWLM,
)
"""All architectures, in the order in which an export tries them."""

assert set(GROWLM.field_to_key) == set(ModelConfig.__dataclass_fields__)
