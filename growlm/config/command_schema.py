"""Define the settings of the commands grow, verify, generate, evaluate and convert: types, defaults and limits.

Each command has a file `conf/COMMAND.yaml` and a dataclass here, as a run has in `schema.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from growlm.config.schema import DataConfig, OperatorEntry
from growlm.runtime.field_limits import limits


@dataclass
class GrowCommand:
    """Settings of `python -m growlm.grow`."""

    checkpoint: str = MISSING
    """Folder of the model to grow: a growlm checkpoint or a Hugging Face model."""
    out: str | None = None
    """Folder of the grown model; must not exist. Not needed with `dry_run`."""
    grow: list[OperatorEntry] = MISSING
    """Growth operators, applied in order: entries `{NAME: SETTINGS}`."""
    seed: int = field(default=0, metadata=limits(minimum=0, maximum=2**31 - 1))
    """Seed of noise, routers and filler columns."""
    boundary_index: int = field(default=0, metadata=limits(minimum=0, maximum=2**31 - 1))
    """Index of this growth in its run; part of the seed."""
    to: str | None = field(default=None, metadata=limits(choices=("huggingface", "growlm")))
    """Format of `out`; None for that of the source."""
    dtype: str = field(
        default="same", metadata=limits(choices=("same", "float32", "bfloat16", "float16"))
    )
    """Dtype that the weights are converted to before they are grown; `same` keeps that of the source."""
    architecture: str = field(default="auto", metadata=limits(choices=("auto", "growlm")))
    """For a Hugging Face folder: `auto` uses the transformers class that computes the same, or growlm's own class
    if there is none; `growlm` always uses growlm's own class, which needs growlm installed to load."""
    optimizer_state: str | None = field(default=None, metadata=limits(choices=("carry", "reset")))
    """`carry` grows a checkpoint's optimizer state too, if it has one; `reset` leaves it out; None carries it
    where `out` can hold it."""
    dry_run: bool = False
    """Only print what would be written, without reading weights."""
    verify: bool = False
    """Read the written weights again and compare each with its source; what was found is in the model card."""
    trust: list[str] = field(default_factory=list)
    """Packages whose classes may be built, where a checkpoint's model is of a class of its own."""


@dataclass
class VerifyCommand:
    """Settings of `python -m growlm.verify`."""

    old: str | None = None
    """Folder of the model before the growth, a growlm checkpoint or a Hugging Face model; without `old` and `new`,
    the standalone suite runs."""
    new: str | None = None
    """Folder of the model after the growth, of either kind."""
    tolerance: float = field(default=1e-4, metadata=limits(above=0.0, maximum=1.0))
    """Largest allowed difference between logits, times max(1, largest logit)."""
    probe_sequences: int = field(default=2, metadata=limits(minimum=1, maximum=4096))
    """Number of sequences of random tokens to compare on."""
    probe_length: int = field(default=32, metadata=limits(minimum=2, maximum=2**20))
    """Tokens per probe sequence."""
    seed: int = field(default=0, metadata=limits(minimum=0, maximum=2**31 - 1))
    """Seed of the probe."""
    require_symmetry_breaking: bool = False
    """Fail if copies stay equal; by default that is only reported."""
    trust: list[str] = field(default_factory=list)
    """Packages whose classes may be built, where a checkpoint's model is of a class of its own."""


@dataclass
class GenerateCommand:
    """Settings of `python -m growlm.generate`."""

    checkpoint: str = MISSING
    """Folder of a growlm checkpoint or a Hugging Face model."""
    prompt: str | None = None
    """Text to continue; empty (`prompt=`) to start a new text."""
    prompts_file: str | None = None
    """File with many prompts: one per line (blank lines are skipped), or JSON objects or a table with the text
    under `prompt`; any kind of file that `data.path` may be."""
    max_new_tokens: int = field(default=128, metadata=limits(minimum=1, maximum=2**20))
    """Maximum number of tokens per continuation."""
    temperature: float = field(default=0.8, metadata=limits(minimum=0.0, maximum=100.0))
    """Divisor of the logits; 0 always takes the most likely token."""
    top_k: int = field(default=0, metadata=limits(minimum=0))
    """Sample from the k most likely tokens; 0 for all."""
    top_p: float = field(default=1.0, metadata=limits(above=0.0, maximum=1.0))
    """Sample from the smallest set of tokens whose probabilities sum to at least p; 1 for all."""
    repetition_penalty: float = field(default=1.0, metadata=limits(above=0.0, maximum=100.0))
    """Penalty on tokens that the text already has: positive logits are divided by it, negative ones multiplied; 1
    for none."""
    seed: int = field(default=0, metadata=limits(minimum=0, maximum=2**31 - 1))
    """Seed of sampling; the samples depend only on seed and prompt."""
    samples: int = field(default=1, metadata=limits(minimum=1, maximum=1_000_000))
    """Continuations per prompt; the n-th is the one that seed `seed` + n - 1 gives alone."""
    batch_size: int = field(default=16, metadata=limits(minimum=1, maximum=1_000_000))
    """Continuations generated at once."""
    stop_tokens: list[int] = field(default_factory=list, metadata=limits(minimum=0))
    """Token ids that end a continuation, in addition to the tokenizer's EOS tokens."""
    format: str = field(default="text", metadata=limits(choices=("text", "json")))
    """`text`: prompt and continuation; `json`: one object per line, with token counts and the finish reason."""
    out: str | None = None
    """File to write instead of standard output; must not exist."""
    stream: bool | None = None
    """Print a single prompt's continuation token by token; None does so on a terminal."""
    device: str = field(default="auto", metadata=limits(choices=("auto", "cpu", "gpu")))
    """`auto` uses a GPU if there is one."""
    precision: str = field(
        default="auto", metadata=limits(choices=("auto", "32-true", "bf16-true"))
    )
    """Precision of weights and matrix products; `auto` is bf16-true if the hardware supports bf16, else 32-true.
    Routers always run in fp32."""
    tokenizer_name: str | None = field(
        default=None, metadata=limits(choices=("embedded", "gpt2", "bytes"))
    )
    """Tokenizer of a checkpoint that does not name the one it was trained with."""


@dataclass
class EvaluateCommand:
    """Settings of `python -m growlm.evaluate`."""

    checkpoint: str = MISSING
    """Folder of a growlm checkpoint or a Hugging Face model."""
    data: DataConfig = field(default_factory=DataConfig)
    """Group `data`, as in training."""
    split: str = field(default="validation", metadata=limits(choices=("validation", "all")))
    """`validation`: the documents that training on this data holds out; `all`: every document."""
    limit: int | None = field(default=None, metadata=limits(minimum=1))
    """Maximum number of tokens to score, from the start; None for all."""
    sequence_length: int | None = field(default=None, metadata=limits(minimum=1, maximum=2**20))
    """Tokens per window; None for the model's context length (`max_seq_len`)."""
    stride: int | None = field(default=None, metadata=limits(minimum=1, maximum=2**20))
    """Tokens from one window to the next; the rest of a window is context that is not scored again. None for the
    sequence length: no overlap, as in training."""
    batch_size: int = field(default=8, metadata=limits(minimum=1, maximum=1_000_000))
    """Windows per forward pass."""
    seed: int = field(default=0, metadata=limits(minimum=0, maximum=2**31 - 1))
    """Seed of the embedded stories; a run's own `seed` for those it was trained on."""
    format: str = field(default="text", metadata=limits(choices=("text", "json")))
    """`text`: a table; `json`: one JSON object."""
    device: str = field(default="auto", metadata=limits(choices=("auto", "cpu", "gpu")))
    """`auto` uses a GPU if there is one."""
    precision: str = field(default="32-true", metadata=limits(choices=("32-true", "bf16-mixed")))
    """`bf16-mixed` is faster where the hardware supports bf16; validation during training uses it there."""
    tokenizer_name: str | None = field(
        default=None, metadata=limits(choices=("embedded", "gpt2", "bytes"))
    )
    """Tokenizer of a checkpoint that does not name the one it was trained with."""


@dataclass
class ConvertCommand:
    """Settings of `python -m growlm.convert`."""

    source: str = MISSING
    """Folder of a growlm checkpoint or a Hugging Face model."""
    out: str = MISSING
    """Folder of the converted model; must not exist."""
    to: str = field(default=MISSING, metadata=limits(choices=("huggingface", "growlm")))
    """Format of `out`; the source has the other one."""
    dtype: str = field(
        default="same", metadata=limits(choices=("same", "float32", "bfloat16", "float16"))
    )
    """Dtype of the written weights; `same` keeps that of the source."""
    architecture: str = field(default="auto", metadata=limits(choices=("auto", "growlm")))
    """For `to=huggingface`: `auto` uses the transformers class that computes the same, or growlm's own class if
    there is none; `growlm` always uses growlm's own class, which needs growlm installed to load."""
