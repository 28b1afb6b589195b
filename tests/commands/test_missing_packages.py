"""Optional packages and compilers that are missing: one line, exit code 2, and nothing is written."""

import logging
import os
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest

from growlm.checkpoint import save_model
from growlm.config import load_config
from growlm.runtime.errors import UserError
from growlm.runtime.optional_packages import explain_missing_compiler, explain_missing_package
from growlm.runtime.torchao_notices import suppress_torchao_notices
from growlm.training import run_plan
from growlm.training.requirements import check_requirements
from tests.model.tiny_models import build, tiny_config
from tests.training.stopping import slow
from tests.training.tiny_run import TINY, TINY_PLAN

SCRIPTS = Path(__file__).parents[2] / "scripts"
WITHOUT = """
import importlib.metadata as metadata, sys
gone = {packages!r}
sys.modules.update(dict.fromkeys(gone))
distribution = metadata.distribution
def find(name):
    if name.replace("-", "_") in gone:
        raise metadata.PackageNotFoundError(name)
    return distribution(name)
metadata.distribution = find
"""
"""As if packages were not installed: `import` fails, and so does asking for their version."""


def python(code, *arguments, folder, packages=(), **environment):
    return subprocess.run(
        [sys.executable, "-c", WITHOUT.format(packages=packages) + code, *map(str, arguments)],
        cwd=folder,
        env={k: v for k, v in os.environ.items() if k != "CXX"}
        | {"OMP_NUM_THREADS": "1"}
        | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def command(name, *arguments, **settings):
    return python(f"from growlm.{name} import main; main()", *arguments, **settings)


def assert_refused(done, folder, *said):
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    for words in said:
        assert words in line
    assert not list(folder.rglob("*"))


@pytest.mark.parametrize("name", slow("train", "plan"))
def test_compiling_without_a_compiler_is_refused_before_anything_is_measured(name, tmp_path):
    arguments = [*TINY, "trainer=cpu", "trainer.compile=true", "baseline=scratch"]
    settings = {"PATH": "/nowhere", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    (folder := tmp_path / "here").mkdir()
    done = command(name, *arguments, "baseline.equal=seconds", folder=folder, **settings)
    said = "trainer.compile=true: needs a C++ compiler on a CPU", "or use trainer.compile=false"
    assert_refused(done, folder, *said)
    assert not (tmp_path / "cache" / "growlm").exists()


def test_compiling_without_headers_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(
        "growlm.runtime.optional_packages.sysconfig.get_paths", lambda: {"include": "/nowhere"}
    )
    config = load_config(*TINY, "trainer=cpu", "trainer.compile=true", f"run_dir='{tmp_path}/run'")
    with pytest.raises(UserError, match=r"trainer\.compile=true: .*no Python.h in /nowhere"):
        run_plan(config)
    assert not list(tmp_path.iterdir())
    check_requirements(load_config(*TINY), "cpu")  # needs no compiler


def test_compiling_on_a_gpu_needs_triton(monkeypatch):
    config = load_config(*TINY, "trainer.compile=true")
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(UserError, match=r"trainer\.compile=true: needs triton, which is not"):
        check_requirements(config, "gpu")
    triton = ModuleType("triton")
    triton.__spec__ = ModuleSpec("triton", None)
    monkeypatch.setitem(sys.modules, "triton", triton)
    assert explain_missing_compiler("gpu") is None
    check_requirements(config, "gpu")


@pytest.mark.slow
def test_tensorboard(tmp_path):
    done = command("train", *TINY, "logger=tensorboard", folder=tmp_path, packages=("tensorboard",))
    assert_refused(done, tmp_path, "logger=tensorboard: needs tensorboard", "pip install")


@pytest.mark.parametrize("sweep", [["-m", "seed=1,2"], *slow([])], ids=["sweep", "one run"])
@pytest.mark.parametrize(
    ("launcher", "said"),
    [
        ("joblib", "=joblib: needs hydra-joblib-launcher, which is not installed: pip install 'growlm[joblib]'"),
        pytest.param("submitit_slurm", "pip install 'growlm[submitit]'", marks=pytest.mark.slow),
        ("nonesuch", "hydra/launcher=nonesuch: there is no such file; known: "),
    ],
)  # fmt: skip
def test_launchers(tmp_path, launcher, said, sweep):
    arguments = [*sweep, f"hydra/launcher={launcher}"]
    done = command("train", *arguments, folder=tmp_path, packages=("hydra_plugins",))
    assert_refused(done, tmp_path, "hydra/launcher", said)


def test_no_command_needs_transformers(tmp_path):
    """Models and tokenizers of Hugging Face are read and written by growlm itself."""
    save_model(build(tiny_config("llama", vocab_size=257)), tmp_path / "a", {"tokenizer": "bytes"})
    code = """
from growlm import convert, generate, plan
for command, arguments in [
    (convert, ["source=a", "out=hf", "to=huggingface"]),
    (convert, ["source=hf", "out=b", "to=growlm"]),
    (convert, ["source=a", "out=own", "to=huggingface", "architecture=growlm"]),
    (generate, ["checkpoint=hf", "prompt=a", "max_new_tokens=2"]),
    (plan, [*sys.argv[1:], "format=json"]),
]:
    sys.argv[1:] = arguments
    try:
        command.main()
    except SystemExit as ended:
        assert not ended.code, arguments
assert "transformers" not in {name for name, module in sys.modules.items() if module is not None}
"""
    model = ["model=pretrained", f"model.path={tmp_path / 'hf'}", "tokenizer=huggingface"]
    plan = [*TINY_PLAN, *model, f"tokenizer.path={tmp_path / 'hf'}"]
    plan.remove("tokenizer=bytes")
    done = python(code, *plan, folder=tmp_path, packages=("transformers", "torchao"))
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", "hf", "own"}


@pytest.mark.parametrize(
    ("script", "package", "extra"),
    [
        pytest.param("bench_generate", "transformers", "huggingface", marks=pytest.mark.slow),
        ("draw_growth", "matplotlib", "docs"),
        pytest.param("bench_throughput", "transformers", "huggingface", marks=pytest.mark.slow),
        pytest.param("study_growth", "matplotlib", "docs", marks=pytest.mark.slow),
        pytest.param("wandb_dashboard", "wandb_workspaces", "dashboard", marks=pytest.mark.slow),
    ],
)
def test_scripts(tmp_path, script, package, extra):
    code = f"""
import runpy
sys.path.insert(0, {str(SCRIPTS)!r})
sys.argv = ["{script}.py"]
runpy.run_module("{script}", run_name="__main__", alter_sys=False)
"""
    done = python(code, folder=tmp_path, packages=(package,))
    install = f"needs {package}, which is not installed: pip install 'growlm[{extra}]'"
    assert_refused(done, tmp_path, install)


def test_what_is_no_package_is_missing(monkeypatch):
    assert explain_missing_package("json", "json") is None
    monkeypatch.setitem(sys.modules, "made_up", ModuleType("made_up"))  # with no spec
    for name in ("made_up", "made_up_too"):
        assert (
            explain_missing_package(name, "'it'")
            == f"needs {name}, which is not installed: pip install 'it'"
        )


@pytest.mark.slow
def test_a_benchmark_says_nothing_of_torchao(tmp_path):
    pytest.importorskip("torchao")
    code = f"""
sys.path.insert(0, {str(SCRIPTS)!r})
from dataclasses import replace
import bench_throughput as bench
shape = dict(d_model=16, n_layers=1, n_heads=2, n_kv_heads=2, head_dim=8, d_ff=32, vocab_size=32)
bench.hf_model(bench.Side(replace(bench.DENSE, **shape)))
assert "torchao" in sys.modules
"""
    done = python(code, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == done.stdout == ""


def test_only_the_known_notices_are_dropped():
    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger = logging.getLogger("torchao")
    for each in (logger, logging.getLogger("torch.utils._pytree")):  # it may not propagate
        each.addHandler(handler)
    with suppress_torchao_notices():
        logger.warning("Failed to load /site-packages/torchao/_C.so: Could not load this library")
        logger.warning("Failed to load /elsewhere/kernel.so")
        logging.getLogger("torch.utils._pytree").warning("another thing")
    logger.warning("Failed to load /site-packages/torchao/_C.so: afterwards")
    for each in (logger, logging.getLogger("torch.utils._pytree")):
        each.removeHandler(handler)
    assert said == [
        "Failed to load /elsewhere/kernel.so",
        "another thing",
        "Failed to load /site-packages/torchao/_C.so: afterwards",
    ]
