"""`--remote` from one end to the other, over a real ssh server: the device's own record, beside the bundle."""

from __future__ import annotations

import ast
import json
import logging
import shutil
import sys
import venv
from pathlib import Path

import pytest

from edgemae.deploy import remote_profile, ssh
from edgemae.deploy.remote_profile import profile_remotely
from edgemae.profiling.records import read_profile
from edgemae.spec.bundle import open_bundle, write_bundle
from edgemae.spec.errors import BundleError, InputError, MachineError, RemoteError, TargetError
from tests.support.bundles import block_onnx, box, make_bundle  # noqa: F401 - fixtures: a bundle without any training
from tests.support.sshd import Server
from tests.support.tiny_job import Ran, edgemae, write_target


@pytest.fixture
def bundle(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return Path(shutil.copy(request.getfixturevalue("make_bundle")(("onnxruntime",)), tmp_path))


def profile_on_device(bundle: Path, *more: str) -> Ran:
    work = ("--runs", "12", "--json", *more)
    return edgemae("profile", bundle, "--remote", "device", "--remote-python", sys.executable, *work)


@pytest.mark.slow
def test_the_record_of_a_device_comes_back_and_the_bundle_is_copied_once(
    bundle: Path, server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ran = profile_on_device(bundle)
    stored = bundle.with_name("block.edgemae.device.profile.json")
    assert json.loads(stored.read_text()) == ran.json
    found = read_profile(stored)
    assert (found.name, found.engine, found.steady.n) == ("block", "onnxruntime", 12)
    assert found.bundle_sha256 == open_bundle(bundle).sha256
    assert server.jobs() == []
    (copy,) = server.cache.glob("*/block.edgemae")
    assert server.copies() == [copy.parent.name]
    assert copy.read_bytes() == bundle.read_bytes()
    assert "copy block.edgemae to device" in ran.err

    # Once more, with a connection that is cut before every step.
    written, logins, cuts, ask = copy.stat().st_mtime_ns, server.logins, [], ssh.RemoteHost.ask

    def shaky(self: ssh.RemoteHost, verb: str, **order: object) -> dict[str, object]:
        if verb in ("start", "follow", "drop") and verb not in cuts:
            cuts.append(verb)
            assert server.cut() > 0
        return ask(self, verb, **order)  # type: ignore[arg-type]

    monkeypatch.setattr(ssh.RemoteHost, "ask", shaky)
    caplog.set_level(logging.INFO, "edgemae")
    path = profile_remotely(bundle, "device", [("--runs", "12")], sys.executable)
    assert path == stored
    assert read_profile(path).created >= found.created
    assert cuts == ["start", "follow", "drop"]
    assert server.logins >= logins + 4
    assert copy.stat().st_mtime_ns == written
    assert "copy block.edgemae" not in caplog.text
    assert server.jobs() == []


@pytest.mark.slow
def test_a_bundle_that_is_a_folder_and_files_of_options_are_copied_along(
    bundle: Path, server: Server, tmp_path: Path
) -> None:
    opened = open_bundle(bundle)
    files = {name: opened.read(name) for name in opened.manifest.files}
    folder = write_bundle(tmp_path / "folder.edgemae", opened.manifest, files, as_zip=False)
    assert folder.is_dir()
    target = write_target(tmp_path / "box.toml", precisions=("fp32",))
    options = [("--runs", "12"), ("--baseline", str(bundle)), ("--target", str(target))]
    found = read_profile(profile_remotely(folder, "device", options, sys.executable))
    assert found.bundle_sha256 == opened.sha256
    assert found.baseline is not None
    assert found.baseline.paired


def test_a_profile_of_a_device_is_kept_in_the_bundle_here(bundle: Path, server: Server) -> None:
    ran = profile_on_device(bundle, "--keep")
    (row,) = open_bundle(bundle).manifest.profiles
    assert (row.p50_ms, row.n) == (ran.json["steady"]["p50_ms"], 12)
    assert all(open_bundle(copy).manifest.profiles == () for copy in server.cache.glob("*/block.edgemae"))


def test_what_edgemae_says_there_is_said_here(bundle: Path, server: Server) -> None:
    ran = profile_on_device(bundle, "--target", "raspberry-pi-55")
    assert ran.code == TargetError.exit_code
    assert ran.json["error"]["code"] == "target"
    assert ran.json["error"]["what"].startswith("on device: unknown target 'raspberry-pi-55'")
    assert not bundle.with_name("block.edgemae.device.profile.json").exists()
    assert server.jobs() == []


def test_a_corrupt_bundle_does_not_travel(bundle: Path, server: Server) -> None:
    logins = server.logins
    bundle.write_bytes(bundle.read_bytes()[:-9])
    with pytest.raises(BundleError):
        profile_remotely(bundle, "device", (), sys.executable)
    assert server.logins == logins


def test_a_python_without_edgemae_is_told_how_to_get_it(bundle: Path, server: Server, tmp_path: Path) -> None:
    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    python = tmp_path / "bare/bin/python"
    (tmp_path / "bare/bin/isolated").write_text(f'#!/bin/sh\nunset PYTHONPATH\nexec {python} "$@"\n')
    (tmp_path / "bare/bin/isolated").chmod(0o755)
    with pytest.raises(RemoteError) as caught:
        profile_remotely(bundle, "device", (), str(tmp_path / "bare/bin/isolated"))
    assert caught.value.what.startswith(f"device has no edgemae for {python}")
    assert f"{python} -m pip install 'WHEEL[camera,onnxruntime]'" in caught.value.fix


def test_a_folder_in_the_home_there_is_no_edgemae(server: Server, tmp_path: Path) -> None:
    """`python -c` looks for modules in the folder that it starts in: a checkout is found there as an empty package."""
    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    (tmp_path / "home/edgemae/edgemae").mkdir(parents=True)
    python = tmp_path / "bare/bin/isolated"
    python.write_text(f'#!/bin/sh\nunset PYTHONPATH\ncd {tmp_path}/home\nexec {tmp_path}/bare/bin/python "$@"\n')
    python.chmod(0o755)
    with (
        ssh.RemoteHost(ssh.parse_address("device"), str(python)) as host,
        pytest.raises(RemoteError, match="has no edgemae"),
    ):
        remote_profile.find_edgemae(host)


def test_a_folder_named_as_the_target_does_not_travel(
    bundle: Path, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("raspberry-pi-5").mkdir()  # as a compile for several targets leaves
    monkeypatch.setattr(ssh.RemoteHost, "run", lambda host, commands: stop(commands))
    with pytest.raises(MachineError, match="stop") as caught:
        profile_remotely(bundle, "device", [("--target", "raspberry-pi-5")], sys.executable)
    assert "--target raspberry-pi-5" in caught.value.expected


def stop(commands: list[list[str]]) -> None:
    raise MachineError("stop", expected=" ".join(commands[-1]), fix="")


def test_a_record_that_has_no_place_beside_the_bundle_goes_to_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("EDGEMAE_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "file").write_text("no folder")
    path = remote_profile._store(tmp_path / "file" / "b.edgemae.device.profile.json", {"a": 1})
    assert path == tmp_path / "cache/profiles/b.edgemae.device.profile.json"
    assert json.loads(path.read_text()) == {"a": 1}
    assert "goes to the cache" in caplog.text


def test_another_version_there_is_said(
    bundle: Path, server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(remote_profile, "__version__", "9.9.9")
    with (
        ssh.RemoteHost(ssh.parse_address("device"), sys.executable) as host,
        caplog.at_level(logging.WARNING, "edgemae"),
    ):
        remote_profile.find_edgemae(host)
    assert "here it is 9.9.9" in caplog.text


def test_the_command_line_says_what_is_no_address(bundle: Path) -> None:
    ran = edgemae("profile", bundle, "--remote", "me:hunter2@host")
    assert ran.code == InputError.exit_code
    assert "hunter2" not in ran.err
    alone = edgemae("profile", bundle, "--remote-python", "python3")
    assert alone.code == InputError.exit_code
    assert "--remote" in alone.err


def test_the_remote_agent_reads_as_the_oldest_python() -> None:
    ast.parse(ssh.AGENT.read_text(), feature_version=(3, 8))
