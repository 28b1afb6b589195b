"""A validation text of one's own, and further sets by name, measured with every validation."""

import csv
import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer

from growlm.checkpoint.checkpoint_folder import load_model
from growlm.config import load_config
from growlm.config.command_schema import EvaluateCommand
from growlm.config.load import load_command_config
from growlm.config.phase_plan import make_plan
from growlm.config.schema import DataConfig, EvaluationTextConfig
from growlm.data import PackedDataModule, load_tokenizer, open_run_data, open_sources
from growlm.data.evaluation_sets import open_evaluation_sets
from growlm.data.preparation import DataListener
from growlm.inference.evaluation_text import iter_evaluation_documents
from growlm.reporting.html.run_page import build_run_page
from growlm.reporting.reading.run_files import read_run
from growlm.runtime.errors import UserError
from growlm.training import PhaseStage, run_plan
from growlm.training.callbacks.lightning_callbacks import check_callbacks
from growlm.training.run_setup import build_extra_callbacks
from tests.training.stopping import slow
from tests.training.tiny_run import TINY, events, tiny_config

FOX = "".join(f"The quick brown fox jumps over dog {i}.\n\n" for i in range(20))
WORDS = [f"Äpfel, Öl und süße Früchte: {i}" for i in range(30)]
PLAN = ("~phases.wide", "~phases.deep", "callbacks.sample_tokens=0", "trainer.precision=32-true")


class Messages(DataListener):
    def __init__(self):
        self.texts = []

    def message_logged(self, text):
        self.texts.append(text)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    (folder / "fox.txt").write_text(FOX)
    (folder / "words.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in WORDS))
    return folder


def overrides(texts):
    return (
        *PLAN,
        f"data.validation.path='{texts}/fox.txt'",
        f"data.evaluation_sets.words.path='{texts}/words.jsonl'",
        f"data.evaluation_sets.fox.path='{texts}/fox.txt'",
    )


@pytest.fixture(scope="module")
def run_dir(texts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    return run_plan(tiny_config(folder, *overrides(texts), "logger=csv")).run_dir


def score(model, texts, sequences=4, length=32):
    """Loss in nats per token of the first windows, and bits per byte of the documents that they are of."""
    tokenizer = load_tokenizer("bytes", None)
    ids, ends, sizes = [], [], []
    for text in texts:
        ids += [*tokenizer.encode_batch([text])[0], tokenizer.eos_token_id]
        ends.append(len(ids))
        sizes.append(len(text.encode()))
    windows = [torch.tensor(ids[i * length : (i + 1) * length + 1]) for i in range(sequences)]
    with torch.no_grad():
        loss = model.loss(torch.stack(windows), []).item()
    index = next(i for i, end in enumerate(ends) if end >= sequences * length)
    return loss, loss * ends[index] / sum(sizes[: index + 1]) / math.log(2)


def test_each_set_has_its_own_loss_and_bits_per_byte(run_dir):
    model = load_model(run_dir / "checkpoints" / "moe_model_final")[0].eval()
    phase = json.loads((run_dir / "summary.json").read_text())["phases"][-1]
    fox, words = (score(model, each) for each in (FOX.strip().split("\n\n"), WORDS))
    assert (phase["val_loss"], phase["val_bits_per_byte"]) == pytest.approx(fox, abs=1e-5)
    assert tuple(phase["evaluation"]["fox"].values()) == pytest.approx(fox, abs=1e-5)
    assert tuple(phase["evaluation"]["words"].values()) == pytest.approx(words, abs=1e-5)


def test_they_are_in_every_record_of_the_run(run_dir):
    dense, moe = json.loads((run_dir / "summary.json").read_text())["phases"]
    (boundary,) = json.loads((run_dir / "boundaries.json").read_text())
    words = boundary["evaluation"]["words"]
    assert words["loss_before"] == dense["evaluation"]["words"]["loss"]
    assert words["loss_after"] == moe["initial_evaluation"]["words"]["loss"]
    assert words["loss_after"] == pytest.approx(words["loss_before"], abs=1e-5)  # lossless
    lines = events(run_dir, "validation")
    assert [line["evaluation"]["words"]["loss"] for line in lines] == [
        each[key]["words"]["loss"]
        for each in (dense, moe)
        for key in ("initial_evaluation", "evaluation")
    ]
    rows = list(csv.DictReader((run_dir / "csv" / "metrics.csv").read_text().splitlines()))
    logged = [float(row["val/words/loss"]) for row in rows if row["val/words/loss"]]
    assert logged == pytest.approx([line["evaluation"]["words"]["loss"] for line in lines])
    assert [row for row in rows if row["val/words/bits_per_byte"]] == [
        row for row in rows if row["val/loss"]
    ]
    page = build_run_page(read_run(run_dir), "run")
    titles = [column["title"] for column in page["evaluation"]["columns"]]
    assert titles == ["phase", "validation", "words", "fox"]
    _, validation, words, fox = (cell["text"] for cell in page["evaluation"]["rows"][-1])
    assert validation == fox != words
    assert f"{moe['evaluation']['words']['bits_per_byte']:.4f}" in words
    assert [one["name"] for one in page["validation"]["sets"]] == ["words", "fox"]
    assert "words loss" in [fact["label"] for fact in page["boundaries"][0]["facts"]]


def test_nothing_is_held_out_and_duplicates_are_counted(texts, tmp_path):
    (tmp_path / "train.txt").write_text("Once upon a time.\n\n" * 9 + FOX[: len(FOX) // 2])
    settings = DataConfig(
        source="text", path=str(tmp_path / "train.txt"), cache=str(tmp_path / "cache")
    )
    settings.evaluation_sets = {"fox": EvaluationTextConfig(path=str(texts / "fox.txt"))}

    def open_data(settings):
        listener = Messages()
        sources, counts = open_sources(settings, 0)
        tokenizer = load_tokenizer("bytes", None)
        numbers = {"seed": 0, "sequence_length": 8, "validation_samples": 20}
        data = open_run_data(settings, tokenizer, sources, counts, listener=listener, **numbers)
        return data, listener.texts

    held_out, _ = open_data(replace(settings, evaluation_sets={}, validation_every=5))
    assert held_out.evaluation_fingerprints == {}
    settings.validation = EvaluationTextConfig(path=str(texts / "words.jsonl"))
    trained = []
    for streaming in (False, True):
        data, _ = open_data(replace(settings, streaming=streaming))
        trained.append([data.train[i].tolist() for i in range(75)])
        assert bytes(t for row in trained[-1] for t in row[:-1] if t < 256).count(b"Once upon") >= 9
    assert trained[0] == trained[1]
    # No line of the words is a document to train on; of the fox, those of the first half are.
    data, told = open_data(settings)
    assert told[0].endswith("0 held out")
    assert [line for line in told if "word for word" in line] == [
        "data.evaluation_sets.fox: 5 documents, 190 tokens (0.974 bytes each); 5 of them are also trained on, "
        "word for word"
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ({"path": "none.txt"}, r"data\.evaluation_sets\.a\.path=none\.txt: no such file"),
        (
            {"path": "short.txt"},
            r"a\.path=short\.txt: holds 3 tokens in 1 document\(s\); one sample .* needs 33",
        ),
        ({"path": "blank.txt"}, r"a\.path=blank\.txt: holds 0 tokens in 0 document\(s\)"),
        ({"path": "words.jsonl", "column": "no"}, r"a.*no"),
        ({"column": "text"}, r"data\.evaluation_sets\.a=.*: names no text; set path"),
        (
            {"split": "test"},
            r"a\.split=.*: data=embedded is no dataset .* set data\.evaluation_sets\.a\.name",
        ),
        ({"path": "words.jsonl", "split": "test"}, r"a\.split=test: a file \(path\) has none"),
        ({"path": "x", "source": "huggingface"}, r"a\.path=x: a dataset has none"),
    ],
    ids=str,
)
def test_what_is_refused_before_the_run(text, reason, texts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(texts / "words.jsonl", tmp_path)
    (tmp_path / "short.txt").write_text("ab\n")
    (tmp_path / "blank.txt").write_text("\n \n\n")
    settings = DataConfig(evaluation_sets={"a": EvaluationTextConfig(**text)})
    with pytest.raises(UserError, match=reason):
        open_evaluation_sets(
            settings, load_tokenizer("bytes", None), seed=0, sequence_length=32, max_samples=4
        )


def test_a_split_of_the_dataset_that_is_trained_on(tmp_path):
    for split, text in (("train", "to train on"), ("validation", "to validate on")):
        lines = [json.dumps({"text": f"{text} {i}"}) for i in range(20)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    settings = DataConfig(
        source="huggingface",
        name=str(tmp_path),
        validation=EvaluationTextConfig(split="validation"),
    )
    sets = open_evaluation_sets(
        settings, load_tokenizer("bytes", None), seed=0, sequence_length=32, max_samples=4
    )
    read = bytes(sets["data.validation"].samples[0].tolist()[:16])
    assert read == b"to validate on 0"


@pytest.mark.parametrize("is_there", [True, *slow(False)])
def test_a_resume_needs_the_same_texts(is_there, run_dir, texts, tmp_path):
    run = shutil.copytree(run_dir, tmp_path / "run")
    file, resume = texts / "words.jsonl", f"resume={run}"
    content = file.read_text()
    if is_there:
        file.write_text(content.replace("pfel", "epfel"))
    else:
        file.unlink()
    reason = "text to evaluate on has changed since the run began" if is_there else "no such file"
    try:
        with pytest.raises(
            UserError, match=rf"^data\.evaluation_sets\.words\.path=.*words\.jsonl: .*{reason}"
        ):
            run_plan(load_config(resume, "phases.moe.steps=+4"))
    finally:
        file.write_text(content)
    assert (run / "summary.json").exists()


@pytest.mark.slow
def test_an_extended_run_goes_on_measuring_even_if_the_files_have_moved(run_dir, texts, tmp_path):
    run = shutil.copytree(run_dir, tmp_path / "run")
    moved = shutil.copytree(texts, tmp_path / "moved")
    path = f"data.evaluation_sets.words.path='{moved}/words.jsonl'"
    run_plan(load_config(f"resume={run}", "phases.moe.steps=+4", path))
    phase = json.loads((run / "summary.json").read_text())["phases"][-1]
    model = load_model(run / "checkpoints" / "moe_model_final")[0].eval()
    assert tuple(phase["evaluation"]["words"].values()) == pytest.approx(
        score(model, WORDS), abs=1e-5
    )


@pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec", "ignore:.*many workers")
def test_a_stage_of_ones_own_trainer_has_them_from_the_data_module(run_dir, texts, tmp_path):
    config = tiny_config(tmp_path / "run", *overrides(texts))
    plan = make_plan(config, 257)
    sources, counts = open_sources(config.data, 0)
    numbers = {"seed": 0, "sequence_length": 32, "validation_samples": 4}
    data = open_run_data(
        config.data, load_tokenizer("bytes", None), sources, counts, listener=Messages(), **numbers
    )
    module = PackedDataModule(
        data.train,
        data.validation,
        first_sample=0,
        num_batches=1,
        batch_size=4,
        validation_sequences=4,
        evaluation_sets={name: each.samples for name, each in data.evaluation_sets.items()},
    )
    assert isinstance(module, LightningDataModule)
    stage = PhaseStage(plan, plan.phases[0], config.optimizer, config.schedule, log_to_logger=False)
    trainer = Trainer(
        max_steps=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        barebones=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(stage, datamodule=module)
    measured = {key: float(value) for key, value in trainer.callback_metrics.items()}
    assert measured["val/fox/loss"] == measured["val/loss"] != measured["val/words/loss"]


def test_an_interval_to_hold_out_is_refused_where_nothing_is_held_out():
    with pytest.raises(UserError, match=r"^data\.validation_every=5: nothing is held out"):
        load_config("data.validation.path=val.txt", "data.validation_every=5")

    assert load_config("data.validation_every=5").data.validation_every == 5
    config = load_config("data._target_=a.B", "data.validation.path=v", "data.validation_every=5")
    assert config.data.arguments == {"validation_every": 5}  # an argument of the class


def test_what_a_text_does_not_use_is_reported_unless_it_is_inherited(texts):
    words = EvaluationTextConfig(path=str(texts / "words.jsonl"), sample_by="paragraph")
    fox = EvaluationTextConfig(path=str(texts / "fox.txt"), column="story")
    settings = DataConfig(column="text", sample_by="line", validation=words)
    settings.evaluation_sets = {
        "fox": fox,
        "inherits": replace(words, sample_by=None),
        "too": replace(fox, column=None),
    }
    tokenizer = load_tokenizer("bytes")
    sets = open_evaluation_sets(
        settings, tokenizer, seed=0, sequence_length=16, max_samples=1
    ).values()
    path = texts / "words.jsonl"
    of_words = f"data.validation.sample_by=paragraph is not used: no file of {path} is plain text"
    of_fox = f"data.evaluation_sets.fox.column=story is not used: {texts / 'fox.txt'} is plain"
    notes = [each.notes for each in sets]
    assert [len(each) for each in notes] == [1, 1, 0, 0]
    assert notes[0] == (of_words,)
    assert notes[1][0].startswith(of_fox)
    notes = []
    assert list(iter_evaluation_documents(settings_of(words), 0, "validation", notes.append))
    assert notes == [of_words]


def settings_of(text):
    return DataConfig(documents=40, validation=text)


@pytest.mark.parametrize("setting", ["sample_by=line", "delimiter=tab"])
def test_a_dataset_has_no_settings_of_files(setting):
    key = f"data.validation.{setting}"
    with pytest.raises(UserError, match=f"^{key.replace('.', '[.]')}: only a file"):
        load_config("data.validation.name=a/b", key)


@pytest.mark.slow
def test_data_of_ones_own_validate_on_a_text(texts, tmp_path, monkeypatch):
    rows = "import torch\ndef rows():\n    while True:\n        yield torch.ones(4, 33, dtype=torch.int64)\n"
    (tmp_path / "package_of_rows.py").write_text(rows)
    monkeypatch.syspath_prepend(tmp_path)
    settings = [each for each in overrides(texts) if not each.startswith("~phases.moe")]
    config = load_config(
        *(each for each in TINY if not each.startswith(("data.", "growth."))),
        "data._target_=package_of_rows.rows",
        *settings,
        "logger=none",
        f"run_dir='{tmp_path}/run'",
    )
    run = run_plan(config).run_dir
    model = load_model(run / "checkpoints" / "moe_model_final")[0].eval()
    phase = json.loads((run / "summary.json").read_text())["phases"][-1]
    fox, words = (score(model, each) for each in (FOX.strip().split("\n\n"), WORDS))
    assert (phase["val_loss"], phase["val_bits_per_byte"]) == pytest.approx(fox, abs=1e-5)
    assert tuple(phase["evaluation"]["words"].values()) == pytest.approx(words, abs=1e-5)


def test_a_callback_may_monitor_a_set(texts, tmp_path):
    monitor = "callbacks.extra.stop._target_=lightning.pytorch.callbacks.EarlyStopping"
    config = tiny_config(
        tmp_path, *overrides(texts), monitor, "callbacks.extra.stop.monitor=val/words/loss"
    )
    callbacks = build_extra_callbacks(config)
    check_callbacks(callbacks, config, "cpu")
    callbacks["stop"].monitor = "val/fax/loss"
    with pytest.raises(UserError, match=r"val/fax/loss is not logged.*did you mean val/fox/loss"):
        check_callbacks(callbacks, config, "cpu")


def test_growlm_evaluate_scores_the_validation_text(texts):
    validation = EvaluationTextConfig(path=str(texts / "words.jsonl"))
    settings = DataConfig(documents=40, validation=validation)
    assert list(iter_evaluation_documents(settings, 0, "validation")) == WORDS
    assert len(list(iter_evaluation_documents(settings, 0, "all"))) == 40
    with pytest.raises(UserError, match=r"^data\.evaluation_sets=words: only training reads these"):
        iter_evaluation_documents(DataConfig(evaluation_sets={"words": validation}), 0, "all")


def test_conditions_on_the_command_line():
    given = ["data=text", "data.path=a.jsonl", "data.validation.path=b.jsonl"]
    for condition in ("data.validation.filter={lang: en}", "data.validation.filter.lang=en"):
        assert load_config(*given, condition).data.validation.filter == {"lang": "en"}
    assert not load_config("data.validation.filter={}").data.validation.is_given


def test_a_set_that_a_run_does_not_have_or_that_is_no_text(run_dir, texts):
    reason = (
        r"^data\.evaluation_sets\.new\.path=a: the run began without the evaluation set new \(it"
    )
    with pytest.raises(UserError, match=reason):
        load_config(f"resume={run_dir}", "data.evaluation_sets.new.path=a")
    reason = (
        r"^data\.evaluation_sets\.w: must be settings of a text, data\.evaluation_sets\.w\.path="
    )
    with pytest.raises(UserError, match=reason):
        load_config("data.evaluation_sets.w=a.txt")
    scored = ["checkpoint=c", "data=text", "data.path=a", "data.evaluation_sets.w.path=b"]
    with pytest.raises(UserError, match=reason):
        load_command_config("evaluate", EvaluateCommand, scored)


def test_what_a_text_takes_from_the_training_data():
    data = DataConfig(
        source="huggingface", name="a/b", config="en", column="story", filter={"lang": "en"}
    )
    data.max_characters = 100
    split = EvaluationTextConfig(split="test").resolve(data, "data.validation")
    assert (split.name, split.config, split.filter) == ("a/b", "en", {"lang": "en"})
    file = EvaluationTextConfig(path="val.tsv", delimiter="|").resolve(data, "data.validation")
    assert (file.source, file.filter, file.delimiter) == ("text", {}, "|")
    other = EvaluationTextConfig(name="c/d", filter={"x": 1}).resolve(data, "data.validation")
    assert (other.config, other.split, other.filter) == (None, "train", {"x": 1})
    assert {each.column for each in (split, file, other)} == {"story"}
    assert {each.max_characters for each in (split, file, other)} == {100}
