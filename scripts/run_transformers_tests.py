"""Run transformers' own common tests of models on `GrowLMForCausalLM`, dense and mixture.

The tests are not part of this repository: they come from the source distribution of the installed transformers,
which pip downloads into a temporary folder. It lacks the tests of generation and of exporters, so these two mixins
are empty unless `--checkout` names a clone of transformers' repository at the same version.

    python scripts/run_transformers_tests.py                          # exits with 1 if a failure is not accepted
    python scripts/run_transformers_tests.py -k embeddings --kinds dense
    python scripts/run_transformers_tests.py --sdist transformers-5.24.0.tar.gz --show

They need `pip install 'growlm[test,test-integrations]'`. docs/results/transformers_tests.md has the results.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = "transformers_tests"
EMPTY_MIXINS = {
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
}
REQUIRED = ("pytest", "parameterized")
"""Packages without which transformers' tests cannot be collected."""
KINDS = {"dense": "GrowLMDenseTest", "mixture": "GrowLMMixtureTest"}
ACCEPTED = {
    "test_bc_cache_name_forward": "both names of the cache are arguments, so neither is deprecated",
}
"""Reason of each failure that is accepted, by a pattern of the test's name."""

TEST_MODULE = """
import unittest

from growlm.huggingface.transformers_model import GrowLMConfig, GrowLMForCausalLM

from .generation.test_utils import GenerationTesterMixin
from .test_modeling_common import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, ModelTesterMixin, ids_tensor

MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["growlm"] = "GrowLMForCausalLM"  # or tests that need labels give none


class Tester:
    batch_size, seq_length, is_training = 13, 7, True
    hidden_size, num_hidden_layers, num_attention_heads, vocab_size = 32, 2, 4, 99
    values = {"tie_word_embeddings": False}

    def __init__(self, parent):
        pass

    def get_config(self):
        return GrowLMConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=2,
            head_dim=8,
            intermediate_size=64,
            max_position_embeddings=512,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
            **self.values,
        )

    def prepare_config_and_inputs(self):
        tokens = ids_tensor([self.batch_size, self.seq_length], self.vocab_size)
        return self.get_config(), tokens, tokens.ne(-1).long().tril(0)

    def prepare_config_and_inputs_for_common(self):
        config, tokens, mask = self.prepare_config_and_inputs()
        return config, {"input_ids": tokens, "attention_mask": mask.fill_(1)}


class MixtureTester(Tester):
    values = {"num_local_experts": 4, "num_experts_per_tok": 2}


class Common(GenerationTesterMixin, ModelTesterMixin):
    all_model_classes = (GrowLMForCausalLM,)
    model_tester_class = Tester
    test_can_init_all_missing_weights_before_2023 = True  # it has no year of a copyright

    def setUp(self):
        self.model_tester = self.model_tester_class(self)


class GrowLMDenseTest(Common, unittest.TestCase):
    pass


class GrowLMMixtureTest(Common, unittest.TestCase):
    model_tester_class = MixtureTester
    test_all_params_have_gradient = False
"""


def main() -> int:
    """Run the tests and print a table; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sdist", type=Path, help="source distribution that is already there")
    parser.add_argument("--checkout", type=Path, help="clone of transformers, for all mixins")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--skipped", action="store_true", help="print skipped tests and reasons")
    parser.add_argument("--show", action="store_true", help="print pytest's output")
    parser.add_argument("-k", default="", help="only tests that match, as for pytest")
    options = parser.parse_args()
    missing = [name for name in REQUIRED if find_spec(name) is None]
    if missing:
        need = "pip install 'growlm[test,test-integrations]'"
        parser.error(f"not installed: {', '.join(missing)}; {need}")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        copy_tests(options, place / PACKAGE)
        reports = {kind: run(place, kind, options.k, options.show) for kind in options.kinds}
    return print_reports(reports, options.skipped)


def copy_tests(options: argparse.Namespace, package: Path) -> None:
    """Fill a package with transformers' tests and the module that applies them to growlm's class."""
    if options.checkout is not None:
        shutil.copytree(options.checkout / "tests", package)
    else:
        with tempfile.TemporaryDirectory() as folder:
            sdist = options.sdist or download(Path(folder))
            unpack_tests(sdist, package)
        for name, text in EMPTY_MIXINS.items():
            (package / name).parent.mkdir(exist_ok=True)
            (package / name).parent.joinpath("__init__.py").touch()
            (package / name).write_text(text)
    (package / "__init__.py").touch()
    (package / "test_growlm.py").write_text(TEST_MODULE)


def download(folder: Path) -> Path:
    """Download the source distribution of the installed transformers, and return its path."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--no-binary",
        "transformers",
    ]
    subprocess.run(
        [*command, f"transformers=={version('transformers')}", "-d", str(folder)], check=True
    )
    return next(folder.glob("transformers-*.tar.gz"))


def unpack_tests(sdist: Path, package: Path) -> None:
    """Copy the modules of a source distribution's folder `tests`."""
    package.mkdir()
    with tarfile.open(sdist) as archive:
        for member in archive:
            if re.fullmatch(r"[^/]+/tests/\w+\.py", member.name) and (
                file := archive.extractfile(member)
            ):
                (package / Path(member.name).name).write_bytes(file.read())


def run(place: Path, kind: str, selection: str, show: bool) -> list[tuple[str, str, str]]:
    """Return each test's name, outcome and message."""
    report = place / f"{kind}.xml"
    tests = f"{PACKAGE}/test_growlm.py::{KINDS[kind]}"
    command = [sys.executable, "-m", "pytest", tests, f"--junitxml={report}", "--tb=short", "-q"]
    command += [
        "-p",
        "no:cacheprovider",
        "-p",
        "no:randomly",
        *(["-k", selection] if selection else []),
    ]
    paths = [str(REPOSITORY), str(place), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}
    output = None if show else subprocess.DEVNULL
    subprocess.run(command, cwd=place, env=environment, stdout=output, stderr=output, check=False)
    if not report.exists():
        raise SystemExit("pytest wrote no report; run again with --show")
    return list(read_report(report))


def read_report(report: Path) -> Iterator[tuple[str, str, str]]:
    """Yield each test's name, outcome and message of a JUnit report."""
    for case in ElementTree.parse(report).iter("testcase"):
        problem = next(
            (child for child in case if child.tag in ("failure", "error", "skipped")), None
        )
        outcome = {None: "passed", "skipped": "skipped"}.get(
            None if problem is None else problem.tag, "failed"
        )
        message = "" if problem is None else problem.get("message", "").splitlines()[0:1]
        yield case.get("name", "?"), outcome, "".join(message)


def print_reports(reports: dict[str, list[tuple[str, str, str]]], show_skipped: bool) -> int:
    """Print the counts and every failure with its reason; return 1 if one is not accepted."""
    code = 0
    for kind, tests in reports.items():
        counts = Counter(outcome for _, outcome, _ in tests)
        shown = ", ".join(
            f"{counts[outcome]} {outcome}" for outcome in ("passed", "failed", "skipped")
        )
        print(f"{kind} (transformers {version('transformers')}): {shown}")
        for name, outcome, message in tests:
            if outcome == "skipped" and show_skipped:
                print(f"  {name}: skipped, {message}")
            if outcome != "failed":
                continue
            reason = next((r for pattern, r in ACCEPTED.items() if re.search(pattern, name)), None)
            code = code if reason else 1
            print(f"  {name}: {f'accepted, {reason}' if reason else f'NOT ACCEPTED: {message}'}")
    return code


if __name__ == "__main__":
    sys.exit(main())
