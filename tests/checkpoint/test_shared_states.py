"""States whose tensors are divided among processes: written by any number, read by any number, or not at all.

What the processes themselves look at is in `sharing.py`.
"""

import json
import os
import shutil
import struct
from pathlib import Path

import pytest
import torch

from growlm.checkpoint import load_model, read_optimizer_states, save_model
from growlm.checkpoint.offline_growth import grow_checkpoint
from growlm.checkpoint.resume_state import ResumeState
from growlm.checkpoint.safetensors_io import TensorFiles
from growlm.checkpoint.shard_format import SHARDING_INFO_KEY
from growlm.growth import Deepen, grow
from growlm.huggingface.pretrained import open_pretrained
from growlm.runtime.errors import UserError
from growlm.storage.integrity import hash_file, write_manifest
from tests.checkpoint.sharing import assert_same_tensors, random_tensors, trained_model
from tests.distributed.on_devices import outcome, start
from tests.model.tiny_models import random_tokens

SHARING = Path(__file__).with_name("sharing.py")
FILES = (
    "config.json",
    "manifest.json",
    "model-part-00001-of-00002.safetensors",
    "model-part-00002-of-00002.safetensors",
    "optimizer-part-00001-of-00002.safetensors",
    "optimizer-part-00002-of-00002.safetensors",
    "progress.safetensors",
    "state.json",
    "callbacks.pt",
)
WRITE = ("write_random", "write_shared_state", "write_plain_state", "save_shared_model")
READ = ("read_random", "read_states", "read_pretrained")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """What two processes wrote, and read again."""
    folder = tmp_path_factory.mktemp("written")
    share(2, folder, *WRITE, *READ)
    return folder


@pytest.fixture
def state(written, tmp_path):
    return shutil.copytree(written / "shared-2" / "000000003", tmp_path / "state")


@pytest.mark.slow
def test_any_number_reads_what_any_number_wrote(written, tmp_path):
    folder = shutil.copytree(written, tmp_path / "all")
    share(3, folder, "write_random", "write_shared_state", *READ)
    share(2, folder, *READ)
    share(1, folder, *READ)
    for seed in range(8):
        assert_same_tensors(read_all(folder / f"random-3-{seed}"), random_tensors(seed))


@pytest.mark.parametrize("seed", range(8))
def test_a_process_alone_reads_it_all(seed, written):
    folder = written / f"random-2-{seed}"
    assert_same_tensors(read_all(folder), random_tensors(seed))
    files = TensorFiles(folder, "model")
    for name, tensor in random_tensors(seed).items():
        assert files.info(name).shape == tensor.shape
        for first in range(len(tensor) if tensor.ndim else 0):
            for stop in range(first, len(tensor) + 1):
                assert torch.equal(files.read_rows(name, first, stop), tensor[first:stop])


@pytest.mark.parametrize("seed", range(8))
def test_torchs_own_reader_understands_the_parts(seed, written):
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint import HuggingFaceStorageReader

    expected = random_tensors(seed)
    expected.pop("t11.x")  # it cannot read a tensor without entries
    found = {name: torch.full_like(tensor, 255) for name, tensor in expected.items()}
    reader = HuggingFaceStorageReader(str(written / f"random-2-{seed}"))
    with pytest.warns(UserWarning, match="torch.distributed is disabled"):
        checkpoint.load(found, storage_reader=reader, no_dist=True)
    assert_same_tensors(found, expected)


def test_no_rows_are_written_twice(written):
    for folder in written.glob("random-2-*"):
        expected = random_tensors(int(folder.name[-1]))
        files = sorted(folder.glob("*.safetensors"))
        assert len(files) == 2
        assert sum(map(bytes_of_tensors, files)) == sum(t.nbytes for t in expected.values())


def test_not_a_byte_of_it_is_a_pickle_but_what_callbacks_keep(state):
    assert {path.name for path in state.iterdir()} == set(FILES)
    for path in state.glob("*.safetensors"):
        json.loads(header_of(path)[0])


def test_plain_tensors_on_several_processes_are_written_as_one_writes_them(written, tmp_path):
    model, states = trained_model()
    save_model(model, tmp_path / "model", {}, states)
    plain = written / "plain-2" / "000000003"
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (plain / name).read_bytes() == (tmp_path / "model" / name).read_bytes()


def test_an_artefact_of_a_shared_model_is_what_one_process_writes(written, tmp_path):
    model, states = trained_model()
    files = [written / "tokens.json"]
    save_model(model, tmp_path / "model", {"phase": "moe"}, states, files)
    assert files_of(written / "artefact") == files_of(tmp_path / "model")


def test_commands_read_a_state_in_parts_as_a_checkpoint(state, tmp_path):
    model, states = trained_model()
    read, _ = load_model(state)
    tokens = random_tokens(model.config)
    assert torch.equal(read(tokens), model(tokens))
    for name, kept in read_optimizer_states(state).items():
        assert_same_tensors(kept, states[name])
    grow_checkpoint(state, tmp_path / "grown", [Deepen(extra_layers=1, init="identity")])
    grown = grow(model, [Deepen(extra_layers=1, init="identity")], seed=0)
    assert_same_tensors(load_model(tmp_path / "grown")[0].state_dict(), grown.state_dict())
    pretrained = open_pretrained(state, "model.path")
    assert_same_tensors(pretrained.load_model().state_dict(), model.state_dict())
    assert pretrained.read_optimizer_states(use_8bit=False).keys() == states.keys()


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x01
    path.write_bytes(data)


def truncate(path):
    os.truncate(path, path.stat().st_size - 1)


DAMAGES = [
    (name, damage)
    for name in FILES
    for damage in (flip, truncate, os.remove)
    if (name, damage) != ("callbacks.pt", os.remove)  # a state may do without it
]


@pytest.mark.parametrize(("name", "damage"), DAMAGES)
def test_a_damaged_file_of_any_process_is_named(name, damage, state):
    damage(state / name)
    with pytest.raises(UserError) as refused:
        ResumeState.open(state)
    assert (str(state) if damage is os.remove else str(state / name)) in str(refused.value)
    assert name in str(refused.value)


@pytest.mark.parametrize("name", FILES[2:6])
def test_a_pickle_in_place_of_a_part(name, state):
    torch.save({"a": 1}, state / name)
    resealed(state)
    with pytest.raises(UserError, match=name):
        ResumeState.open(state)


NAME = "blocks.0.feed_forward.experts.down"  # three experts: two rows in the first part, one in the second


@pytest.mark.parametrize(
    ("offsets", "words"),
    [
        ([3, 0, 0], "have a gap or overlap at row"),
        ([1, 0, 0], "have a gap or overlap at row"),
        ([0, 0, 0], "have a gap or overlap at row"),
        ([2**62, 0, 0], "have a gap or overlap at row"),
        ([2, 1, 0], "has an invalid offset"),
        ([-2, 0, 0], "has an invalid offset"),
        ([2, 0], "has an invalid offset"),
        ([2.0, 0, 0], "has an invalid offset"),
        ([True, 0, 0], "has an invalid offset"),
        ("2", "has an invalid offset"),
        (None, "has an invalid offset"),
    ],
)
def test_rows_that_do_not_fit(offsets, words, state):
    def move(notes):
        places = json.loads(notes[SHARDING_INFO_KEY])
        places[NAME] = {"saved_offsets": offsets}
        notes[SHARDING_INFO_KEY] = json.dumps(places)

    rewritten(state / FILES[3], move)
    with pytest.raises(UserError, match=words):
        ResumeState.open(state)


@pytest.mark.parametrize("text", ["", "7", "[]", "{}", '{"a": 7}', "[" * 100_000, None])
def test_a_header_that_does_not_say_which_rows(text, state):
    def spoil(notes):
        notes.pop(SHARDING_INFO_KEY)
        notes.update({} if text is None else {SHARDING_INFO_KEY: text})

    rewritten(state / FILES[3], spoil)
    with pytest.raises(UserError, match=f"{FILES[3]}: (has no row offsets|has an invalid offset)"):
        ResumeState.open(state)


@pytest.mark.parametrize("size", ["00000", "00003", "99999"])
def test_parts_of_different_writings(size, state):
    shutil.copyfile(state / FILES[2], state / f"model-part-00001-of-{size}.safetensors")
    with pytest.raises(UserError, match="model-part-"):
        ResumeState.open(state)


@pytest.mark.parametrize("step", [pytest.param(WRITE[1], marks=pytest.mark.slow), *WRITE[3:]])
@pytest.mark.parametrize("full", ["limited", pytest.param("limited_first", marks=pytest.mark.slow)])
def test_a_full_disk_of_one_process_stops_all_and_leaves_nothing(full, step, tmp_path):
    (tmp_path / "tokens.json").write_text("{}")
    ended = outcome(start([str(SHARING), str(tmp_path), full, step]))
    writes_alone = step == "save_shared_model" and full == "limited"
    assert [code for code, *_ in ended] == ([0, 0] if writes_alone else [1, 1])
    told = "".join(errors for *_, errors in ended)
    assert "Traceback" not in told
    if not writes_alone:
        assert told.count("stopped: cannot write") == 1
        assert "File too large" in told
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == [
            tmp_path / "tokens.json"
        ]
        assert not list(tmp_path.rglob(".*"))


def share(processes, folder, *steps):
    """Have so many processes do something; all must end well."""
    for code, _, errors in outcome(start([str(SHARING), str(folder), *steps], processes)):
        assert code == 0, errors


@pytest.mark.slow
def test_no_process_ever_has_more_than_its_share_and_about_one_tensor(tmp_path):
    for code, told, errors in outcome(start([str(SHARING), str(tmp_path), "measure"])):
        assert code == 0, errors
        found = json.loads(told.splitlines()[0])
        print({name: f"{size / 1e6:.0f} MB" for name, size in found.items()})
        assert found["share"] > 6 * found["tensor"]
        assert found["state"] < found["tensor"]
        assert found["artefact"] < 2.5 * found["tensor"]
        assert found["reading"] < found["share"] + found["tensor"]


def read_all(folder):
    files = TensorFiles(folder, "model")
    return {name: files.read(name) for name in files.names}


def files_of(folder):
    return {path.name: hash_file(path) for path in folder.iterdir()}


def header_of(path):
    """Its JSON, and the bytes behind it."""
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    return data[8 : 8 + size], data[8 + size :]


def bytes_of_tensors(path):
    return len(header_of(path)[1])


def rewritten(path, change):
    """Change what a file's header says beside its tensors, in a folder whose manifest then agrees."""
    header, data = header_of(path)
    record = json.loads(header)
    change(record["__metadata__"])
    text = json.dumps(record).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    resealed(path.parent)


def resealed(folder):
    (folder / "manifest.json").unlink()
    write_manifest(folder, {})
