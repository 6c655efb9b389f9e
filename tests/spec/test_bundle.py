"""Bundle v1: one form of bytes, every bit of it checked, and a corpus of hostile bundles refused."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import resource
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgemae.spec import bundle as room
from edgemae.spec import container
from edgemae.spec.bundle import EXTENSIONS, encode_manifest, open_bundle, write_bundle
from edgemae.spec.errors import BundleCorruptError, BundleError, BundleSchemaError, InternalError, StorageError
from edgemae.spec.graph import IoContract, PixelContract, Step, TensorSpec
from edgemae.spec.manifest import SCHEMA, FileEntry, Golden, Manifest, Tolerance, Variant
from edgemae.spec.report import EngineLatency, GateVerdict
from edgemae.spec.target import Target

FILES = {
    "graph/fp32.onnx": bytes(range(200)),
    "openvino/int8.xml": b"<net/>",
    "openvino/int8.bin": b"\0\1\2\3" * 20,
    "golden/frame-00.png": b"png",
    "golden/frame-00.npy": b"npy",
    "golden/a.npy": b"",
    "README.md": b"# model\n",
}
TARGET = Target(
    name="box",
    title="a box",
    engines=("openvino", "onnxruntime"),
    precisions=("int8", "fp32"),
    arch="x86_64",
    isa="avx2_vnni",
    threads=2,
    width_multiple=16,
    memory_mib=1024,
    source="made up",
)


def manifest(**changes: Any) -> Manifest:
    tolerance = Tolerance(cosine_min=0.999, max_abs=0.5)
    facts: dict[str, Any] = {
        "name": "digits",
        "version": 3,
        "created": "2025-01-02T03:04:05Z",
        "status": "passed",
        "target": TARGET,
        "io": IoContract(
            inputs=(TensorSpec(name="pixels", dtype="float32", shape=(1, 3, 32, 32)),),
            outputs=(TensorSpec(name="logits", dtype="float32", shape=(1, 2)),),
        ),
        "pixel": PixelContract(image_px=32),
        "labels": ("null", "één"),
        "variants": (
            Variant(
                engine="openvino",
                files=("openvino/int8.xml", "openvino/int8.bin"),
                precision="int8",
                scheme="static",
                reason="1.8x float",
                golden="golden/a.npy",
                tolerance=tolerance,
            ),
            Variant(
                engine="onnxruntime",
                files=("graph/fp32.onnx",),
                precision="fp32",
                golden="golden/a.npy",
                tolerance=tolerance,
            ),
        ),
        "golden": Golden(frames=("golden/frame-00.png",), tensors=("golden/frame-00.npy",)),
        "history": (Step(stage="distill", plan={"epochs": 2}, seed=1),),
        "gates": (GateVerdict(gate="p90_ms", limit=5.0, value=4.5, passed=True),),
        "latency": (EngineLatency(engine="openvino", precision="int8", p50_ms=1.25, n=64, ratio_to_torch_eager=4.0),),
        "machine": {"cpu": "x", "cores": 2},
        "licence": "Apache-2.0",
    }
    return Manifest(**(facts | changes))


def sealed(tree: dict[str, Any] | bytes, files: dict[str, bytes] | None = None) -> dict[str, bytes]:
    """Return entries with a right digest for any manifest, as an attacker with our source would make them."""
    raw = tree if isinstance(tree, bytes) else msgspec.json.encode(tree, order="sorted") + b"\n"
    digest = f"{hashlib.sha256(raw).hexdigest()}  manifest.json\n".encode()
    rest = FILES if files is None else files
    return {"manifest.json": raw, "manifest.sha256": digest} | {
        name: rest[name] for name in sorted(rest) if name not in ("manifest.json", "manifest.sha256")
    }


def tree(**changes: Any) -> dict[str, Any]:
    listed = {n: {"sha256": hashlib.sha256(d).hexdigest(), "size": len(d)} for n, d in FILES.items()}
    value: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(manifest()))
    return value | {"files": listed} | changes


def listing(name: str, data: bytes = b"x") -> dict[str, bytes]:
    """Return a bundle that lists and holds one more file under a hostile name."""
    files = FILES | {name: data}
    listed = {n: {"sha256": hashlib.sha256(d).hexdigest(), "size": len(d)} for n, d in files.items()}
    return sealed(tree(files=listed), files)


def zipped(entries: dict[str, bytes]) -> bytes:
    """Return entries as a canonical zip, whatever their names."""
    blob, index = b"", []
    for name, data in entries.items():
        coded = name.encode("utf-8", "replace").decode("latin-1")
        index.append((coded.encode("ascii", "replace").decode(), zlib.crc32(data), len(data)))
        blob += container.local_header(*index[-1]) + data
    return blob + container.zip_tail(index)


def stock_zip(entries: dict[str, bytes], **facts: Any) -> bytes:
    """Return the zip that Python's own library writes; `facts` change every entry, `method` compresses."""
    file = io.BytesIO()
    method = facts.pop("method", zipfile.ZIP_STORED)
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in entries.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (stat.S_IFREG | 0o644) << 16
            info.compress_type = method
            for key, value in facts.items():
                setattr(info, key, value)
            archive.writestr(info, data)
    return file.getvalue()


def good() -> bytes:
    return zipped(sealed(tree()))


# ------------------------------------------------------------------------------------------------ the good way


@pytest.mark.parametrize("path", ["digits.edgemae", "folder/"])
def test_a_written_bundle_opens_with_the_same_content(tmp_path: Path, path: str) -> None:
    where = write_bundle(f"{tmp_path}/{path}", manifest(), FILES)
    assert where.is_dir() == path.endswith("/")
    bundle = open_bundle(where)
    assert {name: bundle.read(name) for name in FILES} == FILES
    assert msgspec.structs.replace(bundle.manifest, files={}) == manifest()
    assert bundle.manifest.files["golden/a.npy"].size == 0
    assert bundle.path == where
    assert list(bundle.variant_files(bundle.manifest.variants[0])) == ["openvino/int8.xml", "openvino/int8.bin"]
    assert bundle.manifest.variants[0].id == "openvino-int8-static"
    with pytest.raises(BundleError, match="no file 'nope'"):
        bundle.read("nope")


def test_folder_and_zip_have_one_digest_and_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    first = write_bundle(tmp_path / "a.edgemae", manifest(), FILES)
    backwards = dict(reversed(FILES.items()))
    second = write_bundle(tmp_path / "b.edgemae", manifest(), backwards)
    folder = write_bundle(tmp_path / "c", manifest(), FILES, as_zip=False)
    assert first.read_bytes() == second.read_bytes()
    assert open_bundle(first).sha256 == open_bundle(folder).sha256
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.edgemae", "b.edgemae", "c"], "a draft was left behind"


def test_the_container_is_the_zip_that_every_tool_reads(tmp_path: Path) -> None:
    path = write_bundle(tmp_path / "a.edgemae", manifest(), FILES)
    assert path.read_bytes() == good() == stock_zip(sealed(tree()))
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.read("graph/fp32.onnx") == FILES["graph/fp32.onnx"]


def test_the_manifest_has_these_bytes() -> None:
    """Golden bytes: if this fails, bundles in the field may stop opening. Never update it without a new schema."""
    listed = FileEntry(sha256="0" * 64, size=1)
    variant = Variant(engine="onnxruntime", files=("g.onnx",), precision="fp32", golden="a.npy",
                      tolerance=Tolerance(cosine_min=0.999, max_abs=0.5))  # fmt: skip
    small = manifest(
        labels=("a", "b"), variants=(variant,), golden=Golden(frames=("f.png",), tensors=("f.npy",)), history=(),
        gates=(), latency=(), files=dict.fromkeys(("a.npy", "f.npy", "f.png", "g.onnx"), listed),
    )  # fmt: skip
    entry = b'{"sha256":"' + b"0" * 64 + b'","size":1}'
    files = b",".join(b'"%s":%s' % (name, entry) for name in (b"a.npy", b"f.npy", b"f.png", b"g.onnx"))
    assert encode_manifest(small) == (
        b'{"baseline_stats":{},"created":"2025-01-02T03:04:05Z","files":{'
        + files
        + b'},"gates":[],"golden":{"color":"BGR",'
        b'"frames":["f.png"],"tensors":["f.npy"]},"history":[],"io":{"inputs":[{"dtype":"float32","name":"pixels","shape":[1,3,32,32]}],"outputs":'
        b'[{"dtype":"float32","name":"logits","shape":[1,2]}]},"labels":["a","b"],"latency":[],"licence":'
        b'"Apache-2.0","machine":{"cores":2,"cpu":"x"},"name":"digits","pixel":{"channels":3,"color":"RGB",'
        b'"crop_fraction":1.0,"exif":"apply","image_px":32,"kernel":"area-linear","mean":[0.485,0.456,0.406],'
        b'"resize":"short-side","rotation_deg":0,"std":[0.229,0.224,0.225]},"previous":null,"profiles":[],"schema":"edgemae.bundle/2",'
        b'"status":"passed","target":{"arch":"x86_64","compute_capability":"","engines":["openvino","onnxruntime"],'
        b'"isa":"avx2_vnni","max_isa":"","memory_mib":1024,"name":"box","notes":"","precisions":["int8","fp32"],"source":'
        b'"made up","threads":2,"title":"a box","width_multiple":16},"variants":[{"engine":"onnxruntime","files":'
        b'["g.onnx"],"golden":"a.npy","precision":"fp32","reason":"","scheme":"","tolerance":{"cosine_min":0.999,"max_abs":0.5,'
        b'"top1":true}}],'
        b'"version":3}\n'
    )


def test_a_bundle_of_an_earlier_schema_says_who_wrote_it_and_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "b.edgemae"
    path.write_bytes(stock_zip(sealed(tree(schema="edgemae.bundle/1"))))
    with pytest.raises(BundleSchemaError) as caught:
        open_bundle(path)
    assert "edgemae.bundle/1" in caught.value.what
    assert "before 0.1.0" in caught.value.what
    assert "compile again" in caught.value.fix


def test_an_integer_in_a_float_field_has_one_spelling(tmp_path: Path) -> None:
    gates = (GateVerdict(gate="p90_ms", limit=5, value=4.5, passed=True),)
    written = write_bundle(tmp_path / "a.edgemae", manifest(gates=gates), FILES)
    assert written.read_bytes() == good()


def test_a_manifest_without_the_fields_that_came_later_still_opens(tmp_path: Path) -> None:
    old = tree()
    for key in ("baseline_stats", "previous"):
        del old[key]
    path = tmp_path / "old.edgemae"
    path.write_bytes(zipped(sealed(old)))
    assert open_bundle(path).manifest.previous is None


def test_a_shell_can_verify_a_folder(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "a", manifest(), FILES, as_zip=False)
    digest, name = (folder / "manifest.sha256").read_text().split()
    assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest == open_bundle(folder).sha256


# ------------------------------------------------------------------------------------------------ writing


def test_a_bundle_replaces_a_bundle_and_nothing_else(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "a", manifest(version=1), FILES, as_zip=False)
    assert write_bundle(folder, manifest(version=2), FILES) == folder
    assert open_bundle(folder).manifest.version == 2
    (folder / "my-notes.txt").write_text("keep")
    with pytest.raises(StorageError, match="other things in it"):
        write_bundle(folder, manifest(), FILES)
    assert (folder / "my-notes.txt").read_text() == "keep"
    with pytest.raises(StorageError, match="cannot be replaced"):
        write_bundle(folder, manifest(), FILES, as_zip=True)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert open_bundle(write_bundle(empty, manifest(), FILES)).manifest.version == 3


@pytest.mark.parametrize("as_zip", [True, False])
def test_a_full_disk_is_a_storage_error_and_leaves_the_old_bundle(tmp_path: Path, as_zip: bool) -> None:
    path = write_bundle(tmp_path / "a", manifest(version=1), FILES, as_zip=as_zip)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(StorageError, match="cannot be written"):
            write_bundle(path, manifest(version=2), FILES | {"graph/large.bin": b"x" * 9000}, as_zip=as_zip)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert open_bundle(path).manifest.version == 1
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("as_zip", [True, False])
def test_a_parent_that_is_a_file_is_a_storage_error(tmp_path: Path, as_zip: bool) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="fix: free some space or choose another"):
        write_bundle(tmp_path / "file" / "a.edgemae", manifest(), FILES, as_zip=as_zip)


def test_a_folder_that_cannot_be_renamed_keeps_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_bundle(tmp_path / "a", manifest(version=1), FILES, as_zip=False)
    rename = os.rename

    def failing(source: Any, target: Any) -> None:
        if str(source).endswith(".tmp"):
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(container.os, "rename", failing)
    with pytest.raises(StorageError, match="No space left"):
        write_bundle(folder, manifest(version=2), FILES)
    assert open_bundle(folder).manifest.version == 1
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    ("changes", "files"),
    [
        ({"status": "perhaps"}, FILES),
        ({"version": -1}, FILES),
        ({"licence": object()}, FILES),
        ({"gates": (GateVerdict(gate="x", limit=float("nan"), value=None, passed=False),)}, FILES),
        ({}, {"graph/fp32.onnx": b""}),  # the variants points at files that are not there
        ({}, FILES | {"run.py": b""}),
        ({}, FILES | {"../up.json": b""}),
    ],
)
def test_a_wrong_manifest_is_our_bug_and_writes_nothing(tmp_path: Path, changes: Any, files: Any) -> None:
    with pytest.raises(InternalError):
        write_bundle(tmp_path / "a.edgemae", manifest(**changes), files)
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------ damage


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    blob, path = good(), tmp_path / "a.edgemae"
    edges = {0, 1, 29, len(blob) - 1, len(blob) - 22, len(blob) - 23}
    edges |= {at + d for at in range(len(blob)) if blob[at : at + 2] == b"PK" for d in (-1, 0, 1, 30)}
    for length in sorted(edge for edge in edges if 0 <= edge < len(blob)):
        path.write_bytes(blob[:length])
        with pytest.raises(BundleCorruptError):
            open_bundle(path)


def test_every_single_bit_flip_is_refused_and_the_manifest_not_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All bits of all headers, of the digest and of the directory; 1,000 bits of manifest and files."""
    files = {name: data for name, data in FILES.items() if not name.startswith("openvino/")}
    small = manifest(variants=manifest().variants[1:])
    path = write_bundle(tmp_path / "a.edgemae", small, files)
    blob = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        starts = {info.filename: info.header_offset + 30 + len(info.filename) for info in archive.infolist()}
        spans = {name: range(start, start + archive.getinfo(name).file_size) for name, start in starts.items()}
    content = {byte for name, span in spans.items() if name != "manifest.sha256" for byte in span}
    bits = [8 * byte + bit for byte in range(len(blob)) if byte not in content for bit in range(8)]
    bits += random.Random(0).sample([8 * byte + bit for byte in sorted(content) for bit in range(8)], 1000)
    assert len(bits) > 5000
    parsed = []
    parse = room._parse
    monkeypatch.setattr(room, "_parse", lambda raw: parsed.append(1) or parse(raw))
    file = os.open(path, os.O_RDWR)
    try:
        for bit in bits:
            byte = bit // 8
            os.pwrite(file, bytes([blob[byte] ^ (1 << (bit % 8))]), byte)
            parsed.clear()
            with pytest.raises(BundleCorruptError):
                open_bundle(path)
            assert not (parsed and byte < spans["manifest.sha256"].stop), f"bit {bit} was parsed"
            os.pwrite(file, blob[byte : byte + 1], byte)
    finally:
        os.close(file)
    assert path.read_bytes() == blob
    open_bundle(path)


def test_every_byte_of_a_folder_is_checked(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "a", manifest(), FILES, as_zip=False)
    rng = random.Random(1)
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        data = path.read_bytes()
        for _ in range(40 if data else 0):
            bad = bytearray(data)
            bad[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            path.write_bytes(bad)
            with pytest.raises(BundleCorruptError):
                open_bundle(folder)
        path.write_bytes(data)
    open_bundle(folder)


# ------------------------------------------------------------------------------------------------ hostile bundles


def patched(offset: int, data: bytes, blob: bytes | None = None) -> bytes:
    raw = bytearray(good() if blob is None else blob)
    raw[offset : offset + len(data)] = data
    return bytes(raw)


def without(entries: dict[str, bytes], name: str) -> dict[str, bytes]:
    return {key: value for key, value in entries.items() if key != name}


def claiming(name: str, **facts: Any) -> dict[str, bytes]:
    value = tree()
    value["files"][name] |= facts
    return sealed(value)


def doubled() -> bytes:
    entries = list(sealed(tree()).items())
    entries.insert(3, entries[2])
    blob, index = b"", []
    for name, data in entries:
        index.append((name, zlib.crc32(data), len(data)))
        blob += container.local_header(*index[-1]) + data
    return blob + container.zip_tail(index)


def swapped() -> dict[str, bytes]:
    entries = sealed(tree())
    keys = list(entries)
    keys[2], keys[3] = keys[3], keys[2]
    return {key: entries[key] for key in keys}


OTHER = sealed(tree(name="other"), FILES)
RAW = sealed(tree())["manifest.json"]
DIGEST = sealed(tree())["manifest.sha256"]
BAD_NAMES = (
    "../evil.onnx",
    "graph/../../evil.onnx",
    "/etc/evil.json",
    "./evil.json",
    "graph//evil.json",
    "graph/evil.json/",
    "graph\\evil.json",
    "C:/evil.json",
    "..\\evil.json",
    "evil.json\0.png",
    "evil\n.json",
    "evil .json",
    "évil.json",
    ".hidden.json",
    "graph/.json",
    "a/b/c/d/e.json",
    "x" * 201 + ".json",
    "con.json",
    "graph/NUL/x.bin",
    "graph./x.bin",
    "",
    "evil",
    "evil.py",
    "evil.pkl",
    "evil.pt",
    "evil.so",
    "evil.sh",
    "evil.engine",
    "evil.ONNX",
    "evil.json.gz",
    "manifest.json",
    "MANIFEST.JSON",
    "Manifest.json",
    "manifest.sha256",
    "graph/FP32.onnx",
    "README.md/evil.json",
    "readme.MD/evil.json",
)
HOSTILE_ZIPS: dict[str, Callable[[], bytes]] = {
    "empty file": lambda: b"",
    "text": lambda: b"not a bundle, but longer than one zip header needs to be\n" * 4,
    "random bytes": lambda: random.Random(2).randbytes(4096),
    "only zeros": lambda: bytes(4096),
    "an end record only": lambda: good()[-22:],
    "junk before": lambda: b"#!/bin/sh\n" + good(),
    "junk behind": lambda: good() + b"\0",
    "a second zip behind": lambda: good() + good(),
    "a comment": lambda: good()[:-2] + b"\1\0x",
    "central directory missing": lambda: good()[: good().index(b"PK\1\2")],
    "junk before the directory": lambda: good().replace(b"PK\1\2", b"x" + b"PK\1\2", 1),
    "file missing": lambda: zipped(without(sealed(tree()), "graph/fp32.onnx")),
    "file not listed": lambda: zipped(sealed(tree()) | {"zzz.json": b"{}"}),
    "file twice": doubled,
    "order changed": lambda: zipped(swapped()),
    "manifest missing": lambda: zipped(without(sealed(tree()), "manifest.json")),
    "digest missing": lambda: zipped(without(sealed(tree()), "manifest.sha256")),
    "compressed": lambda: stock_zip(sealed(tree()), method=zipfile.ZIP_DEFLATED),
    "zip bomb": lambda: stock_zip(
        sealed(claim(50 << 20), FILES | {"golden/a.npy": bytes(50 << 20)}), method=zipfile.ZIP_DEFLATED
    ),
    "encrypted flag": lambda: patched(6, b"\1\0"),
    "data descriptor flag": lambda: patched(6, b"\x08\0"),
    "zip64 version": lambda: patched(4, b"\x2d\0"),
    "other date": lambda: stock_zip(sealed(tree()), date_time=(2025, 1, 1, 0, 0, 0)),
    "extra field": lambda: stock_zip(sealed(tree()), extra=b"\x99\x99\x02\x00hi"),
    "entry comment": lambda: stock_zip(sealed(tree()), comment=b"hi"),
    "symbolic link entry": lambda: stock_zip(sealed(tree()), external_attr=(stat.S_IFLNK | 0o777) << 16),
    "executable entry": lambda: stock_zip(sealed(tree()), external_attr=(stat.S_IFREG | 0o755) << 16),
    "header claims 4 GiB": lambda: patched(18, struct.pack("<2I", 0xFFFFFFFF, 0xFFFFFFFF)),
    "header claims less": lambda: patched(18, struct.pack("<2I", 10, 10)),
    "sizes disagree": lambda: patched(18, struct.pack("<I", 10)),
    "manifest too large": lambda: zipped(sealed(RAW + b" " * (5 << 20))),
    "manifest claims a larger file": lambda: zipped(claiming("golden/a.npy", size=1)),
    "manifest claims a smaller file": lambda: zipped(claiming("graph/fp32.onnx", size=199)),
    "manifest claims 1 TiB": lambda: zipped(claiming("golden/a.npy", size=1 << 40)),
    "wrong digest": lambda: zipped(claiming("golden/a.npy", sha256="0" * 64)),
    "digest in capitals": lambda: zipped(
        claiming("golden/a.npy", sha256=tree()["files"]["golden/a.npy"]["sha256"].upper())
    ),
    "empty digest": lambda: zipped(claiming("golden/a.npy", sha256="")),
    "mix: manifest of another": lambda: zipped(sealed(tree()) | {"manifest.json": OTHER["manifest.json"]}),
    "mix: digest of another": lambda: zipped(sealed(tree()) | {"manifest.sha256": OTHER["manifest.sha256"]}),
    "mix: file of another": lambda: zipped(sealed(tree(), FILES | {"graph/fp32.onnx": bytes(200)})),
    "mix: two files change places": lambda: zipped(
        sealed(
            tree(),
            FILES
            | {
                "golden/frame-00.png": FILES["golden/frame-00.npy"],
                "golden/frame-00.npy": FILES["golden/frame-00.png"],
            },
        )
    ),
    "digest line in capitals": lambda: zipped(sealed(tree()) | {"manifest.sha256": DIGEST.upper()}),
    "digest line without newline": lambda: zipped(sealed(tree()) | {"manifest.sha256": DIGEST[:-1]}),
    "digest line empty": lambda: zipped(sealed(tree()) | {"manifest.sha256": b""}),
    "manifest with spaces": lambda: zipped(sealed(json.dumps(tree(), sort_keys=True).encode() + b"\n")),
    "manifest without newline": lambda: zipped(sealed(RAW[:-1])),
    "manifest with unsorted keys": lambda: zipped(sealed(msgspec.json.encode(tree()) + b"\n")),
    "key twice": lambda: zipped(
        sealed(RAW.replace(b'{"baseline_stats":{},', b'{"baseline_stats":{},"baseline_stats":{},'))
    ),
    "file key twice": lambda: zipped(
        sealed(RAW.replace(b'"files":{', b'"files":{"README.md":{"sha256":"","size":0},'))
    ),
    "number spelled twice": lambda: zipped(sealed(RAW.replace(b'"version":3', b'"version":3e0'))),
    "not JSON": lambda: zipped(sealed(b"import os\n")),
    "not UTF-8": lambda: zipped(sealed(b'{"schema":"edgemae.bundle/2","name":"\xff\xfe"}\n')),
    "nested 100,000 deep": lambda: zipped(sealed(b"[" * 100_000)),
    "variants points nowhere": lambda: zipped(
        sealed(tree(golden={"color": "BGR", "frames": ["x.png"], "tensors": ["x.npy"]}))
    ),
    "variants leaves the bundle": lambda: zipped(sealed(with_variant(files=["../../etc/passwd"]))),
    "variant without files": lambda: zipped(sealed(with_variant(files=[]))),
    "variant without golden outputs": lambda: zipped(sealed(with_variant(golden=""))),
    "frame without tensor": lambda: zipped(
        sealed(tree(golden={"color": "BGR", "frames": ["README.md"], "tensors": []}))
    ),
    "1,001 files": lambda: zipped(sealed(tree(files={f"{i}.json": {"sha256": "", "size": 0} for i in range(1001)}))),
} | {f"name {name[:24]!r}": lambda name=name: zipped(listing(name)) for name in BAD_NAMES}  # type: ignore[misc]


def claim(size: int) -> dict[str, Any]:
    value = tree()
    value["files"]["golden/a.npy"] = {"sha256": hashlib.sha256(bytes(size)).hexdigest(), "size": size}
    return value


def with_variant(**changes: Any) -> dict[str, Any]:
    value = tree()
    value["variants"][0] |= changes
    return value


def test_the_corpus_starts_from_a_bundle_that_opens(tmp_path: Path) -> None:
    assert len(HOSTILE_ZIPS) + len(HOSTILE_FOLDERS) + len(WRONG_SCHEMAS) >= 100
    path = tmp_path / "a.edgemae"
    for blob in (good(), zipped(listing("fine.json")), zipped(sealed(tree()))):
        path.write_bytes(blob)
        open_bundle(path)


@pytest.mark.parametrize("case", HOSTILE_ZIPS, ids=str)
def test_a_hostile_zip_is_refused(tmp_path: Path, case: str) -> None:
    path = tmp_path / "a.edgemae"
    path.write_bytes(HOSTILE_ZIPS[case]())
    with pytest.raises(BundleCorruptError) as error:
        open_bundle(path)
    assert error.value.exit_code == 2
    assert error.value.expected
    assert error.value.fix


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_hostile_name_is_refused_for_its_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.edgemae"
    path.write_bytes(zipped(listing(name)))
    with pytest.raises(BundleCorruptError, match=r"lists the name|when upper and lower case|lies inside a name"):
        open_bundle(path)


def link_file(folder: Path) -> None:
    outside = folder.parent / "outside.bin"
    outside.write_bytes(FILES["openvino/int8.bin"])
    (folder / "openvino/int8.bin").unlink()
    (folder / "openvino/int8.bin").symlink_to(outside)


def link_folder(folder: Path) -> None:
    (folder / "openvino").rename(folder.parent / "moved")
    (folder / "openvino").symlink_to(folder.parent / "moved")


def hard_link(folder: Path) -> None:
    os.link(folder / "README.md", folder.parent / "second-name")


def two_names(folder: Path) -> None:
    (folder / "golden/frame-00.npy").unlink()
    os.link(folder / "golden/frame-00.png", folder / "golden/frame-00.npy")


def fifo(folder: Path) -> None:
    (folder / "README.md").unlink()
    os.mkfifo(folder / "README.md")


def folder_for_file(folder: Path) -> None:
    (folder / "README.md").unlink()
    (folder / "README.md").mkdir()


def large_manifest(folder: Path) -> None:
    with (folder / "manifest.json").open("r+b") as file:
        file.truncate(1 << 30)  # sparse


def many(folder: Path) -> None:
    for i in range(2100):
        (folder / f"{i}.json").touch()


def deep(folder: Path) -> None:
    (folder / "/".join("abcdefghijkl")).mkdir(parents=True)


HOSTILE_FOLDERS: dict[str, Callable[[Path], Any]] = {
    "symbolic link to a file": link_file,
    "symbolic link to a folder": link_folder,
    "manifest is a link": lambda f: (
        (f / "manifest.json").rename(f.parent / "m"),
        (f / "manifest.json").symlink_to("../m"),
    ),
    "hard link to outside": hard_link,
    "two names for one file": two_names,
    "named pipe": fifo,
    "folder instead of a file": folder_for_file,
    "file not listed": lambda f: (f / "extra.json").write_text("{}"),
    "hidden file": lambda f: (f / ".DS_Store").write_text(""),
    "code": lambda f: (f / "setup.py").write_text("import os"),
    "empty folder": lambda f: (f / "more").mkdir(),
    "file missing": lambda f: (f / "graph/fp32.onnx").unlink(),
    "manifest missing": lambda f: (f / "manifest.json").unlink(),
    "digest missing": lambda f: (f / "manifest.sha256").unlink(),
    "file longer": lambda f: (f / "README.md").write_bytes(FILES["README.md"] + b"\n"),
    "file shorter": lambda f: (f / "README.md").write_bytes(FILES["README.md"][:-1]),
    "other content": lambda f: (f / "README.md").write_bytes(FILES["README.md"][::-1]),
    "other case": lambda f: (f / "README.md").rename(f / "readme.md"),
    "manifest of 1 GiB": large_manifest,
    "2,100 more files": many,
    "twelve folders deep": deep,
    "all gone": lambda f: [p.unlink() for p in f.rglob("*") if p.is_file()],
}


@pytest.mark.parametrize("case", HOSTILE_FOLDERS, ids=str)
def test_a_hostile_folder_is_refused(tmp_path: Path, case: str) -> None:
    folder = write_bundle(tmp_path / "a", manifest(), FILES, as_zip=False)
    open_bundle(folder)
    HOSTILE_FOLDERS[case](folder)
    with pytest.raises(BundleCorruptError):
        open_bundle(folder)


WRONG_SCHEMAS: dict[str, Any] = {
    "next schema": {"schema": "edgemae.bundle/3"},
    "foreign schema": {"schema": "mlflow/1"},
    "schema is a number": {"schema": 1},
    "unknown field": {"expires": "never"},
    "wrong type": {"version": "3"},
    "negative version": {"version": -3},
    "unknown status": {"status": "probably"},
    "variants is a text": {"variants": "all"},
    "target without engines": {"target": {"name": "x"}},
}


@pytest.mark.parametrize("case", WRONG_SCHEMAS, ids=str)
def test_a_manifest_of_another_schema_says_so(tmp_path: Path, case: str) -> None:
    path = tmp_path / "a.edgemae"
    path.write_bytes(zipped(sealed(tree(**WRONG_SCHEMAS[case]))))
    with pytest.raises(BundleSchemaError, match="update edgemae"):
        open_bundle(path)
    without_schema = tree()
    del without_schema["schema"]
    for value in (without_schema, [1, 2]):
        path.write_bytes(zipped(sealed(value)))  # type: ignore[arg-type]
        with pytest.raises(BundleSchemaError):
            open_bundle(path)


def test_an_older_version_is_refused_where_a_floor_is_set(tmp_path: Path) -> None:
    path = write_bundle(tmp_path / "a.edgemae", manifest(version=3), FILES)
    assert open_bundle(path, min_version=3).manifest.version == 3
    with pytest.raises(BundleError, match=r"version 3 .*\n.*version 4 or later"):
        open_bundle(path, min_version=4)


def test_paths_that_hold_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="there is no bundle at") as missing:
        open_bundle(tmp_path / "nothing.edgemae")
    assert not isinstance(missing.value, BundleCorruptError)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BundleCorruptError, match="neither a file nor a folder"):
        open_bundle(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    with pytest.raises(BundleCorruptError, match=r"holds no 'manifest\.json'"):
        open_bundle(tmp_path / "folder")


def test_a_disk_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_bundle(tmp_path / "a.edgemae", manifest(), FILES)

    def failing(*_: Any) -> Any:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(container.Path, "open", failing)
        with pytest.raises(BundleError, match="Input/output error"):
            open_bundle(path)
    monkeypatch.setattr(container.ZipSource, "_read", failing)
    with pytest.raises(BundleError, match="Input/output error"):
        open_bundle(path)


def test_a_file_swapped_while_a_folder_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_bundle(tmp_path / "a", manifest(), FILES, as_zip=False)
    expect = container.FolderSource.expect

    def then_grow(self: Any, sizes: Any) -> None:
        expect(self, sizes)
        with (folder / "README.md").open("ab") as file:
            file.write(b"more")

    monkeypatch.setattr(container.FolderSource, "expect", then_grow)
    with pytest.raises(BundleCorruptError, match="changed its size"):
        open_bundle(folder)


def test_a_bundle_larger_than_memory_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_bundle(tmp_path / "a.edgemae", manifest(), FILES)
    folder = write_bundle(tmp_path / "a", manifest(), FILES, as_zip=False)
    monkeypatch.setattr(container, "MAX_BYTES", 100)
    for where in (path, folder):
        with pytest.raises(BundleCorruptError, match="at most 0 MiB"):
            open_bundle(where)


def test_the_format_page_names_every_rule() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "bundle-format.md").read_text(encoding="utf-8")
    for word in (
        *EXTENSIONS,
        *Manifest.__struct_fields__,
        SCHEMA,
        "manifest.sha256",
        "MUST",
        "2 GiB",
        "4 MiB",
        "1000",
    ):
        assert word in page, f"docs/bundle-format.md does not mention {word}"
