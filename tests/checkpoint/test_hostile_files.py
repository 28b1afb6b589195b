"""Files from elsewhere cannot run code, read outside their folder or take the machine down."""

import json
import os
import pickle
import struct
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from growlm.checkpoint import load_model, read_optimizer_states, save_model
from growlm.checkpoint.offline_growth import grow_checkpoint
from growlm.checkpoint.resume_state import ResumeState, write_resume_state
from growlm.growth import Deepen
from growlm.huggingface import to_huggingface
from growlm.runtime.errors import UserError
from growlm.storage.integrity import write_manifest
from tests.model.tiny_models import build, tiny_config


class Malicious:
    """Unpickling it leaves a mark."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "model"
    save_model(build(tiny_config()), folder, {})
    (folder / "manifest.json").unlink()  # as from elsewhere
    return folder


@pytest.fixture
def state(tmp_path):
    model = build(tiny_config())
    write_resume_state(
        tmp_path / "resume" / "000000003",
        3,
        model,
        {},
        {"x": torch.ones(2)},
        {"step": 3},
        {"a": {"n": 1}},
    )
    return tmp_path / "resume" / "000000003"


def read_all(folder):
    opened = ResumeState.open(folder)
    return (
        opened.load_callbacks(),
        opened.load_model(),
        opened.read_optimizer_states(),
        opened.load_tensors(),
    )


def resealed(folder):
    """Whoever can write the files can write their checksums too."""
    (folder / "manifest.json").unlink()
    write_manifest(folder, {})


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "optimizer.safetensors"])
def test_a_pickle_in_place_of_an_artefacts_file(name, checkpoint, tmp_path):
    (checkpoint / name).write_bytes(pickle.dumps(Malicious(tmp_path / "ran")))
    read = read_optimizer_states if name.startswith("optimizer") else load_model
    with pytest.raises(UserError, match=name):
        read(checkpoint)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "name",
    ["callbacks.pt", "state.json", "progress.safetensors", "model.safetensors", "config.json"],
)
@pytest.mark.parametrize("write", [pickle.dump, torch.save])
def test_a_pickle_in_place_of_a_states_file(name, write, state, tmp_path):
    with (state / name).open("wb") as file:
        write({"a": Malicious(tmp_path / "ran")}, file)
    resealed(state)
    with pytest.raises(UserError, match=name):
        read_all(state)
    assert not (tmp_path / "ran").exists()


def test_what_callbacks_keep_comes_back(state):
    assert ResumeState.open(state).load_callbacks() == {"a": {"n": 1}}


def test_a_header_of_a_gigabyte(checkpoint):
    with (checkpoint / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", 10**9) + b"{")
        file.truncate(10**9 + 100)
    start = time.monotonic()
    with pytest.raises(UserError, match="cannot be read"):
        load_model(checkpoint)
    assert time.monotonic() - start < 1.0


def test_a_config_of_a_gigabyte(checkpoint):
    os.truncate(checkpoint / "config.json", 10**9)
    start = time.monotonic()
    with pytest.raises(UserError, match=r"config\.json"):
        load_model(checkpoint)
    assert time.monotonic() - start < 1.0


def test_json_of_great_depth(checkpoint):
    (checkpoint / "config.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"config\.json"):
        load_model(checkpoint)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("d_model", 2**17),
        ("n_layers", 4096),
        ("n_layers", 10**9),
        ("vocab_size", 2**22),
        ("max_seq_len", 2**60),
        ("d_ff", -1),
        ("d_model", "16"),
        ("d_model", 16.0),
        ("bias", "yes"),
        ("norm", {"_target_": "os.system"}),
    ],
)
def test_absurd_shapes(field, value, checkpoint):
    path = checkpoint / "config.json"
    record = json.loads(path.read_text())
    record["model"][field] = value
    path.write_text(json.dumps(record))
    start = time.monotonic()
    with pytest.raises(UserError):
        load_model(checkpoint)
    assert time.monotonic() - start < 2.0


@pytest.mark.parametrize(
    "name", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", "..", ""]
)
def test_an_index_that_leads_outside(name, checkpoint, tmp_path):
    (checkpoint / "model.safetensors").rename(tmp_path / "secret.safetensors")
    index = {"weight_map": {"embedding.weight": name}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"not a file in its folder"):
        load_model(checkpoint)


def grown(checkpoint, target):
    return grow_checkpoint(checkpoint, target, [Deepen(extra_layers=1, init="identity")])


@pytest.mark.parametrize("copied_by", [grown, to_huggingface])
def test_a_link_that_leads_outside_is_not_copied(copied_by, checkpoint, tmp_path):
    (tmp_path / "secret").write_text("private")
    (checkpoint / "chat_template.jinja").symlink_to(tmp_path / "secret")
    with pytest.raises(
        UserError, match=r"chat_template\.jinja: is reached by a link that leads out"
    ):
        copied_by(checkpoint, tmp_path / "out")
    with pytest.raises(UserError, match="a link that leads out"):
        save_model(
            load_model(checkpoint)[0],
            tmp_path / "out",
            {},
            sidecar_files=checkpoint.glob("*.jinja"),
        )
    assert {path.name for path in tmp_path.iterdir()} == {"model", "secret"}


@pytest.mark.parametrize("copied_by", [grown, to_huggingface])
def test_links_of_the_hugging_face_cache_are_followed(copied_by, checkpoint, tmp_path):
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    blob = tmp_path / "models--a--b" / "blobs" / "4567"
    blob.parent.mkdir(parents=True)
    snapshot.parent.mkdir()
    checkpoint.rename(snapshot)
    blob.write_text("a template")
    (snapshot / "chat_template.jinja").symlink_to("../../blobs/4567")
    (snapshot / "merges.txt").symlink_to("chat_template.jinja")
    copied_by(snapshot, tmp_path / "out")
    for name in ("chat_template.jinja", "merges.txt"):
        copy = tmp_path / "out" / name
        assert (copy.read_text(), copy.is_symlink()) == ("a template", False)
    (snapshot / "vocab.json").symlink_to("../other")
    (snapshot.parent / "other").write_text("private")
    with pytest.raises(UserError, match=r"vocab\.json: is reached by a link"):
        copied_by(snapshot, tmp_path / "again")


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_integers_in_place_of_weights(dtype, checkpoint):
    file = checkpoint / "model.safetensors"
    save_file({name: tensor.to(dtype) for name, tensor in load_file(file).items()}, file)
    with pytest.raises(UserError, match=f"has dtype {dtype}; weights must be floating-point"):
        load_model(checkpoint)


def test_a_target_in_a_checkpoint_is_no_key_of_ours(checkpoint, tmp_path):
    path = checkpoint / "config.json"
    record = json.loads(path.read_text())
    record["model"]["_target_"] = "os.system"
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match="_target_"):
        load_model(checkpoint)
