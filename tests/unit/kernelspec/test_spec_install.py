"""Specifications get to their place completely or not at all."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest
from jupyter_client.kernelspec import KernelSpecManager

from distributed_provisioner.errors import KernelSpecError
from distributed_provisioner.kernelspec import (
    BuiltSpec,
    InstallTarget,
    SparkOptions,
    SpecFile,
    SpecOptions,
    build,
    find_installed,
    install,
    remove,
)


@pytest.fixture
def kernels(tmp_path: Path) -> Path:
    return tmp_path / "kernels"


@pytest.fixture
def manager(kernels: Path) -> KernelSpecManager:
    return KernelSpecManager(kernel_dirs=[str(kernels)], ensure_native_kernel=False)


def put(kernels: Path, *, over: bool = False, **options: object) -> Path:
    settled = SpecOptions(**options)  # type: ignore[arg-type]
    directory = kernels / settled.kernel_name
    install(build(settled, str(directory)), directory, replace=over)
    return directory


def tree(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def test_files_are_copies_of_the_packages(kernels: Path) -> None:
    """The host would run another launcher than the one that is tested and shipped."""
    directory = put(kernels)
    package = files("distributed_provisioner")
    found = tree(directory)
    assert sorted(found) == [
        "kernel.json",
        "logo-64x64.png",
        "scripts/launch_ipykernel.py",
        "scripts/server_listener.py",
    ]
    for name in ("launch_ipykernel.py", "server_listener.py"):
        assert found[f"scripts/{name}"] == package.joinpath(f"remote/{name}").read_bytes()
    logo = found["logo-64x64.png"]
    assert (logo[:8], logo[16:24]) == (b"\x89PNG\r\n\x1a\n", bytes([0, 0, 0, 64, 0, 0, 0, 64]))


def test_jupyter_finds_it(kernels: Path, manager: KernelSpecManager) -> None:
    """The specification would be installed and yet in no launcher."""
    directory = put(kernels, display_name="Mine")
    assert manager.find_kernel_specs() == {"ssh_python": str(directory)}
    assert (kernels / "ssh_python" / "kernel.json").is_file()


def test_everybody_can_read_it(kernels: Path) -> None:
    """Root's umask would keep a shared specification from everybody else."""
    before = os.umask(0o077)
    try:
        directory = put(kernels, spark=SparkOptions())
    finally:
        os.umask(before)
    for path in (directory, *directory.rglob("*")):
        executable = path.is_dir() or path.name == "run.sh"
        assert stat.S_IMODE(path.stat().st_mode) == (0o755 if executable else 0o644), path


def test_an_existing_one_is_refused(kernels: Path) -> None:
    """A specification that somebody adjusted by hand would be lost."""
    directory = put(kernels)
    (directory / "kernel.json").write_text("mine")
    with pytest.raises(KernelSpecError) as caught:
        put(kernels)
    assert str(caught.value) == (
        f"A kernel specification 'ssh_python' exists already in {directory}: give --replace to replace it, or --kernel-name for"
        " another name."
    )
    assert (directory / "kernel.json").read_text() == "mine"
    assert os.listdir(kernels) == ["ssh_python"]


def test_names_differ_only_in_more_than_case(kernels: Path) -> None:
    """Jupyter sees one name where there are two directories, and takes either."""
    (kernels / "SSH_Python").mkdir(parents=True)
    with pytest.raises(KernelSpecError, match=r"exists already in .*SSH_Python"):
        put(kernels)
    put(kernels, over=True)
    assert os.listdir(kernels) == ["ssh_python"]


def test_replace_leaves_nothing_of_the_old_one(kernels: Path) -> None:
    """Files of an older version would be shipped along for ever."""
    directory = put(kernels)
    (directory / "old.txt").touch()
    put(kernels, over=True, display_name="New")
    assert "old.txt" not in tree(directory)
    assert b'"New"' in tree(directory)["kernel.json"]
    assert os.listdir(kernels) == ["ssh_python"]


def broken_builds(kernels: Path) -> Iterator[tuple[BuiltSpec, str]]:
    good = build(SpecOptions(), str(kernels / "ssh_python"))
    yield replace(good, files=(*good.files, SpecFile("x", "remote/absent.py"))), "remote/absent.py is missing"
    yield replace(good, files=(SpecFile("logo-64x64.png/x", "errors.py"), *good.files)), "cannot be installed"


def test_a_replacement_that_fails_keeps_the_old_one(kernels: Path) -> None:
    """A disk that is full at the wrong moment would leave no kernel at all."""
    directory = put(kernels)
    before = tree(directory)
    for broken, message in broken_builds(kernels):
        with pytest.raises(KernelSpecError, match=message):
            install(broken, directory, replace=True)
        assert tree(directory) == before
        assert os.listdir(kernels) == ["ssh_python"]


def test_a_rename_that_fails_puts_the_old_one_back(kernels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the two renames the old specification is away; an interrupt there would lose it."""
    directory = put(kernels)
    before = tree(directory)
    real = os.rename

    def failing(source: Path, target: Path) -> None:
        if Path(source).name == "new":
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(KeyboardInterrupt):
        put(kernels, over=True, display_name="New")
    assert tree(directory) == before
    assert os.listdir(kernels) == ["ssh_python"]


def test_nobody_sees_half_a_specification(
    kernels: Path, manager: KernelSpecManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that looks meanwhile would offer a kernel without its launcher, or one with a strange name."""
    seen: list[dict[str, str]] = []
    real = os.rename

    def looking(source: Path, target: Path) -> None:
        seen.append(manager.find_kernel_specs())
        real(source, target)

    monkeypatch.setattr(os, "rename", looking)
    put(kernels)
    assert seen == [{}]


def test_a_place_without_permission(kernels: Path) -> None:
    """Without sudo the default place ends in a traceback that does not say what else to do."""
    kernels.mkdir()
    kernels.parent.chmod(0o755)
    kernels.chmod(0o555)
    root = os.geteuid() == 0
    if root:
        os.chown(kernels.parent, 65534, 65534)
        os.seteuid(65534)
    try:
        with pytest.raises(KernelSpecError) as caught:
            put(kernels)
    finally:
        if root:
            os.seteuid(0)
        kernels.chmod(0o755)
    assert str(caught.value) == (
        f"The kernel specification cannot be installed in {kernels}/ssh_python (Permission denied): use --user or --sys-prefix,"
        " or run the command with sudo."
    )


def test_a_place_that_cannot_be(tmp_path: Path) -> None:
    """Other errors of the system would end in a traceback, too."""
    (tmp_path / "file").touch()
    with pytest.raises(KernelSpecError, match=r"cannot be installed in .*: Not a directory\."):
        put(tmp_path / "file" / "kernels")


def test_targets(manager: KernelSpecManager, tmp_path: Path) -> None:
    """The page's directories would not be the ones that are written to."""
    system = InstallTarget().directory("ssh_python", manager)
    assert system == Path("/usr/local/share/jupyter/kernels/ssh_python")
    assert InstallTarget(user=True).directory("a", manager) == Path(manager.user_kernel_dir, "a")
    assert InstallTarget(prefix=str(tmp_path)).directory("a", manager) == tmp_path / "share/jupyter/kernels/a"
    assert InstallTarget(prefix="~/p").directory("a", manager) == Path.home() / "p/share/jupyter/kernels/a"
    with pytest.raises(KernelSpecError, match="choose one of --user, --sys-prefix and --prefix"):
        InstallTarget(user=True, prefix="/x")


def test_only_ours_are_found(
    kernels: Path, manager: KernelSpecManager, caplog: pytest.LogCaptureFixture
) -> None:
    """`list` would show, and `remove` would delete, kernels of others; or one broken file would hide all."""
    put(kernels, remote_hosts=("a", "u@b:22"))
    put(kernels, kernel_name="other")
    for name, content in {
        "local": '{"argv": [], "display_name": "L", "language": "x"}',
        "rubbish": "{",
        "array": "[]",
        "odd": '{"metadata": {"kernel_provisioner": []}}',
    }.items():
        (kernels / name).mkdir()
        (kernels / name / "kernel.json").write_text(content)
    found = find_installed(manager)
    assert [(spec.name, spec.display_name, spec.remote_hosts) for spec in found] == [
        ("other", "Python SSH", None),
        ("ssh_python", "Python SSH", ("a", "u@b:22")),
    ]


def test_remove_takes_a_link_but_not_what_it_points_to(
    kernels: Path, manager: KernelSpecManager, tmp_path: Path
) -> None:
    """A specification that several places link to would vanish from all of them."""
    real = put(tmp_path / "shared")
    kernels.mkdir()
    (kernels / "ssh_python").symlink_to(real)
    remove(find_installed(manager)[0], manager)
    assert os.listdir(kernels) == []
    assert (real / "kernel.json").is_file()
