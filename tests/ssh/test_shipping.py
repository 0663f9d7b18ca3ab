"""A kernelspec's directory reaches a host whole, once, and under a name that both ends compute alike."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

from distributed_provisioner.errors import KernelSpecError
from distributed_provisioner.ssh.shipping import PIECE, pieces, read_bundle

from .conftest import Get, Run
from .kernels import forget, launch_params

if TYPE_CHECKING:
    from distributed_provisioner.testing.namespaces import Cluster


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    """A directory with all kinds of files."""
    directory = tmp_path / "spec"
    (directory / "scripts" / "__pycache__").mkdir(parents=True)
    (directory / "bin").mkdir()
    (directory / "kernel.json").write_text("{}")
    (directory / "logo-64x64.png").write_bytes(b"\x89PNG")
    (directory / "scripts" / "a.py").write_text("print('ä')")
    (directory / "scripts" / "a.pyc").write_text("compiled")
    (directory / "scripts" / "__pycache__" / "a.py").write_text("compiled")
    (directory / "scripts" / "empty").write_text("")
    (directory / "bin" / "run.sh").write_text("#!/bin/sh\n")
    (directory / "bin" / "run.sh").chmod(0o755)
    (directory / "large").write_bytes(os.urandom(PIECE * 2 + 17))
    (directory / "exact").write_bytes(os.urandom(PIECE))
    os.mkfifo(directory / "pipe")
    return directory


def remote_files() -> ModuleType:
    """remote/files.py, imported as it is on a host."""
    from distributed_provisioner.ssh import bootstrap

    directory = Path(bootstrap.__file__).parents[1] / "remote"
    sys.path.insert(0, str(directory))
    try:
        spec = importlib.util.spec_from_file_location("files", directory / "files.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(directory))


def test_both_ends_give_a_directory_the_same_name(spec: Path) -> None:
    """Otherwise every launch ships, or the host refuses what arrives."""
    bundle = read_bundle(str(spec))
    assert bundle is not None
    assert set(bundle.files) == {"bin/run.sh", "exact", "large", "scripts/a.py", "scripts/empty"}
    (spec / "pipe").unlink()
    assert remote_files().bundle_digest(str(spec)) == bundle.digest


def test_the_name_changes_with_a_content_and_a_mode_and_not_with_a_logo(spec: Path) -> None:
    """Edited launchers must reach the hosts; a new icon need not."""

    def digest() -> str:
        bundle = read_bundle(str(spec))
        assert bundle is not None
        return bundle.digest

    first = digest()
    (spec / "logo-32x32.png").write_bytes(b"new")
    (spec / "kernel.json").write_text('{"argv": []}')
    assert digest() == first
    (spec / "bin" / "run.sh").chmod(0o644)
    second = digest()
    (spec / "scripts" / "a.py").write_text("print('o')")
    assert len({first, second, digest()}) == 3


def test_pieces_are_small_and_give_the_files_again(spec: Path, tmp_path: Path) -> None:
    """An interrupt must not wait behind a hundred megabytes of jars."""
    bundle = read_bundle(str(spec))
    assert bundle is not None
    remote = remote_files()
    target = tmp_path / "there"
    requests = list(pieces(bundle))
    assert [bool(request.get("commit")) for request in requests] == [False] * (len(requests) - 1) + [True]
    for request in requests:
        assert sum(len(entry["data"]) for entry in request["files"]) < 3 * PIECE
        for entry in request["files"]:
            remote.write_piece(str(target), entry)
    assert remote.bundle_digest(str(target)) == bundle.digest


def test_a_missing_directory_is_none_and_an_unreadable_file_is_told(spec: Path, tmp_path: Path) -> None:
    """The kernelspec is at fault, not a host: no other one shall be tried."""
    assert read_bundle(str(tmp_path / "missing")) is None
    os.symlink("/no/such/target", spec / "scripts" / "dangling")
    with pytest.raises(KernelSpecError, match="dangling"):
        read_bundle(str(spec))


@pytest.mark.cluster
def test_a_directory_is_shipped_once_and_again_when_the_host_has_lost_it(
    cluster: Cluster, spec: Path, run: Run, get: Get
) -> None:
    """Caches are cleared; the next launch must not fail for that."""
    connection = get("host1")
    (spec / "scripts" / "a.py").write_text(f"import sys; sys.exit('shipped copy {os.getpid()}')")

    async def ship() -> str | None:
        await connection.connect()
        assert await connection.ship("/no/such/directory") is None
        first = await connection.ship(str(spec))
        sent = repr(connection._lines.control._numbers)  # type: ignore[union-attr]
        assert await connection.ship(str(spec)) == first
        assert repr(connection._lines.control._numbers) == sent  # type: ignore[union-attr]
        return first

    digest = run(ship())
    bundles = f"/home/{cluster.user}/.cache/distributed-provisioner/bundles"
    host = cluster["host1"]
    assert host.path(f"{bundles}/{digest}/bin/run.sh").stat().st_mode & 0o777 == 0o700
    host.run("rm", "-rf", f"{bundles}/{digest}")
    params = launch_params(
        argv=["python", f"{spec}/scripts/a.py", "{connection_file}"],
        resource_dir=str(spec),
        bundle=digest,
        launch_timeout=15,
    )
    with pytest.raises(Exception, match="exited") as failed:
        run(connection.request("launch", timeout=20, **params))
    assert f"shipped copy {os.getpid()}" in str(getattr(failed.value, "log_tail", ""))
    assert host.path(f"{bundles}/{digest}/bin/run.sh").exists()
    run(forget(connection, params))


def test_no_request_is_larger_than_a_listener_takes(tmp_path: Path) -> None:
    """Very many files without content are large, too: their names travel."""
    for number in range(3000):
        (tmp_path / f"{'n' * 200}{number}").touch()
    bundle = read_bundle(str(tmp_path))
    assert bundle is not None
    sizes = [len(json.dumps(piece)) for piece in pieces(bundle)]
    assert len(sizes) > 1
    assert max(sizes) < 1 << 20
