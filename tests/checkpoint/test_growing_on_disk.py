"""Growing on disk is growing in memory, to the bit, moments included; and whole or not at all."""

import json
import resource
from contextlib import contextmanager

import pytest
import torch

from growlm.checkpoint import checkpoint_folder as artefact
from growlm.checkpoint import load_model, read_optimizer_states, save_model
from growlm.checkpoint import safetensors_io as tensor_files
from growlm.checkpoint.offline_growth import grow_checkpoint
from growlm.growth import (
    Deepen,
    MultiplyExperts,
    Upcycle,
    Widen,
    build_growth_map,
    grow,
    grow_optimizer_state,
    operators_from_dicts,
)
from growlm.optim.optimizer_states import get_optimizer_states
from growlm.runtime.errors import DiskError, UserError
from tests.model.tiny_models import EXPERTS, assert_same_state, build, tiny_config
from tests.training.grown_training import OPTIMIZERS, Training

SEQUENCES = {
    "widen and deepen": [
        Widen(scale_factor=1.5, new_channels="copies"),
        Deepen(extra_layers=3, placement="interleave", init="identity"),
    ],
    "fresh": [Widen(scale_factor=2, new_channels="fresh"), Deepen(init="fresh")],
    "experts": [MultiplyExperts(2), Widen(scale_factor=2, split="1:2")],
    "copies": [Deepen(extra_layers=2, placement="stack", init="copy")],
}


@pytest.fixture(params=[torch.float32, torch.bfloat16, torch.float64])
def model(request):
    return build(tiny_config(**EXPERTS, router_bias_step=0.01), dtype=request.param)


@pytest.mark.parametrize("operators", SEQUENCES.values(), ids=SEQUENCES)
def test_as_in_memory(tmp_path, model, operators):
    save_model(model, tmp_path / "small", {"phase": "moe"})
    progress = []

    grow_checkpoint(
        tmp_path / "small",
        tmp_path / "large",
        operators,
        seed=3,
        boundary_index=2,
        progress=lambda done, total: progress.append((done, total)),
    )

    large, record = load_model(tmp_path / "large")
    expected = grow(model, operators, seed=3, boundary_index=2)
    assert_same_state(large.state_dict(), expected.state_dict())
    assert large.config == expected.config
    assert record["phase"] == "moe"
    assert operators_from_dicts(record["grown_from"]["operators"]) == operators
    sizes = sum(t.nbytes for t in expected.state_dict().values())
    assert progress[-1] == (sizes, sizes)
    assert progress == sorted(progress)


def test_upcycled_on_disk(tmp_path):
    dense = build(tiny_config(), dtype=torch.float32)
    save_model(dense, tmp_path / "dense", {})
    operators = [Upcycle(4, granularity=2, drop_fraction=0.25)]
    grow_checkpoint(tmp_path / "dense", tmp_path / "moe", operators)
    assert_same_state(
        load_model(tmp_path / "moe")[0].state_dict(), grow(dense, operators).state_dict()
    )


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_moments_as_in_memory(tmp_path, name):
    training = Training(build(tiny_config(), dtype=torch.float32), OPTIMIZERS[name]).steps(2)
    states = get_optimizer_states(training.model, [training.optimizer])
    save_model(training.model, tmp_path / "small", {}, states)
    operators = [
        Upcycle(4),
        Widen(scale_factor=1.5, new_channels="copies"),
        Deepen(init="identity"),
        MultiplyExperts(2),
    ]

    grow_checkpoint(tmp_path / "small", tmp_path / "large", operators)
    grow_checkpoint(tmp_path / "small", tmp_path / "bare", operators, optimizer_state="reset")

    growth_map = build_growth_map(training.model.config, operators)
    expected = grow_optimizer_state(growth_map, states, "carry")
    found = read_optimizer_states(tmp_path / "large")
    assert found.keys() == expected.keys()
    for parameter, state in expected.items():
        assert found[parameter].keys() == state.keys()
        assert all(torch.equal(found[parameter][entry], state[entry]) for entry in state)
    assert read_optimizer_states(tmp_path / "bare") == {}


def test_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(tensor_files, "MAX_SHARD_BYTES", 10_000)
    small = build(tiny_config(), dtype=torch.float32)
    save_model(small, tmp_path / "small", {})
    assert len(list((tmp_path / "small").glob("model-*-of-*.safetensors"))) > 1
    operators = [Widen(scale_factor=2, new_channels="copies")]
    grow_checkpoint(tmp_path / "small", tmp_path / "large", operators)
    index = json.loads((tmp_path / "large" / "model.safetensors.index.json").read_text())
    grown = grow(small, operators).state_dict()
    assert index["weight_map"].keys() == grown.keys()
    assert_same_state(load_model(tmp_path / "large")[0].state_dict(), grown)


def test_transformers_own_reader_reads_the_files(tmp_path):
    from safetensors.torch import load_file

    model = build(tiny_config(), dtype=torch.bfloat16)
    save_model(model, tmp_path / "model", {})
    assert_same_state(load_file(tmp_path / "model" / "model.safetensors"), model.state_dict())


def test_nothing_is_left_of_a_growth_that_fails(tmp_path):
    save_model(build(tiny_config()), tmp_path / "small", {})
    with (
        largest_file(20_000),
        pytest.raises(DiskError, match=r"small|large.*bytes were still to be written") as failed,
    ):
        grow_checkpoint(
            tmp_path / "small", tmp_path / "large", [Widen(scale_factor=2, new_channels="copies")]
        )
    assert failed.value.bytes_missing > 20_000
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


def test_a_target_that_exists_is_left_alone(tmp_path):
    save_model(build(tiny_config()), tmp_path / "small", {})
    (tmp_path / "large").mkdir()
    with pytest.raises(UserError, match="already exists"):
        grow_checkpoint(
            tmp_path / "small", tmp_path / "large", [Widen(scale_factor=2, new_channels="copies")]
        )
    assert not list((tmp_path / "large").iterdir())


def test_a_full_disk_is_known_beforehand(tmp_path, monkeypatch):
    save_model(build(tiny_config()), tmp_path / "small", {})
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("growlm.checkpoint.offline_growth.shutil.disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"the disk has .* free"):
        grow_checkpoint(
            tmp_path / "small", tmp_path / "large", [Widen(scale_factor=2, new_channels="copies")]
        )
    assert not (tmp_path / "large").exists()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "no readable config.json"),
        (
            lambda folder: (folder / "config.json").write_text("{"),
            r"config\.json: is not valid JSON",
        ),
        (lambda folder: (folder / "config.json").write_text('{"format": "x"}'), "not in format"),
        (lambda folder: rewrite(folder, d_model=17), "config says"),
        (lambda folder: rewrite(folder, n_layers=3), "blocks.2.* is missing from the weights"),
        (lambda folder: rewrite(folder, n_layers=1), "unknown to the config"),
        (lambda folder: rewrite(folder, top_k=1, num_experts=4), "does not describe a valid model"),
        (lambda folder: rewrite(folder, colour="red"), "does not describe a valid model"),
        (lambda folder: (folder / "model.safetensors").unlink(), "neither model.safetensors"),
        (lambda folder: cut_in_half(folder / "model.safetensors"), "cannot be read"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\0" * 100), "cannot be read"),
    ],
)
@pytest.mark.parametrize("has_manifest", [False, True])
def test_a_damaged_source_is_named(tmp_path, spoil, message, has_manifest):
    folder = tmp_path / "small"
    save_model(build(tiny_config()), folder, {})
    if has_manifest:
        message = f"{message}|is damaged"
    else:
        (folder / "manifest.json").unlink()
    spoil(folder)
    for read in (
        lambda: grow_checkpoint(folder, tmp_path / "large", [Deepen(init="identity")]),
        lambda: load_model(folder),
    ):
        with pytest.raises(UserError, match=message):
            read()
    assert not (tmp_path / "large").exists()


def rewrite(folder, **changes):
    path = folder / artefact.CONFIG_NAME
    record = json.loads(path.read_text())
    record["model"] |= changes
    path.write_text(json.dumps(record))


@contextmanager
def largest_file(size):
    """No file can grow beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def cut_in_half(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def saved_with_optimizer(folder, dtype=torch.float32):
    training = Training(build(tiny_config(), dtype=dtype)).steps(1)
    states = get_optimizer_states(training.model, [training.optimizer])
    save_model(training.model, folder, {}, states)
    return training.model, states


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_moments_keep_the_precision_they_have(tmp_path, dtype):
    """The step count is single precision whatever the moments are."""
    _, states = saved_with_optimizer(tmp_path / "small", dtype)
    grow_checkpoint(
        tmp_path / "small", tmp_path / "large", [Widen(scale_factor=2, new_channels="copies")]
    )
    found = read_optimizer_states(tmp_path / "large")["embedding.weight"]
    assert found["exp_avg"].dtype == states["embedding.weight"]["exp_avg"].dtype == dtype
    assert found["step"].dtype == torch.float32


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda s: s["embedding.weight"].update(own_mean=torch.ones(29, 16)),
            "of an unknown kind",
        ),
        (
            lambda s: s["embedding.weight"].update(exp_avg=torch.ones(3)),
            r"has shape \(3,\); must be",
        ),
        (lambda s: s.update(other={"exp_avg": torch.ones(3)}), "matches no parameter"),
    ],
)
def test_an_optimizer_state_that_does_not_fit_is_named(tmp_path, spoil, message):
    model, states = saved_with_optimizer(tmp_path / "first")
    spoil(states)
    save_model(model, tmp_path / "small", {}, states)
    with pytest.raises(UserError, match=message):
        grow_checkpoint(
            tmp_path / "small", tmp_path / "large", [Widen(scale_factor=2, new_channels="copies")]
        )
    assert not (tmp_path / "large").exists()


def test_a_target_inside_a_file_is_refused(tmp_path):
    save_model(build(tiny_config()), tmp_path / "small", {})
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="not a writable folder"):
        grow_checkpoint(
            tmp_path / "small",
            tmp_path / "file" / "x",
            [Widen(scale_factor=2, new_channels="copies")],
        )


def test_parents_that_were_made_go_too(tmp_path, monkeypatch):
    save_model(build(tiny_config()), tmp_path / "small", {})
    monkeypatch.setattr(tensor_files, "_bytes_of", lambda tensor: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        grow_checkpoint(
            tmp_path / "small",
            tmp_path / "a" / "b" / "c",
            [Widen(scale_factor=2, new_channels="copies")],
        )
    assert [path.name for path in tmp_path.iterdir()] == ["small"]
