"""The commands and code of README.md and docs/: they compose, name what exists, and, in the slow tests, run."""

import ast
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from itertools import pairwise

import pytest
import yaml

from growlm.cli.free_text import quote_free_texts
from growlm.config import load_config
from growlm.config.command_schema import (
    ConvertCommand,
    EvaluateCommand,
    GenerateCommand,
    GrowCommand,
    VerifyCommand,
)
from growlm.config.config_dir import split_config_dir
from growlm.config.load import load_command_config
from growlm.config.phase_plan import make_plan
from growlm.config.validation import check_config
from growlm.plan import COMMAND_KEYS
from growlm.runtime.errors import UserError
from tests.docs.pages import (
    GROWLM,
    LONG,
    MARK,
    ROOT,
    Block,
    Command,
    find_pages,
    read_blocks,
    read_commands,
)
from tests.docs.reader import fill_in, make_folder, make_runs

BLOCKS = [block for path in find_pages() for block in read_blocks(path)]
COMMANDS = [command for block in BLOCKS for command in read_commands(block)]
SCHEMAS = {
    "grow": GrowCommand,
    "verify": VerifyCommand,
    "generate": GenerateCommand,
    "evaluate": EvaluateCommand,
    "convert": ConvertCommand,
}
OTHER_PROGRAMS = (
    *(
        "cd",
        "git",
        "wandb",
        "trackio",
        "lm_eval",
        "sbatch",
        "for",
        "export",
        "eval",
        "rm",
        "tensorboard",
    ),
    *(".", "python3", ".venv/bin/pip", "pip", "make", "curl"),
)


def by_name(items):
    return [pytest.param(item, id=str(item)) for item in items]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The reader's folder, with the files that pages make."""
    folder = make_folder(tmp_path_factory.mktemp("reader") / "it")
    for block in BLOCKS:
        write_file(block, folder)
    return folder


def write_file(block, folder):
    if block.file:
        path = folder / block.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text + "\n")


@pytest.fixture(autouse=True)
def in_folder(request, monkeypatch):
    if "folder" in request.fixturenames:
        folder = request.getfixturevalue("folder")
        monkeypatch.chdir(folder)
        monkeypatch.syspath_prepend(str(folder))


def first_job(argument):
    """The first value of a sweep's override, and what a single run may have of the options."""
    key, equals, value = argument.partition("=")
    if value.startswith("choice("):
        return f"{key}={value.removeprefix('choice(').partition(',')[0]}"
    return (
        argument if value.startswith(("{", "[", "'")) else f"{key}{equals}{value.partition(',')[0]}"
    )


def compose(name, arguments):
    """Compose what a command would run with; a UserError if it would be refused."""
    is_sweep = "-m" in arguments
    config_dir, rest = split_config_dir([each for each in arguments if each not in ("-m", "-v")])
    rest = [each for each in rest if "=" in each or each.startswith("~")]
    if name in SCHEMAS:
        rest = [each for each in rest if not each.startswith("trust=")]
        return load_command_config(name, SCHEMAS[name], quote_free_texts(rest, SCHEMAS[name]))
    own = {each.partition("=")[0]: each.partition("=")[2] for each in rest}
    numbers = own.get("devices", own.get("trainer.devices", "1")).split(",")
    rest = [
        first_job(each) if is_sweep else each
        for each in rest
        if each.partition("=")[0] not in (*COMMAND_KEYS, "resume", "devices", "trainer.devices")
        and not each.startswith(("hydra", "trust="))
    ]
    if "resume" in own:
        return None  # what may change is the run's
    rest = quote_free_texts(rest)
    for number in numbers:
        config = load_config(*rest, f"trainer.devices={number}", config_dir=config_dir)
        check_config(config)
        assert make_plan(config, 1024).phases
    return config


@pytest.mark.parametrize("command", by_name(COMMANDS))
def test_a_command_composes_and_names_what_exists(command, folder):
    check(command, folder)


def check(command, folder):
    """Check a command without running it."""
    found = command.growlm
    if found is None:
        check_other(command.words)
        return
    name, arguments = found
    if name in ("--help", "completion") or "--help" in arguments or name == "report":
        return
    assert name in GROWLM, f"growlm has no command {name}"
    arguments = [fill_in(as_made(each, command.block.page), folder) for each in arguments]
    for each in arguments:
        value = each.rpartition("=")[2]
        if re.fullmatch(r"[A-Z][A-Z_]{2,}", value) and not command.block.needs:
            raise AssertionError(f"{command}: what is {value}?")
    if command.exit_code == 2:
        with pytest.raises(UserError):
            compose(name, arguments)
    elif "my_package" in (command.block.needs or ""):
        return
    else:
        compose(name, arguments)


def as_made(argument, page):
    """A model that an earlier command of the page writes stands for a folder of that kind."""
    key, _, value = argument.partition("=")
    written = {word for each in COMMANDS if each.block.page == page for word in each.words}
    return f"{key}=HF_FOLDER" if key == "model.path" and f"out={value}" in written else argument


def check_other(words):
    """Check a command that is not growlm's: what it names in the repository exists."""
    words = [word for word in words if not re.fullmatch(r"[A-Z_]+=\S*", word)]
    program = words[0]
    if program == "python" and words[1] == "-m":
        assert words[2] in ("pytest", "venv", "json.tool", "http.server")
        if words[2] == "pytest":
            for word in words[3:]:
                assert not word.startswith("tests/") or (ROOT / word.partition("::")[0]).exists(), (
                    word
                )
        return
    if program == "python":
        path = ROOT / words[1]
        if not path.exists():
            assert any(block.file == words[1] for block in BLOCKS), words[1]
            return
        text = path.read_text()
        for option in (word for word in words if re.match(r"--[a-z]", word)):
            assert f'"{option.partition("=")[0]}"' in text, option
        return
    assert program in OTHER_PROGRAMS, f"what is {program}?"
    if program == "make":
        assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text()
    if program.endswith("pip"):
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        for extras in re.findall(r"(?:growlm|\.)\[([\w,-]+)\]", " ".join(words)):
            assert set(extras.split(",")) <= set(project["optional-dependencies"])


def test_there_are_some():
    assert len(COMMANDS) > 100
    assert len({command.block.page for command in COMMANDS}) > 15


@pytest.mark.parametrize(
    "block",
    [pytest.param(b, id=f"{b.page}:{b.line}") for b in BLOCKS if b.language == "python"],
)
def test_python_code_compiles_and_imports_what_exists(block):
    tree = ast.parse(block.text)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("growlm"):
            module = importlib.import_module(node.module)
            for name in node.names:
                assert hasattr(module, name.name), f"{node.module} has no {name.name}"


@pytest.mark.parametrize(
    "block",
    [pytest.param(b, id=f"{b.page}:{b.line}") for b in BLOCKS if b.language == "yaml"],
)
def test_yaml_parses(block):
    assert yaml.safe_load(block.text)


def unknown_marks(text):
    """The comments above blocks that mean nothing."""
    lines = text.splitlines()
    above = [line for line, next_line in pairwise(lines) if next_line.startswith("```")]
    return [line for line in above if line.startswith("<!--") and not MARK.match(line)]


def test_every_mark_is_known():
    for path in find_pages():
        assert not unknown_marks(path.read_text()), path
    assert unknown_marks("<!-- neds: a GPU -->\n```sh\nls\n```") == ["<!-- neds: a GPU -->"]


def test_a_block_without_an_end_is_found(tmp_path):
    (tmp_path / "page.md").write_text("```sh\nls\n")
    with pytest.raises(ValueError, match=r"page\.md:1: this block has no end"):
        read_blocks(tmp_path / "page.md", tmp_path)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("python -m growlm.train phases.nope.lr=1", UserError),
        ("python -m growlm.trian", AssertionError),
        ("python scripts/nothing.py", AssertionError),
        ("python scripts/coverage_table.py --nope", AssertionError),
        ("make nothing", AssertionError),
        ("pip install 'growlm[nothing]'", AssertionError),
        ("something else", AssertionError),
        ("python -m growlm.train resume=SOME_DIR", AssertionError),
        ("python -m growlm.generate checkpoint=DIR prompt=Once", AssertionError),
        ("python -m growlm.verify old=OLD new=NEW tolerance=x", UserError),
        ("python -m growlm.train seed=1  # exit code 2", pytest.fail.Exception),
    ],
)
def test_a_wrong_command_is_found(text, wrong, folder):
    command = Command(Block("page.md", 1, "sh", text, ""), 2, text)
    with pytest.raises(wrong):
        check(command, folder)


# Run whole, with small overrides.

QUICK = ("data.documents=300", "trainer.validation_sequences=4", "verification.probe_sequences=1")


def shrink(arguments, folder):
    """Return the arguments of a training command that make the same plan small."""
    config_dir, rest = split_config_dir([each for each in arguments if each not in ("-m", "-v")])
    named = {each.partition("=")[0] for each in rest}
    if any(each.startswith("resume=") and each != "resume=auto" for each in rest):
        return [re.sub(r"steps=\+\d+", "steps=+2", each) for each in arguments]
    kept = []
    for each in arguments:
        key, _, value = each.partition("=")
        if re.fullmatch(r"phases\.\w+\.(steps|tokens|flops)", key) and value != "0":
            each = f"{key}={ {'steps': 2, 'tokens': 4096, 'flops': 1e9}[key.rpartition('.')[2]] }".replace(
                " ", ""
            )
        kept.append(each)
    overrides = [first_job(each) for each in rest if "=" in each or each.startswith("~")]
    overrides = [each for each in overrides if not each.startswith(("hydra", "baseline="))]
    config = load_config(*quote_free_texts(overrides), config_dir=config_dir)
    if config.model.vocab_size > 5000:
        kept += ["model=small", "tokenizer=embedded"]
    for name, phase in config.phases.items():
        lengths = {f"phases.{name}.{each}" for each in ("steps", "tokens", "flops")}
        if not lengths & named and phase.steps != 0 and f"+phases.{name}" not in named:
            kept.append(f"phases.{name}.steps=2")
        kept.append(f"phases.{name}.batch_size=2")
    settings = QUICK if config.data.source == "embedded" else QUICK[1:]
    kept += [each for each in settings if each.partition("=")[0] not in named]
    if not any(each.startswith("logger") for each in rest):
        kept.append("logger=none")
    return kept


def runnable(page):
    return [
        block
        for block in BLOCKS
        if block.page == page
        and (block.language in ("sh", "python") or block.file)
        and block.needs in (None, LONG)
        and block.mark not in ("fragment", "run", "tests")
    ]


PAGES = sorted({block.page for block in BLOCKS})


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    folder = make_folder(tmp_path_factory.mktemp("ready") / "it")
    make_runs(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if runnable(page)])
def test_a_page_runs(page, ready, tmp_path):
    """All blocks of a page in their order, in one folder."""
    folder = shutil.copytree(ready, tmp_path / "it", symlinks=True)
    for name in ("examples", "scripts", "docs"):
        (folder / name).symlink_to(ROOT / name)
    environment = os.environ | {
        "PATH": os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
        "WANDB_MODE": "offline",
        "OMP_NUM_THREADS": "1",
    }
    faults = []
    for block in runnable(page):
        write_file(block, folder)
        if block.language == "python" and (not block.file or block.file == "load_it.py"):
            done = run([sys.executable, "-c", block.text], folder, environment)
            if done.returncode:
                faults.append(f"{page}:{block.line}: {done.stderr[-600:]}")
        for command in read_commands(block):
            shutil.rmtree(folder / "OUT", ignore_errors=True)
            if text := as_run(command, folder):
                done = run(["bash", "-c", text], folder, environment)
                if done.returncode != command.exit_code:
                    faults.append(
                        f"{command} -> {done.returncode}\n{text}\n{(done.stdout + done.stderr)[-600:]}"
                    )
    assert not faults, "\n\n".join(faults)


def run(command, folder, environment):
    return subprocess.run(
        command,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


NOT_RUN = (
    "pip",
    "git",
    "wandb",
    "lm_eval",
    "make",
    "sbatch",
    "trackio",
    "python3",
    ".",
    "eval",
    "cd",
    "tensorboard",
)
"""Programs that install, download or need an account; and those that change the shell."""
SLOW_SCRIPTS = (
    "study_growth",
    "run_transformers_tests",
    "imitate_machines",
    "wandb_dashboard",
    "render_gallery",
)
"""Scripts that have slow tests of their own, or take hours."""


def as_run(command, folder):
    """Return the command with small settings and real paths; None for one that is not run."""
    words = command.words
    if words[0] in NOT_RUN or words[0].endswith("/pip"):
        return None
    if words[0] == "python" and any(name in words[1] for name in (*SLOW_SCRIPTS, "bench_")):
        return None
    text = fill_in(command.text.partition(" # ")[0], folder)
    found = command.growlm
    if found is None or found[0] not in ("train", ""):
        if "wrong_operator" in text:
            text = re.sub(r"steps=\d+", "steps=2", text) + " logger=none data.documents=300"
        return text
    arguments = [fill_in(each, folder) for each in found[1]]
    if command.exit_code or "--help" in arguments or "--cfg" in arguments:
        return text
    before, after = os.getcwd(), ""
    if "|" in words or ">" in words:
        after = " > /dev/null"
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    try:
        small = shrink(arguments, folder)
    finally:
        os.chdir(before)
        sys.path.remove(str(folder))
    return f"{shlex.join([sys.executable, '-m', 'growlm.train', *small])}{after}"
