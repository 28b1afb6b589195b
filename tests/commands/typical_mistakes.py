# ruff: noqa: E501 - one line each
"""A table of mistakes that users make: wrong keys, groups, values, paths, options, variables and files.

Each ends with exit code 2 and one line that names what is wrong; nothing is written. To add one, add a line.
"""

from dataclasses import dataclass, field

GROW = "grow=[{widen: {scale_factor: 2}}]"
LONG = "x" * 300


@dataclass(frozen=True)
class Mistake:
    """A command line, its surroundings, and what the message must contain.

    Attributes:
        id: Name of the test.
        arguments: Command and its arguments.
        message: Pieces of the one line that is printed, in any order.
        environment: Variables of the environment.
        files: Files in the working directory, by path.
        is_real: Whether the command is run in a process of its own too.
        is_slow: Whether it is left to the slow tests, as others like it are in the default ones.
        leaves: What it may leave, by name: the locks of the cache of tokens, which are never removed.
    """

    id: str
    arguments: tuple[str, ...]
    message: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    files: dict[str, str | bytes] = field(default_factory=dict)
    is_real: bool = False
    is_slow: bool = False
    leaves: str | None = None


def row(name, line, *message, real=False, slow=False, leaves=None, files=None, **environment):
    """A mistake; `line` is a command line without quotes, in which `|` stands for a space inside an argument."""
    arguments = tuple(word.replace("|", " ") for word in line.split())
    return Mistake(name, arguments, message, environment, files or {}, real, slow, leaves)


# fmt: off
KEYS = [
    row("misspelled key", "train trainer.precison=32-true", "trainer.precison", "did you mean precision", real=True),
    row("misspelled root key", "train seqence_length=64", "seqence_length", "did you mean sequence_length", slow=True),
    row("misspelled phase", "train phases.dens.steps=3", "phases.dens.steps", "did you mean dense"),
    row("misspelled key of a phase", "train phases.dense.stpes=3", "phases.dense.stpes", "did you mean steps"),
    row("added key", "train +data.pth=a.txt", "data.pth", "did you mean path", slow=True),
    row("key of another group", "train optimizer.lr=1", "optimizer.lr", slow=True),
    row("key of plan", "plan modle.d_model=32", "modle", "did you mean model", real=True),
    row("key of generate", "generate checkpoint=a temprature=1", "temprature", "did you mean temperature"),
    row("key of evaluate", "evaluate checkpoint=a data.pth=b", "data.pth", "did you mean path"),
    row("key of verify", "verify old=a nwe=b", "nwe", "did you mean new", slow=True),
    row("key of convert", "convert source=a out=b too=growlm", "too", "did you mean to"),
    row("operator", "grow checkpoint=a out=b grow=[{widn:|{}}]", "grow: widn", "did you mean widen"),
    row("setting of an operator", "grow checkpoint=a out=b grow=[{widen:|{factor:|2}}]", "grow: widen.factor", "did you mean scale_factor"),
    row("required key", "grow checkpoint=a out=b", "grow", "must be given"),
]
GROUPS = [
    row("optimizer", "train optimizer=adam", "optimizer=adam", "did you mean adamw", real=True),
    row("data", "train data=csv", "data=csv", "known: embedded", slow=True),
    row("plan file", "train phase_plan=four_stages", "phase_plan=four_stages", "did you mean four_stage"),
    row("experiment", "train experiment=two_proceses", "experiment=two_proceses", "did you mean two_processes", slow=True),
    row("group itself", "train optimiser=adamw", "optimiser", "did you mean optimizer", slow=True),
    row("cluster", "plan cluster=a100", "cluster=a100", "dgx_a100"),
    row("data of evaluate", "evaluate checkpoint=a data=txt", "data=txt", "did you mean text", slow=True),
    row("launcher", "train hydra/launcher=slurm seed=1", "hydra/launcher=slurm", "known: basic"),
]
VALUES = [
    row("text for a number", "train seed=one", "seed", "one"),
    row("negative number", "train phases.dense.steps=-1", "phases.dense.steps=-1", "at least 0", slow=True),
    row("time", "train trainer.max_time=10m", "trainer.max_time=10m", "DD:HH:MM:SS", slow=True),
    row("precision", "train trainer.precision=fp16", "trainer.precision=fp16", "bf16-mixed", slow=True),
    row("devices", "train trainer.devices=0", "trainer.devices=0", "at least 1", slow=True),
    row("heads", "train model.n_heads=3", "model.", "n_heads", slow=True),
    row("width after growth", "train growth.scale_factor=1.3", "growth.scale_factor=1.3", "n_heads", slow=True),
    row("class", "train callbacks.extra.x._target_=nope.Nope", "callbacks.extra.x._target_", "nope", slow=True),
    row("device counts", "plan devices=eight", "devices=eight", "positive integers"),
    row("format", "plan format=xml", "format=xml", "table, json"),
    row("no tokens", "generate checkpoint=a prompt=b max_new_tokens=0", "max_new_tokens=0", "at least 1"),
    row("target format", "convert source=a out=b to=hf", "to=hf", "huggingface, growlm", slow=True),
    row("list without -m", "train seed=1,2", "seed=1,2", "-m", real=True, slow=True),
    row("empty item", "train -m data.path=choice(a,,b)", "data.path=choice(a,,b)", "needs a value"),
    row("spaces around =", "train seed = 1", "argument=seed", "key=value"),
    row("a growth setting for nothing", "train phase_plan=dense growth.noise_std=0", "growth.noise_std", "no phase", slow=True),
]
PATHS = [
    row("text", "train data=text data.path=no,|such:|'file'.txt", "data.path=no, such: 'file'.txt", "no such", real=True),
    row("no text", "train data=text", "data.path", "a file, a folder or a glob", slow=True),
    row("run", "train resume=nowhere", "resume=nowhere", "run folder", real=True),
    row("model", "train model=pretrained model.path=nowhere", "model.path=nowhere", "no such"),
    row("tokenizer", "train tokenizer=huggingface tokenizer.path=nowhere", "tokenizer.path=nowhere", slow=True),
    row("checkpoint of generate", "generate checkpoint=nowhere prompt=a", "checkpoint=nowhere", real=True),
    row("checkpoint of evaluate", "evaluate checkpoint=nowhere", "checkpoint=nowhere"),
    row("checkpoint of grow", f"grow checkpoint=nowhere out=b {GROW.replace(' ', '|')}", "checkpoint=nowhere"),
    row("checkpoints of verify", "verify old=nowhere new=there", "old=nowhere"),
    row("source of convert", "convert source=nowhere out=b to=growlm", "source=nowhere", real=True),
    row("run of report", "report nowhere", "nowhere", "no such folder", real=True),
    row("config folder", "train --config-dir nowhere", "--config-dir=", "nowhere", "no such folder"),
    row("run folder below a file", "train run_dir=a_file/run", "run_dir", "a_file", files={"a_file": ""}),
]
NAMES = [
    row("long plan name", f"train phase_plan=dense name={LONG}", "name=", "too long"),
    row("long phase name", f"train +phases.{LONG}.steps=1", f"phases.{LONG}", "too long", slow=True),
    row("long checkpoint name", f"train phase_plan=dense phases.dense.save_as={LONG}", "phases.dense.save_as", "too long"),
    row("long run folder", f"train run_dir={LONG}", "run_dir", "too long", slow=True),
    row("long sweep folder", f"train -m hydra.sweep.dir=b/{LONG} seed=1,2", "hydra.sweep.dir", "too long", slow=True),
    row("long report", f"report . out={LONG}", "path=", "too long"),
    row("long path", f"train data=text data.path={LONG}", LONG, "too long", slow=True),
]
OPTIONS = [
    row("option", "train --confg-dir nowhere", "--confg-dir", "did you mean --config-dir", real=True),
    row("value of an option", "train --cfg jobs", "--cfg=jobs", "job, hydra, all"),
    row("two options", "train -m --cfg job seed=1,2", "--cfg", "together with --multirun"),
    row("sweep of plan", "plan -m seed=1,2", "-m", "only growlm train"),
    row("key as an option", "train --resume=nowhere", "--resume", "no such option"),
    row("option of report", "report --out=b.html", "--out=b.html"),
    row("mode against -m", "train hydra.mode=RUN -m seed=1,2", "hydra.mode=RUN", "-m"),
    row("folder of single runs", "train -m hydra.run.dir=b seed=1,2", "hydra.run.dir", "hydra.sweep.dir"),
    row("hydra's own folder", "train hydra.output_subdir=.hydra", "hydra.output_subdir"),
    row("pickled job", "train --experimental-rerun a.pickle", "--experimental-rerun"),
    row("a command", "cli.main trian", "command=trian", "did you mean train"),
]
ENVIRONMENT = [
    row("torchrun and a sweep", "train -m seed=1,2", "WORLD_SIZE=2", "torchrun", WORLD_SIZE="2"),
    row("world size", "train -m seed=1,2", "WORLD_SIZE=two", "a number", WORLD_SIZE="two"),
]
FILES = [
    row("plan with a typo", "train --config-dir . phase_plan=a", "a.yaml, line 4", files={"phase_plan/a.yaml": "name: a\nphases:\n  a: {steps: 3\n  b: {}\n"}),
    row("plan without its header", "train --config-dir . phase_plan=a", "# @package _global_", files={"phase_plan/a.yaml": "name: a\nphases: {a: {steps: 3}}\n"}, slow=True),
    row("config folder too deep", "train --config-dir phase_plan phase_plan=a", "takes the folder above", files={"phase_plan/a.yaml": "# @package _global_\nname: a\n"}, slow=True),
    row("broken JSON lines", "train data=text data.path=a.jsonl", "a.jsonl", "2", leaves="outputs", files={"a.jsonl": '{"text": "a"}\n{"text": \n'}),
    row("missing column", "train data=text data.path=a.csv data.column=Text|(EN)", "Text (EN)", "title", files={"a.csv": "title,body\na,b\n" * 9}),
    row("empty text", "train data=text data.path=a.txt", "a.txt", files={"a.txt": ""}),
    row("no text inside", "train data=text data.path=folder", "folder", files={"folder/a.png": b"\x89PNG"}),
    row("not UTF-8", "train data=text data.path=a.txt", "a.txt", "UTF-8", leaves="outputs", files={"a.txt": b"\xff\xfe" * 99}),
]
# fmt: on

MISTAKES = [*KEYS, *GROUPS, *VALUES, *PATHS, *NAMES, *OPTIONS, *ENVIRONMENT, *FILES]
