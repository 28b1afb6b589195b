"""The schema of a run: one dataclass per config group, what each field means below it.

`conf/` holds the values; these classes give types, limits and the meaning. `growlm/config/load.py` turns a
composed config into a `RunConfig`, and everything after that handles dataclasses.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from omegaconf import MISSING

from growlm.growth.operators.deepen import BLOCK_INITS, Deepen
from growlm.growth.operators.multiply_experts import MultiplyExperts
from growlm.growth.operators.upcycle import Upcycle
from growlm.growth.operators.widen import NEW_CHANNEL_KINDS, Widen
from growlm.growth.optimizer_state import OPTIMIZER_STATE_MODES
from growlm.model.config import ModelConfig
from growlm.runtime.field_limits import limits


@dataclass
class InitialModelConfig(ModelConfig):
    """Group `model`: the first phase's model, new or one that was trained."""

    path: str | None = None
    """`model=pretrained`: a Hugging Face folder, or a checkpoint of ours. Its shape is the model's."""

    def to_model_config(self, vocab_size: int) -> ModelConfig:
        """The model, where the vocabulary has so many tokens unless the config says otherwise."""
        fields = asdict(self)
        del fields["path"]
        return ModelConfig(**fields | {"vocab_size": self.vocab_size or vocab_size})


@dataclass
class SourceConfig:
    """Where documents come from: part of group `data`, and of each entry of `data.sources`."""

    source: str = field(
        default="embedded",
        metadata=limits(choices=("embedded", "text", "huggingface", "mixture")),
    )
    """`embedded`: stories from the project's own grammar; `text`: your files; `huggingface`: a dataset of the
    hub, or a folder laid out like one; `mixture`: of those, in `data.sources`."""
    path: str | None = None
    """For `text`: a file, a folder (all `.txt`, `.jsonl`, `.csv`, `.parquet` below it; each but parquet also
    `.gz` or `.zst`) or a glob."""
    sample_by: str = field(
        default="paragraph", metadata=limits(choices=("line", "paragraph", "document"))
    )
    """For plain text: what one document is."""
    column: str = "text"
    """For `huggingface`, and for `text` in tables and JSON lines: where the text is; a row is a document."""
    documents: int = field(default=20_000, metadata=limits(minimum=2, maximum=100_000_000))
    """For `embedded`: stories to tell."""
    name: str | None = None
    """For `huggingface`: OWNER/NAME on the hub, or a folder."""
    config: str | None = None
    """For `huggingface`: the dataset's configuration; None for its only or default one."""
    split: str = "train"
    """For `huggingface`: which split. What is held out for validation comes out of it too."""
    revision: str | None = None
    """For `huggingface`: a commit or tag; None for the newest."""


@dataclass
class MixedSourceConfig(SourceConfig):
    """An entry of `data.sources`."""

    weight: float = field(default=1.0, metadata=limits(above=0.0, maximum=1e9))
    """Share of the documents, relative to the other sources' weights."""


@dataclass
class DataConfig(SourceConfig):
    """Group `data`: what is read, and in which order."""

    sources: dict[str, MixedSourceConfig] = field(default_factory=dict)
    """For `mixture`: the sources, by name. One that ends begins its next epoch."""
    streaming: bool = False
    """Tokenize on the way, in place of once and before the first step: for what is too large for the disk, or
    not to be downloaded. The samples are the same."""
    shuffle_window: int = field(default=10_000, metadata=limits(minimum=1, maximum=100_000_000))
    """Consecutive documents that are shuffled among themselves, anew in every epoch; 1 for the order they stand
    in."""
    validation_every: int = field(default=20, metadata=limits(minimum=2, maximum=1_000_000))
    """Every n-th document (of each source) is held out for validation."""
    cache: str = "outputs/.tokens"
    """Folder of tokenized corpora; `rm -r` empties it."""
    cache_gb: float = field(default=50.0, metadata=limits(above=0.0))
    """What is kept there at most; what was used longest ago goes first."""

    @property
    def display_name(self) -> str:
        """Which documents these are, in a word, a path or names."""
        return self.path or self.name or ", ".join(self.sources) or self.source


@dataclass
class TokenizerConfig:
    """Group `tokenizer`: text to numbers."""

    name: str = field(
        default="embedded", metadata=limits(choices=("embedded", "gpt2", "bytes", "huggingface"))
    )
    """`embedded`: trained on the embedded stories; `gpt2`: tiktoken's; `bytes`: one token per byte; `huggingface`:
    of a folder."""
    path: str | None = None
    """For `huggingface`: the folder, with `tokenizer.json`."""


OPTIMIZER_SETTINGS = {
    "adamw": ("beta1", "beta2", "eps"),
    "adamw_8bit": ("beta1", "beta2", "eps"),
    "sgd": ("momentum",),
    "adafactor": ("beta2_decay",),
    "muon": ("momentum", "beta1", "beta2", "eps"),
}
"""The settings that not every optimizer has."""


@dataclass
class OptimizerConfig:
    """Group `optimizer`: torch's own, and one of torchao's. A setting that the chosen one lacks is null."""

    name: str = field(default="adamw", metadata=limits(choices=tuple(OPTIMIZER_SETTINGS)))
    """`adamw` (Loshchilov and Hutter 2017, arXiv 1711.05101), `adamw_8bit` (its moments in 8 bits: Dettmers et al.
    2021, arXiv 2110.02861; needs `growlm[torchao]`), `sgd` with momentum, `adafactor` (Shazeer and Stern 2018,
    arXiv 1804.04235; its rates are relative to the weights), `muon` (Jordan et al. 2024) on the matrices inside
    the model with `adamw` on everything else."""
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
    """Decoupled decay of the matrices that read an axis; none on embeddings, biases and norms."""
    gradient_clip: float = field(default=1.0, metadata=limits(minimum=0.0))
    """Largest norm of the whole gradient; 0 for no limit."""
    rewarm_peak: float = field(default=1.3, metadata=limits(above=0.0, maximum=100.0))
    """After a growth with `optimizer_state: asymmetric`: what the rate of new entries climbs to, in units of the
    common rate."""
    rewarm_steps: int = field(default=250, metadata=limits(minimum=1))
    """Likewise: steps to that peak; as many lead back to the common rate."""


@dataclass
class ScheduleConfig:
    """Group `schedule`: the factor on each phase's learning rate."""

    name: str = field(default="wsd", metadata=limits(choices=("wsd", "constant", "cosine")))
    """`wsd`: warm-up, plateau and one decay at the end, over the whole plan, so that the model grows on the
    plateau; `constant`; `cosine`: from 1 to `final_fraction` in every phase anew."""
    warmup_steps: int = field(default=0, metadata=limits(minimum=0))
    """Steps from 0 to the full rate at the beginning of the plan."""
    decay_fraction: float = field(default=0.2, metadata=limits(minimum=0.0, maximum=1.0))
    """For `wsd`: the last part of the plan's steps, in which the rate falls linearly."""
    final_fraction: float = field(default=0.1, metadata=limits(minimum=0.0, maximum=1.0))
    """For `wsd` and `cosine`: the factor at the end."""


@dataclass
class TrainerConfig:
    """Group `trainer`: where and how exactly it is computed."""

    accelerator: str = field(default="auto", metadata=limits(choices=("auto", "cpu", "gpu")))
    """`auto` takes a GPU where there is one."""
    devices: int | None = field(default=None, metadata=limits(minimum=1))
    """Devices of the whole run, each with a process of its own; on a CPU, processes. None for as many as
    `torchrun` has started, and one without it. More than one without `torchrun` are started on this machine."""
    strategy: str = field(default="auto", metadata=limits(choices=("auto", "ddp", "fsdp")))
    """What several devices share: `ddp` nothing, each has the whole model; `fsdp` weights, gradients and moments
    (FSDP2). `auto` is ddp where there are several."""
    timeout_minutes: float = field(default=30.0, metadata=limits(above=0.0))
    """How long one process of a run may keep the others waiting in a step before they stop."""
    precision: str = field(
        default="auto", metadata=limits(choices=("auto", "bf16-mixed", "32-true", "64-true"))
    )
    """`auto` is bf16-mixed where the processor multiplies bf16 (AVX512-BF16, AMX, CUDA), else 32-true. 64-true is
    for proofs."""
    memory_gb: float | None = field(default=None, metadata=limits(above=0.0))
    """Memory that each process of the run may take, above what it holds when the first phase begins; a plan that
    needs more is refused. None for its share of what is free; of all memory where the system does not tell what
    is free (macOS)."""
    keep_freed_memory: bool = True
    """On a CPU: while training, keep freed memory for the next tensor instead of giving it back to the system each
    time, which takes page faults, and with them time. The price is memory that lies between tensors."""
    activation_checkpointing: bool = False
    """Compute every block again in the backward pass instead of keeping what it needs: a third more arithmetic, a
    fraction of the activations' memory."""
    compile: bool = False
    """Compile the blocks of every phase's model (`torch.compile`) at its first step, which takes from seconds to
    minutes, and on a CPU a C++ compiler, on a GPU triton. Validation, checks and samples run uncompiled."""
    on_nonfinite: str = field(default="stop", metadata=limits(choices=("stop", "skip")))
    """Where the loss or a gradient is NaN or infinite: `stop` the run, which can be resumed from before, or `skip`
    the step, at most ten in a row; the history tells of each. A weight that is not finite always stops it."""
    max_time: str | None = None
    """`DD:HH:MM:SS` from the run's start, or from its resuming, after which it writes its state and ends with exit
    code 0; None for no limit."""
    validate_every: int = field(default=0, metadata=limits(minimum=0))
    """Steps between validations; 0 for only at the beginning and end of each phase."""
    validation_sequences: int = field(default=64, metadata=limits(minimum=1))
    """Held-out sequences, always the same."""


@dataclass
class ClusterConfig:
    """Group `cluster`: the devices that a plan is reckoned for. Nothing here changes what is trained."""

    accelerator: str | None = field(default=None, metadata=limits(choices=("cpu", "gpu")))
    """What its devices are, where they are not this machine's; memory and rates are then as stated below. None for
    devices like this machine's, whose memory is looked at and whose rates are measured."""
    devices_per_node: int | None = field(default=None, metadata=limits(minimum=1))
    """Devices of a machine. None for as many as this one has: GPUs, or on a CPU a process for each core; these
    share its memory and its rates."""
    memory_gb: float | None = field(default=None, metadata=limits(above=0.0))
    """Memory of a device that a run may take. `trainer.memory_gb` goes first."""
    peak_tflops: float | None = field(default=None, metadata=limits(above=0.0))
    """Of a device, in the run's precision, dense: 10^12 operations per second. None measures this machine."""
    mfu: float = field(default=0.4, metadata=limits(above=0.0, maximum=1.0))
    """Share of the peak that a forward and backward pass reaches on one device."""
    memory_gb_per_s: float | None = field(default=None, metadata=limits(above=0.0))
    """How fast a device reads and writes its memory, which the optimizer's step is bound by; goes with
    `peak_tflops`."""
    link_gb_per_s: float = field(default=2.0, metadata=limits(above=0.0))
    """10^9 bytes per second that a device sends to others of its node, while it receives as much."""
    network_gb_per_s: float = field(default=1.25, metadata=limits(above=0.0))
    """Likewise to other nodes, for each device."""
    efficiency: float = field(default=1.0, metadata=limits(above=0.0, maximum=1.0))
    """Share of these two that a collective reaches."""
    latency_us: float = field(default=50.0, metadata=limits(minimum=0.0))
    """10^-6 seconds of one message, whatever its size."""


@dataclass
class LoggerConfig:
    """Group `logger`: where the metrics go besides `training_history.jsonl`."""

    name: str = field(
        default="wandb", metadata=limits(choices=("wandb", "csv", "tensorboard", "none"))
    )
    """Which logger."""
    project: str = "growlm"
    """W&B project."""
    entity: str | None = None
    """W&B team or user; None for your default."""
    group: str | None = None
    """W&B group; a sweep sets it to its own name."""
    tags: list[str] = field(default_factory=list)
    """W&B tags, besides the plan's name."""
    mode: str = field(default="auto", metadata=limits(choices=("auto", "online", "offline")))
    """W&B: `auto` is online where you are logged in, else offline (`wandb sync` uploads later)."""


@dataclass
class CallbacksConfig:
    """Group `callbacks`: what is shown on the way."""

    log_every: int = field(default=10, metadata=limits(minimum=1))
    """Steps between rows of the history; the first and last step of a phase always have one."""
    sample_prompt: str = "Once upon a time"
    """What the model of each phase continues after its training."""
    sample_tokens: int = field(default=48, metadata=limits(minimum=0, maximum=4096))
    """Tokens to sample; 0 for no sample."""
    sample_temperature: float = field(default=0.8, metadata=limits(minimum=0.0, maximum=10.0))
    """0 takes the likeliest token."""
    extra: dict[str, Any] = field(default_factory=dict)
    """More Lightning callbacks, by any name: `{_target_: lightning.pytorch.callbacks.Timer, ...}`."""


@dataclass
class VerificationConfig:
    """Root key `verification`: the checks at each boundary."""

    probe_sequences: int = field(default=4, metadata=limits(minimum=1))
    """Held-out sequences of the frozen probe."""
    probe_length: int = field(default=128, metadata=limits(minimum=2))
    """Tokens of each, at most the sequence length."""
    tolerance: float = field(default=1e-4, metadata=limits(above=0.0, maximum=1.0))
    """Logits may differ by this times max(1, largest logit)."""
    require_symmetry_breaking: bool = False
    """Stop the run where copies would stay equal, in place of a finding."""


@dataclass
class CheckpointConfig:
    """Root key `checkpoint`: what is kept on disk."""

    save_optimizer: bool = False
    """Artefacts of finished phases keep the optimizer's state, which `growlm.grow` then grows along; with AdamW
    that is twice the model's size more."""
    every_minutes: float = field(default=10.0, metadata=limits(minimum=0.0))
    """Minutes between states that the run can be resumed from; one more at every boundary. 0 for none by time."""
    every_steps: int = field(default=0, metadata=limits(minimum=0))
    """Likewise steps of the run; 0 for none by steps."""


@dataclass
class BaselineConfig:
    """Group `baseline`: in place of the plan, a run to compare it with, for the same price."""

    kind: str = field(default="none", metadata=limits(choices=("none", "scratch", "continue")))
    """`scratch`: the last phase's model from the first step on; `continue`: the first phase's model to the end.
    Learning rate, batch and warm-up are that phase's."""
    equal: str = field(default="flops", metadata=limits(choices=("flops", "tokens", "seconds")))
    """What the baseline takes as much of as the plan; seconds are the planner's."""
    of: str | None = None
    """Set by growlm: the plan that the run was made from."""


@dataclass
class ReuseConfig:
    """Root key `reuse`: phases that another run has trained, to the bit as this one would."""

    phases: str = field(default="sweep", metadata=limits(choices=("sweep", "always", "never")))
    """Who keeps the state after each phase but the last, and begins after the phases that are kept: the jobs of a
    `sweep`, every run (`always`), or none (`never`)."""
    folder: str = "outputs/.phases"
    """Where states are kept. Runs that share it share phases, also while they run."""
    max_gb: float = field(default=20.0, metadata=limits(above=0.0))
    """What is kept at most; what was used longest ago goes first."""


@dataclass
class GrowthConfig:
    """Root key `growth`: what a sweep turns. Plans refer to them as `${growth.noise_std}`."""

    scale_factor: float = field(default=2.0, metadata=limits(minimum=1.0, maximum=64.0))
    """How much wider."""
    extra_layers: int = field(default=4, metadata=limits(minimum=1, maximum=4096))
    """How many layers deeper."""
    noise_std: float | None = field(default=None, metadata=limits(minimum=0.0, maximum=10.0))
    """Cancelling noise of a widening by copies; setting it makes a widening one by copies (but `recipe=fresh`)."""
    new_channels: str = field(default="auto", metadata=limits(choices=NEW_CHANNEL_KINDS))
    """What a widening's new channels, heads and hidden units are (group `recipe`)."""
    new_blocks: str = field(default="fresh", metadata=limits(choices=BLOCK_INITS))
    """What a deepening's new blocks are (group `recipe`)."""


@dataclass
class OperatorConfig:
    """One operator of a phase's `grow` list: exactly one of these."""

    upcycle: Upcycle | None = None
    """Dense to mixture of experts."""
    widen: Widen | None = None
    """More channels, heads and hidden units."""
    deepen: Deepen | None = None
    """More layers."""
    multiply_experts: MultiplyExperts | None = None
    """More experts, of a mixture of experts."""


@dataclass
class PhaseConfig:
    """One phase: grow (unless it is the first), then train."""

    steps: int | None = field(default=None, metadata=limits(minimum=0))
    """Optimizer steps. Give one of `steps`, `tokens`, `flops`. With 0 the phase grows the model, checks and
    saves it, and trains nothing."""
    tokens: float | None = field(default=None, metadata=limits(minimum=1))
    """Tokens to train on; rounded up to whole steps."""
    flops: float | None = field(default=None, metadata=limits(minimum=1))
    """Floating-point operations to spend; rounded up to whole steps."""
    batch_size: int = field(default=8, metadata=limits(minimum=1, maximum=1_000_000))
    """Sequences per forward pass."""
    accumulate: int = field(default=1, metadata=limits(minimum=1, maximum=1_000_000))
    """Forward passes per step. The balancing loss is per pass."""
    lr: float = field(default=3e-4, metadata=limits(above=0.0, maximum=10.0))
    """Learning rate; times the schedule's factor."""
    warmup_steps: int = field(default=0, metadata=limits(minimum=0))
    """Steps from 0 to the full rate at the beginning of this phase."""
    optimizer_state: str = field(default="carry", metadata=limits(choices=OPTIMIZER_STATE_MODES))
    """What becomes of the optimizer's state when the model grows (`growlm/growth/optimizer_state.py`): `carry` it
    through the growth, `reset` it, `exact` so that training goes on as without the growth, `asymmetric` so that
    only what is new starts anew, with a rate of its own."""
    grow: list[OperatorConfig] = field(default_factory=list)
    """Operators, applied in order before the phase."""
    save_as: str | None = None
    """Name of the artefact after the phase."""
    save_initial_as: str | None = None
    """Name of the artefact after growing, before training."""


@dataclass
class RunConfig:
    """Everything a run is made of."""

    name: str = MISSING
    """The plan's name; part of the run directory's."""
    seed: int = field(default=0, metadata=limits(minimum=0, maximum=2**31 - 1))
    """Of initial weights, data order and growth."""
    sequence_length: int = field(default=256, metadata=limits(minimum=2, maximum=2**20))
    """Tokens of a training sequence."""
    run_dir: str | None = None
    """Where the run leaves its files; None for outputs/<date>/<time>_<name>_<seed>."""
    resume: str | None = None
    """Folder of a stopped run to go on with. `auto`: the newest unfinished run with these settings, in `run_dir`
    or below outputs/, or a new run if there is none."""
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
    """In order, by name."""
