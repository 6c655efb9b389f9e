"""Opening files: every wrapper is found, nothing in a file runs, and broken files are named."""

from __future__ import annotations

import argparse
import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from edgemae.model.import_teacher import load_teacher
from edgemae.model.weight_files import CONTAINERS, read_weights
from edgemae.spec.errors import CheckpointError, InputError

STATE = {"a.weight": torch.ones(2), "b": torch.zeros(3)}


def prefixed(prefix: str) -> dict:
    return {prefix + k: v for k, v in STATE.items()}


@pytest.mark.parametrize(
    ("content", "ignored"),
    [
        (STATE, ()),
        *[({name: STATE}, ()) for name in CONTAINERS],
        ({"model": STATE, "optimizer": {"lr": 1}, "epoch": 9, "scaler": {}}, ("optimizer", "epoch", "scaler")),
        ({"state_dict": prefixed("module."), "model_ema": {}}, ("model_ema",)),
        ({"model": prefixed("module.model.")}, ()),
        (prefixed("model._orig_mod."), ()),
        ({"model": STATE | {"version": 3}}, ("model.version",)),
        (STATE | {"epoch": 3}, ("epoch",)),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_every_wrapper_is_opened_and_what_is_left_is_named(
    tmp_path, content: dict, ignored: tuple, zipped: bool
) -> None:
    path = tmp_path / "any.name"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    found = read_weights(path)
    assert found.tensors.keys() == STATE.keys()
    assert all(torch.equal(found.tensors[k], STATE[k]) for k in STATE)
    assert found.ignored == ignored


def test_options_of_the_training_are_read_from_a_namespace(tmp_path) -> None:
    args = argparse.Namespace(model="mae_vit_base_patch16", norm_pix_loss=True, lr=None, output_dir="./x")
    torch.save({"model": STATE, "args": args}, tmp_path / "a")
    assert read_weights(tmp_path / "a").args == vars(args)
    torch.save({"state_dict": STATE, "args": {"lr": 1}, "arch": "vit_base_patch16_224"}, tmp_path / "b")
    assert read_weights(tmp_path / "b").args == {"lr": 1, "model": "vit_base_patch16_224"}


def test_only_a_prefix_that_all_keys_share_is_dropped(tmp_path) -> None:
    torch.save({"model.a": torch.ones(1), "head": torch.ones(1)}, tmp_path / "a")
    assert read_weights(tmp_path / "a").tensors.keys() == {"model.a", "head"}


class Touch:
    """An object whose unpickling writes a file: what a hostile checkpoint would do."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("zipped", [True, False])
def test_no_code_runs(tmp_path, zipped: bool) -> None:
    evil = tmp_path / "evil.pth"
    torch.save({"model": STATE, "args": Touch(tmp_path / "ran")}, evil, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="Python objects besides weights") as caught:
        load_teacher(evil)
    assert not (tmp_path / "ran").exists()
    assert "weights_only" not in str(caught.value)  # the library's advice to switch the protection off is not passed on
    torch.load(evil, weights_only=False)
    assert (tmp_path / "ran").exists()  # it would have


def test_whole_modules_are_refused(tmp_path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    with pytest.raises(CheckpointError, match=r"\(torch\.nn\.modules\.linear\.Linear\): a whole pickled module"):
        load_teacher(tmp_path / "module.pt")
    torch.save({"model": nn.Linear(2, 2)}, tmp_path / "inside.pt")
    with pytest.raises(CheckpointError, match="whole pickled module"):
        load_teacher(tmp_path / "inside.pt")


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_torchscript_is_refused(tmp_path) -> None:
    torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)).save(str(tmp_path / "script.pt"))
    with pytest.raises(CheckpointError, match="TorchScript"):
        load_teacher(tmp_path / "script.pt")


def garbled() -> dict[str, bytes]:
    import io

    zipped, old = io.BytesIO(), io.BytesIO()
    torch.save(STATE, zipped)
    torch.save(STATE, old, _use_new_zipfile_serialization=False)
    return {
        "empty": b"",
        "one byte": b"\x80",
        "text": b"not a model at all\n" * 9,
        "image": b"\xff\xd8\xff\xe0" + bytes(60),
        "pointer": b"version https://git-lfs.github.com/spec/v1\n",
        "half a zip": zipped.getvalue()[: len(zipped.getvalue()) // 2],
        "half an old file": old.getvalue()[: len(old.getvalue()) // 2],
        "a pickle": pickle.dumps([1, 2]),
        "safetensors cut in its header": (500).to_bytes(8, "little") + b'{"a',
        "not a dict": _saved([torch.ones(1)]),
        "no tensors": _saved({"epoch": 1, "model": {}}),
    }


def _saved(content: object) -> bytes:
    import io

    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", sorted(garbled()))
def test_garbled_files(tmp_path, kind: str) -> None:
    path = tmp_path / "file.pth"
    path.write_bytes(garbled()[kind])
    with pytest.raises(CheckpointError) as caught:
        load_teacher(path)
    assert str(path) in caught.value.what
    assert len(str(caught.value)) < 500
    assert caught.value.exit_code == 2


def test_missing_files_and_folders_that_are_no_model(tmp_path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        load_teacher(tmp_path / "none.pth")
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        load_teacher(tmp_path)
    torch.save(STATE, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"x\.pth"):
        load_teacher(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="but no weights"):
        load_teacher(tmp_path)
    for text in ("{", "[]"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"config\.json"):
            load_teacher(tmp_path)


@pytest.mark.parametrize(
    "index",
    [
        {},
        {"weight_map": []},
        {"weight_map": {"a": "gone.safetensors"}},
        {"weight_map": {"a": "../outside.safetensors"}},
    ],
)
def test_shards_must_lie_beside_their_index(tmp_path, index: dict) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "outside.safetensors")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="not in the folder"):
        load_teacher(folder)


def test_safetensors_win_over_bin_and_the_model_card_is_read(tmp_path) -> None:
    (tmp_path / "config.json").write_text("{}")
    torch.save({"wrong": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    save_file(STATE, tmp_path / "model.safetensors")
    (tmp_path / "README.md").write_text("---\ntags:\n- x\nlicense: mit\n---\n# Model\nlicense: none\n")
    found = read_weights(tmp_path)
    assert found.tensors.keys() == STATE.keys()
    assert found.card_licence == "mit"
    (tmp_path / "README.md").write_text("# no front matter\nlicense: mit\n")
    assert read_weights(tmp_path).card_licence == ""
