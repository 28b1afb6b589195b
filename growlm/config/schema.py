"""Define the config schema of a run: one dataclass per config group, each field documented below it.

`conf/` holds the values; these classes define types, limits and meaning. `growlm/config/load.py` turns a composed
config into a `RunConfig`; all other code uses these dataclasses.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from omegaconf import MISSING

from growlm.growth.operators.deepen import BLOCK_INITS
from growlm.growth.operators.widen import NEW_CHANNEL_KINDS
from growlm.growth.optimizer_state import OPTIMIZER_STATE_MODES
from growlm.model.config import ModelConfig
from growlm.runtime.errors import UserError
from growlm.runtime.field_limits import limits

OWN = "own"
"""Entry of a group that holds a class of the user's own (`growlm/config/own_classes.py`)."""


@dataclass(frozen=True)
class InitialModelConfig(ModelConfig):
    """Group `model`: the first phase's model, new or pretrained."""

    path: str | None = None
    """For `model=pretrained`: folder of a Hugging Face model or growlm checkpoint, which sets the other fields."""

    def to_model_config(self, vocab_size: int) -> ModelConfig:
        """Convert to a `ModelConfig`, with `vocab_size` where the config says 0."""
        fields = {name: value for name, value in vars(self).items() if name != "path"}
        return ModelConfig(**fields | {"vocab_size": self.vocab_size or vocab_size})


SETTINGS_OF_SOURCES: dict[str, tuple[str, ...]] = {
    "delimiter": ("text",),
    "filter": ("text", "huggingface"),
}
"""Settings of data that only these kinds of sources can use."""


@dataclass
class SourceConfig:
    """Source of documents: part of group `data`, and of each entry of `data.sources`."""

    source: str = field(
        default="embedded",
        metadata=limits(choices=("embedded", "text", "huggingface", "mixture", OWN)),
    )
    """`embedded`: synthetic stories from growlm's own grammar; `text`: your files; `huggingface`: a dataset of
    the Hub, or a folder laid out like one; `mixture`: a mixture of these, in `data.sources`; `own`: the batches of
    a class of your own."""
    path: str | None = None
    """For `text`: a file, a folder (all `.txt`, `.jsonl`, `.ndjson`, `.csv`, `.tsv`, `.parquet` below it; all but
    parquet also compressed, `.gz`, `.zst`, `.bz2` or `.xz`) or a glob."""
    sample_by: str = field(
        default="paragraph", metadata=limits(choices=("line", "paragraph", "document"))
    )
    """For plain text: the unit that makes one document."""
    column: str = "text"
    """For `huggingface`, and for `text` in tables and JSON: the column with the text, one document a row;
    `messages.0.content` leads inside one."""
    delimiter: str | None = None
    """For `text`: the character between the fields of `.csv` and `.tsv` files, or `tab`; None for a comma in the
    first and a tab in the second."""
    filter: dict[str, Any] = field(default_factory=dict)
    """For `huggingface`, and for `text` in tables and JSON: conditions on columns that a row must meet to be read;
    each a value, a list of values, or a comparison such as `">=3"`."""
    min_characters: int = field(default=0, metadata=limits(minimum=0))
    """Length below which a document is left out."""
    max_characters: int | None = field(default=None, metadata=limits(minimum=1))
    """Length above which a document is left out, or cut with `truncate`; None for no limit."""
    truncate: bool = False
    """Cut documents longer than `max_characters` there instead of leaving them out."""
    documents: int = field(default=20_000, metadata=limits(minimum=2, maximum=100_000_000))
    """For `embedded`: number of stories."""
    name: str | None = None
    """For `huggingface`: OWNER/NAME on the Hub, or a folder."""
    config: str | None = None
    """For `huggingface`: the dataset's configuration; None for its only or default one."""
    split: str = "train"
    """For `huggingface`: the split to read. Validation documents are held out from it too."""
    revision: str | None = None
    """For `huggingface`: a commit or tag; None for the newest."""


@dataclass
class MixedSourceConfig(SourceConfig):
    """Entry of `data.sources`."""

    weight: float = field(default=1.0, metadata=limits(above=0.0, maximum=1e9))
    """Share of the documents, relative to the other sources' weights."""


@dataclass
class EvaluationTextConfig:
    """Text to evaluate on: `data.validation`, and entries of `data.evaluation_sets`.

    `sample_by`, `column` and the limits of length are those of the training data where they are null; so are all
    settings of its dataset where only another split is named.
    """

    source: str | None = field(default=None, metadata=limits(choices=("text", "huggingface")))
    """As in `data`; null: `text` where `path` is set, `huggingface` where `name` or `split` is."""
    path: str | None = None
    """For `text`: a file, a folder or a glob."""
    sample_by: str | None = field(
        default=None, metadata=limits(choices=("line", "paragraph", "document"))
    )
    """For plain text: the unit that makes one document."""
    column: str | None = None
    """The column with the text."""
    delimiter: str | None = None
    """For `text`: the character between the fields of a table."""
    filter: dict[str, Any] = field(default_factory=dict)
    """Conditions that a row must meet."""
    name: str | None = None
    """For `huggingface`: OWNER/NAME on the Hub, or a folder."""
    config: str | None = None
    """For `huggingface`: the dataset's configuration."""
    split: str | None = None
    """For `huggingface`: the split to read."""
    revision: str | None = None
    """For `huggingface`: a commit or tag."""

    @property
    def is_given(self) -> bool:
        """Whether a text is named: whether any setting is not null."""
        return bool(self.given)

    @property
    def given(self) -> dict[str, Any]:
        """Settings that are not null or empty: those that are not taken from the training data."""
        return {name: value for name, value in vars(self).items() if value not in (None, {})}

    def resolve(self, data: SourceConfig, key: str) -> SourceConfig:
        """Return the settings of the source to read, with those of the training data where they are null.

        Args:
            data: Settings of the training data.
            key: Key of these settings, for messages.

        Raises:
            UserError: If they name no text, or two.
        """
        given = self.given
        of_dataset = [name for name in ("name", "config", "split", "revision") if name in given]
        source = self.source or ("text" if self.path else "huggingface" if of_dataset else None)
        if source is None:
            reason = "names no text; set path to a file, or name or split of a dataset"
            raise UserError(key, given or "{}", reason)
        if source == "text" and of_dataset:
            reason = "a file (path) has none; leave out one of the two"
            raise UserError(f"{key}.{of_dataset[0]}", given[of_dataset[0]], reason)
        if source == "text" and not self.path:
            raise UserError(f"{key}.path", self.path, "must be a file, a folder or a glob")
        if source == "huggingface" and self.path:
            reason = "a dataset has none; set name to a dataset or its folder"
            raise UserError(f"{key}.path", self.path, reason)
        if source == "huggingface":
            for name in ("sample_by", "delimiter"):
                if name in given:
                    reason = "only a file (path) has it, and a dataset is read; leave it out"
                    raise UserError(f"{key}.{name}", given[name], reason)
        is_same_dataset = "name" not in given
        if source == "huggingface" and is_same_dataset and data.source != "huggingface":
            reason = f"data={data.source} is no dataset to take it from; set {key}.name"
            raise UserError(f"{key}.{of_dataset[0]}", given[of_dataset[0]], reason)
        base = {each.name: getattr(data, each.name) for each in fields(SourceConfig)}
        if data.source == OWN:
            base = {each.name: getattr(SourceConfig(), each.name) for each in fields(SourceConfig)}
        if (
            source == "text" or not is_same_dataset
        ):  # these are about files or rows of the other text
            base |= {"config": None, "revision": None, "split": SourceConfig.split}
            base |= {"delimiter": None, "filter": {}}
        return SourceConfig(**base | given | {"source": source})


@dataclass
class DataConfig(SourceConfig):
    """Group `data`: the training data and its order."""

    sources: dict[str, MixedSourceConfig] = field(default_factory=dict)
    """For `mixture`: the sources by name. A source that is exhausted starts its next epoch."""
    streaming: bool = False
    """Tokenize during training instead of once before the first step: for data that is too large for the disk, or
    should not be downloaded. The samples are the same."""
    document_mask: bool = False
    """Keep attention within each document of a sequence, and count positions from 0 in each. Documents are told
    apart by the tokenizer's end of text; scores of every pair of tokens are then computed, which costs time."""
    shuffle_window: int = field(default=10_000, metadata=limits(minimum=1, maximum=100_000_000))
    """Number of consecutive documents that are shuffled among themselves, differently in every epoch; 1 keeps
    their order."""
    validation_every: int = field(default=20, metadata=limits(minimum=2, maximum=1_000_000))
    """Every n-th document (of each source) is held out for validation; none where `validation` names a text."""
    validation: EvaluationTextConfig = field(default_factory=EvaluationTextConfig)
    """A text to validate on, instead of documents that are held out."""
    evaluation_sets: dict[str, EvaluationTextConfig] = field(default_factory=dict)
    """Further texts by name, whose losses are measured with every validation."""
    max_unknown_fraction: float = field(default=0.01, metadata=limits(minimum=0.0, maximum=1.0))
    """Largest fraction of each source's bytes that the tokenizer may have no token for: dropped, or an unknown
    token. More is refused; 1 allows anything."""
    cache: str = "outputs/.tokens"
    """Folder of the cache of tokenized corpora; `rm -r` clears it."""
    cache_gb: float = field(default=50.0, metadata=limits(above=0.0))
    """Maximum size of the cache; the least recently used corpora are removed first."""
    _target_: str | None = None
    """For `own`: a LightningDataModule, or a class or function that gives an iterable of token batches."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """For `own`: the other keys beside `_target_`, which it is called with."""

    @property
    def evaluation_texts(self) -> dict[str, EvaluationTextConfig]:
        """The texts to evaluate on, by their keys: `data.validation` if it is given, and the evaluation sets."""
        texts = {"data.validation": self.validation} if self.validation.is_given else {}
        sets = {f"data.evaluation_sets.{name}": text for name, text in self.evaluation_sets.items()}
        return texts | sets

    @property
    def display_name(self) -> str:
        """Short name of the data: its path, its name, the names of its sources or its class."""
        named = self.path or self.name or ", ".join(self.sources) or self._target_
        return named or self.source


@dataclass
class TokenizerConfig:
    """Group `tokenizer`: the tokenizer."""

    name: str = field(
        default="embedded",
        metadata=limits(choices=("embedded", "gpt2", "bytes", "huggingface", OWN)),
    )
    """`embedded`: trained on the embedded stories; `gpt2`: tiktoken's; `bytes`: one token per byte; `huggingface`:
    read from a folder; `own`: a class of your own."""
    path: str | None = None
    """For `huggingface`: a `tokenizer.json`, or the folder that has it."""
    eos_token: str | None = None
    """For `huggingface`: the token that ends a text, `</s>`; None for the one that the folder's files name."""
    _target_: str | None = None
    """For `own`: a class with the attributes and methods of `growlm.data.Tokenizer`."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """For `own`: the other keys beside `_target_`, which it is called with."""


OPTIMIZER_SETTINGS = {
    "adamw": ("beta1", "beta2", "eps"),
    "adamw_8bit": ("beta1", "beta2", "eps"),
    "sgd": ("momentum",),
    "adafactor": ("beta2_decay",),
    "muon": ("momentum", "beta1", "beta2", "eps"),
}
"""The settings that each optimizer has, of those that not all have."""


@dataclass
class OptimizerConfig:
    """Group `optimizer`: optimizers of torch, and one of torchao. Settings that the chosen one lacks are null."""

    name: str = field(default="adamw", metadata=limits(choices=(*OPTIMIZER_SETTINGS, OWN)))
    """`adamw` (Loshchilov and Hutter 2017, arXiv 1711.05101), `adamw_8bit` (its moments in 8 bits: Dettmers et al.
    2021, arXiv 2110.02861; needs `growlm[torchao]`), `sgd` with momentum, `adafactor` (Shazeer and Stern 2018,
    arXiv 1804.04235; its rates are relative to the weights), `muon` (Jordan et al. 2024) on the matrices inside
    the model with `adamw` on everything else; `own`: a class of your own."""
    beta1: float | None = field(default=0.9, metadata=limits(minimum=0.0, below=1.0))
    """AdamW: decay of the first moment."""
    beta2: float | None = field(default=0.95, metadata=limits(minimum=0.0, below=1.0))
    """AdamW: decay of the second moment."""
    eps: float | None = field(default=1e-8, metadata=limits(above=0.0))
    """AdamW: added to the root of the second moment."""
    momentum: float | None = field(default=None, metadata=limits(minimum=0.0, below=1.0))
    """SGD and Muon: decay of the momentum."""
    beta2_decay: float | None = field(default=None, metadata=limits(minimum=-1.0, below=0.0))
    """Adafactor: the second moment forgets with step ** beta2_decay."""
    weight_decay: float = field(default=0.1, metadata=limits(minimum=0.0))
    """Decoupled weight decay of the matrices; embeddings, biases and norms have none."""
    gradient_clip: float = field(default=1.0, metadata=limits(minimum=0.0))
    """Maximum global gradient norm; 0 for no clipping."""
    rewarm_peak: float = field(default=1.3, metadata=limits(above=0.0, maximum=100.0))
    """After a growth with `optimizer_state: asymmetric`: peak of the learning rate of new entries, relative to the
    common rate."""
    rewarm_steps: int = field(default=250, metadata=limits(minimum=1))
    """After such a growth: steps up to that peak, and again as many down to the common rate."""
    _target_: str | None = None
    """For `own`: a `torch.optim.Optimizer`."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """For `own`: the other keys beside `_target_`, which it is called with."""


@dataclass
class ScheduleConfig:
    """Group `schedule`: the factor on each phase's learning rate."""

    name: str = field(default="wsd", metadata=limits(choices=("wsd", "constant", "cosine", OWN)))
    """`wsd`: warmup, stable and one decay at the end, over the whole plan, so that the model grows on the stable
    part; `constant`; `cosine`: from 1 to `final_fraction`, restarted in every phase; `own`: a function or class of
    your own."""
    warmup_steps: int = field(default=0, metadata=limits(minimum=0))
    """Steps of linear warmup from 0 at the beginning of the plan."""
    decay_fraction: float = field(default=0.2, metadata=limits(minimum=0.0, maximum=1.0))
    """For `wsd`: fraction of the plan's steps, at its end, in which the rate decays linearly."""
    final_fraction: float = field(default=0.1, metadata=limits(minimum=0.0, maximum=1.0))
    """For `wsd` and `cosine`: the factor at the end."""
    _target_: str | None = None
    """For `own`: a function of the step and the plan's number of steps, or one of torch's schedulers."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """For `own`: the other keys beside `_target_`, which it is called with."""


@dataclass
class TrainerConfig:
    """Group `trainer`: devices, precision and validation."""

    accelerator: str = field(default="auto", metadata=limits(choices=("auto", "cpu", "gpu")))
    """`auto` uses a GPU if there is one."""
    devices: int | None = field(default=None, metadata=limits(minimum=1))
    """Devices of the whole run, one process each; on a CPU, the number of processes. None for as many as
    `torchrun`, `srun` or `mpirun` has started, or one without. Without, growlm starts them on this machine."""
    strategy: str = field(default="auto", metadata=limits(choices=("auto", "ddp", "fsdp")))
    """`ddp`: every device holds the full model; `fsdp`: weights, gradients and moments are sharded (FSDP2).
    `auto` is ddp if there are several devices."""
    timeout_minutes: float = field(default=30.0, metadata=limits(above=0.0, maximum=1e6))
    """Minutes that a process may keep the others waiting in a step before they stop."""
    precision: str = field(
        default="auto", metadata=limits(choices=("auto", "bf16-mixed", "32-true", "64-true"))
    )
    """`auto` is bf16-mixed where the hardware supports bf16 (AVX512-BF16, AMX, CUDA), else 32-true. 64-true is for
    numerical checks."""
    memory_gb: float | None = field(default=None, metadata=limits(above=0.0))
    """Memory that each process may use, beyond what it holds when the first phase begins; a plan that needs more
    is rejected. None for its share of the free memory, or of all memory where the system does not report what is
    free (macOS)."""
    keep_freed_memory: bool = True
    """On a CPU: keep freed memory for the next tensor during training instead of returning it to the system, as
    page faults would cost time. The price is more memory, by fragmentation."""
    activation_checkpointing: bool = False
    """Recompute every block in the backward pass instead of storing its activations: a third more FLOPs, a
    fraction of the activation memory."""
    compile: bool = False
    """Compile the blocks of every phase's model (`torch.compile`) at its first step, which takes seconds to
    minutes; needs a C++ compiler on a CPU, or triton on a GPU. Validation, checks and samples run uncompiled."""
    on_nonfinite: str = field(default="stop", metadata=limits(choices=("stop", "skip")))
    """If the loss or a gradient is NaN or infinite: `stop` the run, which can be resumed from an earlier state, or
    `skip` the step, at most ten in a row; the history records each. Non-finite weights always stop the run."""
    max_time: str | None = None
    """Time limit `DD:HH:MM:SS` since the run was started or resumed; the run then saves its state and ends with
    exit code 0. None for no limit."""
    validate_every: int = field(default=0, metadata=limits(minimum=0))
    """Steps between validations; 0 for only at the beginning and end of each phase."""
    validation_sequences: int = field(default=64, metadata=limits(minimum=1))
    """Number of held-out sequences, always the same ones."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Further arguments of `lightning.Trainer`: `trainer.extra.profiler=simple`. Those that growlm sets itself are
    rejected (`growlm/training/trainer_arguments.py`)."""


@dataclass
class ClusterConfig:
    """Group `cluster`: the devices that a plan is estimated for; does not affect training."""

    accelerator: str | None = field(default=None, metadata=limits(choices=("cpu", "gpu")))
    """Kind of the devices, if they are not this machine's; memory and speeds are then those given below. None for
    devices like this machine's, whose memory is read and whose speeds are measured."""
    devices_per_node: int | None = field(default=None, metadata=limits(minimum=1))
    """Devices per machine. None for as many as this one has: GPUs, or on a CPU one process per core; these share
    the machine's memory and speeds."""
    memory_gb: float | None = field(default=None, metadata=limits(above=0.0))
    """Memory of a device that a run may use. `trainer.memory_gb` takes precedence."""
    peak_tflops: float | None = field(default=None, metadata=limits(above=0.0))
    """Peak dense throughput of a device in the run's precision, in TFLOP/s. None measures this machine."""
    mfu: float = field(default=0.4, metadata=limits(above=0.0, maximum=1.0))
    """Model FLOPs utilization: fraction of the peak that a forward and backward pass reaches on one device."""
    memory_gb_per_s: float | None = field(default=None, metadata=limits(above=0.0))
    """Memory bandwidth of a device in GB/s, which bounds the optimizer step; to be set together with
    `peak_tflops`."""
    link_gb_per_s: float = field(default=2.0, metadata=limits(above=0.0))
    """Bandwidth from a device to others of its node in GB/s, in each direction."""
    network_gb_per_s: float = field(default=1.25, metadata=limits(above=0.0))
    """Bandwidth from a device to other nodes in GB/s, in each direction."""
    efficiency: float = field(default=1.0, metadata=limits(above=0.0, maximum=1.0))
    """Fraction of these two bandwidths that a collective reaches."""
    latency_us: float = field(default=50.0, metadata=limits(minimum=0.0))
    """Latency of a message in microseconds."""


@dataclass
class LoggerConfig:
    """Group `logger`: where metrics are logged besides `training_history.jsonl`."""

    name: str = field(
        default="wandb",
        metadata=limits(choices=("wandb", "csv", "tensorboard", "trackio", "none", OWN)),
    )
    """Logger to use."""
    project: str | None = None
    """W&B or trackio project. None for WANDB_PROJECT (W&B only), or else `growlm`."""
    entity: str | None = None
    """W&B team or user; None for WANDB_ENTITY, or else your default."""
    group: str | None = None
    """W&B group; None for WANDB_RUN_GROUP. A sweep without either sets it to its own name."""
    tags: list[str] = field(default_factory=list)
    """W&B tags, besides the plan's name and those of WANDB_TAGS; at most 64 characters each."""
    mode: str = field(default="auto", metadata=limits(choices=("auto", "online", "offline")))
    """W&B: `auto` is WANDB_MODE if that is set, else online if you are logged in, else offline (`wandb sync`
    uploads later)."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Further Lightning loggers, by any name: `{_target_: lightning.pytorch.loggers.MLFlowLogger, ...}`."""
    _target_: str | None = None
    """For `own`: a Lightning `Logger`."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """For `own`: the other keys beside `_target_`, which it is called with."""


@dataclass
class CallbacksConfig:
    """Group `callbacks`: logging interval, text samples and further callbacks."""

    log_every: int = field(default=10, metadata=limits(minimum=1))
    """Steps between rows of the history and of the loggers. The first step of a phase always has one, and so has
    each of its last 30 steps and of the first 30 after a growth, to show whether the loss went on as before."""
    sample_prompt: str = "Once upon a time"
    """Prompt that the model of each phase continues after its training."""
    sample_tokens: int = field(default=48, metadata=limits(minimum=0, maximum=4096))
    """Tokens to sample; 0 for no sample."""
    sample_temperature: float = field(default=0.8, metadata=limits(minimum=0.0, maximum=10.0))
    """Temperature of the sample; 0 always takes the most likely token."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Further Lightning callbacks, by any name: `{_target_: lightning.pytorch.callbacks.Timer, ...}`."""


@dataclass
class VerificationConfig:
    """Root key `verification`: the checks at each growth boundary."""

    probe_sequences: int = field(default=4, metadata=limits(minimum=1))
    """Number of held-out sequences of the frozen probe."""
    probe_length: int = field(default=128, metadata=limits(minimum=2))
    """Tokens per probe sequence, at most the sequence length."""
    tolerance: float = field(default=1e-4, metadata=limits(above=0.0, maximum=1.0))
    """Largest allowed difference between logits, times max(1, largest logit)."""
    require_symmetry_breaking: bool = False
    """Stop the run if copies would stay equal; by default that is only reported."""


@dataclass
class CheckpointConfig:
    """Root key `checkpoint`: what is saved, and how often."""

    save_optimizer: bool = False
    """Save the optimizer state in the checkpoints of finished phases too, so that `growlm.grow` can grow it; with
    AdamW that adds twice the model's size."""
    every_minutes: float = field(default=10.0, metadata=limits(minimum=0.0))
    """Minutes between resume states; one more is saved at every boundary. 0 for none by time."""
    every_steps: int = field(default=0, metadata=limits(minimum=0))
    """Steps between resume states; 0 for none by steps."""
    keep_final_state: bool = True
    """Keep the state after the last phase, so that a finished run can be extended (docs/resume.md). With AdamW it
    is three times the model's size."""


@dataclass
class BaselineConfig:
    """Group `baseline`: a run at equal cost to compare the plan with, trained instead of the plan."""

    kind: str = field(default="none", metadata=limits(choices=("none", "scratch", "continue")))
    """`scratch`: train the last phase's model from scratch; `continue`: train the first phase's model to the end.
    Learning rate, batch size and warmup are those of that phase."""
    equal: str = field(default="flops", metadata=limits(choices=("flops", "tokens", "seconds")))
    """Cost that is equal to the plan's; seconds are the planner's estimate."""
    of: str | None = None
    """Name of the plan that the baseline was made from; set by growlm."""


@dataclass
class ReuseConfig:
    """Root key `reuse`: the cache of phases that another run has trained bit for bit as this one would."""

    phases: str = field(default="sweep", metadata=limits(choices=("sweep", "always", "never")))
    """Runs that cache the state after each phase but the last, and skip phases that are cached: the jobs of a
    `sweep`, every run (`always`), or none (`never`)."""
    folder: str = "outputs/.phases"
    """Folder of the cache. Runs with the same folder share phases, even while they run."""
    max_gb: float = field(default=20.0, metadata=limits(above=0.0))
    """Maximum size of the cache; the least recently used states are removed first."""


@dataclass
class GrowthConfig:
    """Root key `growth`: growth settings for sweeps, which plans refer to as `${growth.noise_std}`."""

    scale_factor: float = field(default=2.0, metadata=limits(minimum=1.0, maximum=64.0))
    """Factor by which `widen` multiplies the width."""
    extra_layers: int = field(default=4, metadata=limits(minimum=1, maximum=4096))
    """Layers that `deepen` adds."""
    noise_std: float | None = field(default=None, metadata=limits(minimum=0.0, maximum=10.0))
    """Standard deviation of the canceling noise when widening by copies; setting it selects copies (except with
    `recipe=fresh`)."""
    new_channels: str = field(default="auto", metadata=limits(choices=NEW_CHANNEL_KINDS))
    """Initialization of the channels, heads and hidden units that `widen` adds (group `recipe`)."""
    new_blocks: str = field(default="fresh", metadata=limits(choices=BLOCK_INITS))
    """Initialization of the blocks that `deepen` adds (group `recipe`)."""


OperatorEntry = dict[str, Any]
"""An entry of a `grow` list: the name of an operator, and the operator, which `operator_schema.py` makes of the
settings that YAML has in its place."""


@dataclass
class PhaseConfig:
    """One phase of a plan: grow the model (unless it is the first phase), then train it."""

    steps: int | None = field(default=None, metadata=limits(minimum=0))
    """Optimizer steps; set exactly one of `steps`, `tokens`, `flops`: one that is set on the command line, or in
    a later file, replaces another. With 0 steps the phase grows, checks and saves the model without training."""
    tokens: float | None = field(default=None, metadata=limits(minimum=1))
    """Tokens to train on; rounded up to whole steps."""
    flops: float | None = field(default=None, metadata=limits(minimum=1))
    """Floating-point operations to spend; rounded up to whole steps."""
    batch_size: int = field(default=8, metadata=limits(minimum=1, maximum=1_000_000))
    """Sequences per forward pass."""
    accumulate: int = field(default=1, metadata=limits(minimum=1, maximum=1_000_000))
    """Forward passes per step (gradient accumulation). The load-balancing loss is computed per pass."""
    lr: float = field(default=3e-4, metadata=limits(above=0.0, maximum=10.0))
    """Learning rate, before the schedule's factor."""
    warmup_steps: int = field(default=0, metadata=limits(minimum=0))
    """Steps of linear warmup from 0 at the beginning of this phase."""
    optimizer_state: str = field(default="carry", metadata=limits(choices=OPTIMIZER_STATE_MODES))
    """What happens to the optimizer state when the model grows (`growlm/growth/optimizer_state.py`): `carry` it
    through the growth; `reset` it; `exact`: training continues exactly as without the growth; `asymmetric`: only
    new entries start from zero, with a learning rate of their own."""
    grow: list[OperatorEntry] = field(default_factory=list)
    """Growth operators, applied in order before training: entries `{NAME: SETTINGS}` of registered operators."""
    save_as: str | None = None
    """Name of the checkpoint saved after the phase; if a plan does not set it, the phase's name. `null` saves
    none."""
    save_initial_as: str | None = None
    """Name of the checkpoint saved after growing, before training."""


@dataclass
class RunConfig:
    """Complete config of a run."""

    name: str = MISSING
    """Name of the plan; part of the run folder's name."""
    seed: int = field(default=0, metadata=limits(minimum=0, maximum=2**31 - 1))
    """Seed of initial weights, data order and growth."""
    sequence_length: int = field(default=256, metadata=limits(minimum=2, maximum=2**20))
    """Tokens per training sequence."""
    run_dir: str | None = None
    """Folder of the run's files; None for `outputs/<date>/<time>_<name>_<seed>`."""
    resume: str | None = None
    """Folder of a stopped run to resume. `auto`: the newest unfinished run with these settings, in `run_dir` or
    below outputs/, or a new run if there is none."""
    trust: list[str] = field(default_factory=list)
    """Packages whose classes may be built though only the `config.yaml` of a resumed run names them. Classes that
    your own command line and files name need no trust."""
    model: InitialModelConfig = field(default_factory=InitialModelConfig)
    """The first phase's model."""
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    callbacks: CallbacksConfig = field(default_factory=CallbacksConfig)
    verification: VerificationConfig = field(default_factory=VerificationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    baseline: BaselineConfig = field(default_factory=BaselineConfig)
    reuse: ReuseConfig = field(default_factory=ReuseConfig)
    growth: GrowthConfig = field(default_factory=GrowthConfig)
    phases: dict[str, PhaseConfig] = field(default_factory=dict)
    """Phases by name, in order."""
