"""What the commands beside `growlm.train` take: names, types, defaults, bounds.

Each is a file `conf/COMMAND.yaml` and a dataclass here, as `schema.py` has it for a run.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from growlm.config.schema import DataConfig, OperatorConfig
from growlm.runtime.field_limits import limits


@dataclass
class GrowCommand:
    """`python -m growlm.grow`."""

    checkpoint: str = MISSING
    """Folder of the checkpoint to grow."""
    out: str = MISSING
    """Folder of the grown one; made, must not exist."""
    grow: list[OperatorConfig] = MISSING
    """Operators, applied in order."""
    seed: int = field(default=0, metadata=limits(minimum=0, maximum=2**31 - 1))
    """Of noise, routers and filler columns."""
    boundary_index: int = field(default=0, metadata=limits(minimum=0, maximum=2**31 - 1))
    """Which growth of a run this is; part of the seed."""
    optimizer_state: str = field(default="carry", metadata=limits(choices=("carry", "reset")))
    """What becomes of the optimizer's moments, if the checkpoint has some: grown along, or left out."""


@dataclass
class VerifyCommand:
    """`python -m growlm.verify`."""

    old: str | None = None
    """Folder of the checkpoint before a growth; without it and `new`, the standalone suite runs."""
    new: str | None = None
    """Folder of the checkpoint after it."""
    tolerance: float = field(default=1e-4, metadata=limits(above=0.0, maximum=1.0))
    """Logits may differ by this times max(1, largest logit)."""
    probe_sequences: int = field(default=2, metadata=limits(minimum=1, maximum=4096))
    """Sequences of random tokens to compare on."""
    probe_length: int = field(default=32, metadata=limits(minimum=2, maximum=2**20))
    """Tokens of each."""
    seed: int = field(default=0, metadata=limits(minimum=0, maximum=2**31 - 1))
    """Of the probe."""
    require_symmetry_breaking: bool = False
    """Fail where copies stay equal, in place of a finding."""


@dataclass
class GenerateCommand:
    """`python -m growlm.generate`."""

    checkpoint: str = MISSING
    """Folder of the model: a checkpoint of ours, or a Hugging Face folder."""
    prompt: str | None = None
    """A text to continue; an empty one (`prompt=`) for a text from its beginning."""
    prompts_file: str | None = None
    """Many texts to continue: a file with one on each line that is not empty, or `.jsonl` with an object on each
    line, the text under `prompt`."""
    max_new_tokens: int = field(default=128, metadata=limits(minimum=1, maximum=2**20))
    """Tokens that each continuation has at most."""
    temperature: float = field(default=0.8, metadata=limits(minimum=0.0, maximum=100.0))
    """Divides the logits; 0 takes the likeliest token every time."""
    top_k: int = field(default=0, metadata=limits(minimum=0))
    """Draw from the k likeliest tokens; 0 for all."""
    top_p: float = field(default=1.0, metadata=limits(above=0.0, maximum=1.0))
    """Draw from the fewest tokens whose probabilities sum to at least p; 1 for all."""
    repetition_penalty: float = field(default=1.0, metadata=limits(above=0.0, maximum=100.0))
    """Of tokens that the text has already, positive logits are divided by this, negative ones multiplied; 1 for
    none."""
    seed: int = field(default=0, metadata=limits(minimum=0, maximum=2**31 - 1))
    """Of the draws, which follow from seed and prompt alone."""
    samples: int = field(default=1, metadata=limits(minimum=1, maximum=1_000_000))
    """Continuations of each prompt; the n-th is what `seed` + n - 1 gives alone."""
    batch_size: int = field(default=16, metadata=limits(minimum=1, maximum=1_000_000))
    """Continuations that are made at once."""
    stop_tokens: list[int] = field(default_factory=list, metadata=limits(minimum=0))
    """Token ids that end a continuation, besides the ends of text that the tokenizer's folder names."""
    format: str = field(default="text", metadata=limits(choices=("text", "json")))
    """`text`: prompt and continuation; `json`: an object a line, with token counts and why it ended."""
    out: str | None = None
    """File to write, in place of standard output; must not exist."""
    stream: bool | None = None
    """Print one prompt's continuation as it is made; None does so on a terminal."""
    device: str = field(default="auto", metadata=limits(choices=("auto", "cpu", "gpu")))
    """`auto` takes a GPU where there is one."""
    precision: str = field(
        default="auto", metadata=limits(choices=("auto", "32-true", "bf16-true"))
    )
    """Of weights and products; `auto` is bf16-true where the processor multiplies bf16, else 32-true. Routers are
    in fp32 always."""
    tokenizer_name: str | None = field(
        default=None, metadata=limits(choices=("embedded", "gpt2", "bytes"))
    )
    """For a checkpoint that does not say which tokenizer it was trained with."""


@dataclass
class EvaluateCommand:
    """`python -m growlm.evaluate`."""

    checkpoint: str = MISSING
    """Folder of the model: a checkpoint of ours, or a Hugging Face folder."""
    data: DataConfig = field(default_factory=DataConfig)
    """Group `data`, as in training."""
    split: str = field(default="validation", metadata=limits(choices=("validation", "all")))
    """`validation`: the documents that training on this data holds out; `all`: every document."""
    limit: int | None = field(default=None, metadata=limits(minimum=1))
    """Score at most so many tokens, the first ones; None for all."""
    sequence_length: int | None = field(default=None, metadata=limits(minimum=1, maximum=2**20))
    """Tokens the model reads at once; None for as many as it can (`max_seq_len`)."""
    stride: int | None = field(default=None, metadata=limits(minimum=1, maximum=2**20))
    """Tokens from one window to the next; the others of a window are context that is not scored again. None for
    the sequence length: no overlap, as in training."""
    batch_size: int = field(default=8, metadata=limits(minimum=1, maximum=1_000_000))
    """Windows that are read at once."""
    seed: int = field(default=0, metadata=limits(minimum=0, maximum=2**31 - 1))
    """Which embedded stories; a run's own `seed` for those it was trained with."""
    format: str = field(default="text", metadata=limits(choices=("text", "json")))
    """A table, or one JSON object."""
    device: str = field(default="auto", metadata=limits(choices=("auto", "cpu", "gpu")))
    """`auto` takes a GPU where there is one."""
    precision: str = field(default="32-true", metadata=limits(choices=("32-true", "bf16-mixed")))
    """`bf16-mixed` is faster where the processor multiplies bf16, and what training's validation uses there."""
    tokenizer_name: str | None = field(
        default=None, metadata=limits(choices=("embedded", "gpt2", "bytes"))
    )
    """For a checkpoint that does not say which tokenizer it was trained with."""


@dataclass
class ConvertCommand:
    """`python -m growlm.convert`."""

    source: str = MISSING
    """Folder of a checkpoint, or of a Hugging Face model."""
    out: str = MISSING
    """Folder of the converted one; made, must not exist."""
    to: str = field(default=MISSING, metadata=limits(choices=("huggingface", "growlm")))
    """What `out` becomes; the source is the other."""
    dtype: str = field(
        default="same", metadata=limits(choices=("same", "float32", "bfloat16", "float16"))
    )
    """Of the weights that are written; `same` as they are."""
    architecture: str = field(default="auto", metadata=limits(choices=("auto", "growlm")))
    """For `to=huggingface`: `auto` takes the class of transformers that computes the same, and growlm's own where
    there is none; `growlm` always growlm's own, which needs growlm installed where it is loaded."""
