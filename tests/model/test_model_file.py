"""edgemae's own model file: whole or not at all, and clear about what is wrong."""

from __future__ import annotations

import json
import os
import resource

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from edgemae.model.model_file import HEADER_KEY, load_exactly, read_model, write_model
from edgemae.spec.errors import CheckpointError, StorageError

HEADER = {"kind": "test", "format": 1, "text": "größer ≥ 1"}


@pytest.fixture
def tensors(generator) -> dict[str, torch.Tensor]:
    return {"a": torch.randn(4, 5, generator=generator), "b.t": torch.randn(5, 4, generator=generator).T}


def test_round_trip(tmp_path, tensors) -> None:
    write_model(tmp_path / "new" / "m.safetensors", tensors, HEADER)
    back, header = read_model(tmp_path / "new" / "m.safetensors")
    assert header == HEADER
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[k], tensors[k]) for k in tensors)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["m.safetensors"]


def test_the_same_model_is_the_same_bytes(tmp_path, tensors) -> None:
    """safetensors alone writes its metadata in a random order: 20 files would be alike once in 500,000 runs."""
    for i in range(20):
        write_model(tmp_path / f"{i}", tensors | {"größer": torch.zeros(1)}, HEADER)
    first = (tmp_path / "0").read_bytes()
    assert all((tmp_path / f"{i}").read_bytes() == first for i in range(20))
    assert int.from_bytes(first[:8], "little") % 8 == 0


def test_half_is_half_the_size_and_reads_back_as_float(tmp_path, tensors) -> None:
    write_model(tmp_path / "full", {"a": torch.zeros(100, 100)}, HEADER)
    write_model(tmp_path / "half", {"a": torch.zeros(100, 100)}, HEADER, half=True)
    assert (tmp_path / "half").stat().st_size < 0.55 * (tmp_path / "full").stat().st_size
    write_model(tmp_path / "m", tensors, HEADER, half=True)
    back, _ = read_model(tmp_path / "m")
    assert {v.dtype for v in back.values()} == {torch.float32}
    assert all(torch.equal(back[k], tensors[k].half().float()) for k in tensors)


def test_another_kind_of_safetensors_is_none(tmp_path) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "m.safetensors", metadata={"format": "pt"})
    assert read_model(tmp_path / "m.safetensors") is None


@pytest.mark.parametrize("left", [0, 5, 100, -1])
def test_a_truncated_file_is_refused(tmp_path, tensors, left: int) -> None:
    path = tmp_path / "m.safetensors"
    write_model(path, tensors, HEADER)
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(CheckpointError, match=r"cannot be read as safetensors"):
        read_model(path)


@pytest.mark.parametrize("change", [1, 64])  # of the lowest bit of a weight, and of one in its exponent
def test_a_flipped_bit_is_refused(tmp_path, tensors, change: int) -> None:
    path = tmp_path / "m.safetensors"
    write_model(path, tensors | {"c": torch.ones(3, dtype=torch.bfloat16), "d": torch.tensor(1.0)}, HEADER)
    assert read_model(path) is not None
    data = bytearray(path.read_bytes())
    at = data.index(tensors["a"].numpy().tobytes()) + 3
    data[at] ^= change
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="is damaged: its contents do not match the sha256"):
        read_model(path)


def test_a_file_without_a_digest_is_read(tmp_path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "m", metadata={HEADER_KEY: json.dumps(HEADER)})
    back, _ = read_model(tmp_path / "m")
    assert torch.equal(back["a"], torch.ones(2))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ("{not json", "damaged header"),
        ("[1]", "damaged header"),
        ("{}", "damaged header"),
        ('{"format": 2}', "format 2"),
    ],
)
def test_a_damaged_header_is_refused(tmp_path, raw: str, message: str) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "m", metadata={HEADER_KEY: raw})
    with pytest.raises(CheckpointError, match=message):
        read_model(tmp_path / "m")


def test_a_missing_file_is_refused(tmp_path) -> None:
    with pytest.raises(CheckpointError):
        read_model(tmp_path / "none.safetensors")


def test_a_file_size_limit_of_the_system_is_a_storage_error(tmp_path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(StorageError, match="File too large"):
            write_model(tmp_path / "m", {"a": torch.zeros(5000)}, HEADER)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == []


def test_load_exactly_names_everything_that_differs() -> None:
    layer = nn.Linear(3, 2)
    with pytest.raises(CheckpointError) as caught:
        load_exactly(layer, {"weight": torch.zeros(3, 3), "extra": torch.zeros(1)}, "the layer")
    for part in ("bias is missing", "extra is not expected", "weight is (3, 3), not (2, 3)"):
        assert part in str(caught.value)
    for bad in (float("nan"), float("inf")):
        with pytest.raises(CheckpointError, match="bias has NaN or infinite"):
            load_exactly(layer, {"weight": torch.zeros(2, 3), "bias": torch.tensor([0, bad])}, "the layer")
    with pytest.raises(CheckpointError, match=r"weight is stored as torch\.int8"):
        load_exactly(layer, {"weight": torch.zeros(2, 3, dtype=torch.int8), "bias": torch.zeros(2)}, "the layer")


def test_load_exactly_shares_no_memory_with_its_source() -> None:
    layer, source = nn.Linear(3, 2), {"weight": torch.ones(2, 3), "bias": torch.ones(2)}
    load_exactly(layer, source, "the layer")
    layer.weight.data += 1
    assert torch.equal(source["weight"], torch.ones(2, 3))


def test_header_is_plain_json(tmp_path, tensors) -> None:
    write_model(tmp_path / "m", tensors, HEADER)
    data = (tmp_path / "m").read_bytes()
    head = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert json.loads(head["__metadata__"][HEADER_KEY]) == HEADER
