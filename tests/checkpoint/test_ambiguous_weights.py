"""A folder with weights twice is refused: which were meant cannot be known."""

import json

import pytest
import torch
from safetensors.torch import save_file

from growlm.checkpoint.safetensors_io import TensorFiles
from growlm.runtime.errors import UserError

ONE, TWO = {"a": torch.ones(2)}, {"b": torch.ones(3)}
INDEX = "model.safetensors.index.json"


def write_index(folder, files):
    save_file(ONE, folder / files[0])
    save_file(TWO, folder / files[1])
    (folder / INDEX).write_text(json.dumps({"weight_map": dict(zip("ab", files, strict=True))}))


def test_a_single_file_beside_the_index_of_others(tmp_path):
    write_index(tmp_path, ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"])
    assert sorted(TensorFiles(tmp_path, "model", "model.path").names) == ["a", "b"]
    save_file({name: torch.zeros(2) for name in "ab"}, tmp_path / "model.safetensors")
    reason = rf"^model\.path=.*: has weights twice, in model\.safetensors and in {INDEX}, .* move"
    with pytest.raises(UserError, match=reason):
        TensorFiles(tmp_path, "model", "model.path")


def test_an_index_of_the_single_file_alone(tmp_path):
    save_file(ONE | TWO, tmp_path / "model.safetensors")
    weight_map = dict.fromkeys("ab", "model.safetensors")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    assert sorted(TensorFiles(tmp_path, "model", "model.path").names) == ["a", "b"]


@pytest.mark.parametrize("other", ["model.safetensors", INDEX])
def test_files_of_several_ranks_beside_others(other, tmp_path):
    save_file(ONE, tmp_path / "model-part-00001-of-00001.safetensors")
    if other == INDEX:
        write_index(tmp_path, ["x.safetensors", "y.safetensors"])
    else:
        save_file(ONE, tmp_path / other)
    with pytest.raises(UserError, match=rf"twice, in {other} and in model-part-00001-of-00001"):
        TensorFiles(tmp_path, "model", "model.path")
