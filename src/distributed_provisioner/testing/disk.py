"""A host's root directory: the machine's own, copy-on-write, with accounts, keys and sshd's configuration of the host.

What a host changes lies in `upper` on a tmpfs. Whatever differs from the machine is written there before the
first mount: a user without root can then change directories that belong to the machine's root.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from pathlib import Path

from distributed_provisioner.testing import syscalls as sys_
from distributed_provisioner.testing.plan import HOST_KEY, SSHD_CONFIG, HostPlan, Plan

_VOLATILE = ("/tmp", "/run", "/dev/shm")
_OWN = ("proc", "sys", "dev", "tmp", "run")


class Disk:
    """What survives a power cut of one host."""

    def __init__(self, plan: Plan, host: HostPlan, directory: Path) -> None:
        self.plan, self.host, self.directory = plan, host, directory
        self.upper, self.work, self.root = (directory / name for name in ("upper", "work", "root"))
        directory.mkdir()
        sys_.mount("tmpfs", directory, "tmpfs", data="mode=755")
        for path in (self.upper, self.work, self.root):
            path.mkdir(mode=0o755)
        self._populate()

    # -- before the first boot ---------------------------------------------------------------------------------

    def _populate(self) -> None:
        plan, host = self.plan, self.host
        for path in plan.needed:
            self._make_searchable(Path(path))
        for hidden in plan.hidden:
            self._hide(Path(hidden))
        self._write("/etc/hostname", f"{host.name}\n")
        self._write("/etc/hosts", _hosts_file(plan))
        self._write_accounts()
        self._write(HOST_KEY, host.private_key, mode=0o600)
        self._write(SSHD_CONFIG, plan.sshd_config, mode=0o600)
        for path in ("/var/log", "/var/tmp"):
            self._directory(Path(path))
        for user in plan.users:
            if user.uid == 0:
                self._hide(Path(user.home, ".ssh"))
            else:
                self._hide(Path(user.home))

    def _directory(self, path: Path) -> Path:
        """`path` in the upper layer, with the modes and owners that the machine's directories have."""
        target = self.upper
        for part in path.parts[1:]:
            target = target / part
            if target.is_dir():
                continue
            target.mkdir()
            seen = Path("/", target.relative_to(self.upper))
            if seen.is_dir():
                status = seen.stat()
                target.chmod(stat.S_IMODE(status.st_mode))
                if not self.plan.rootless:
                    os.chown(target, status.st_uid, status.st_gid)
            else:
                target.chmod(0o755)
        return target

    def _write(self, path: str, text: str, mode: int = 0o644) -> None:
        target = self._directory(Path(path).parent) / Path(path).name
        target.write_text(text)
        target.chmod(mode)

    def _make_searchable(self, path: Path) -> None:
        for directory in reversed([path, *path.parents]):
            if directory.is_dir() and directory.stat().st_mode & 0o055 != 0o055 and not _volatile(directory):
                target = self._directory(directory)
                target.chmod(stat.S_IMODE(target.stat().st_mode) | 0o055)

    def _hide(self, path: Path) -> None:
        """Let `path` be absent on the host, unless something that the host needs lies below it."""
        if not _present(path) or _volatile(path) or self._is_needed(path):
            return
        os.mknod(self._directory(path.parent) / path.name, stat.S_IFCHR, os.makedev(0, 0))  # a whiteout

    def _is_needed(self, path: Path) -> bool:
        return any(path == Path(needed) or path in Path(needed).parents for needed in self.plan.needed)

    def _write_accounts(self) -> None:
        names = {user.name for user in self.plan.users}
        passwd = [line for line in _lines("/etc/passwd") if line.split(":")[0] not in names]
        group = [line for line in _lines("/etc/group") if line.split(":")[0] not in names - {"root"}]
        if self.plan.rootless:  # else sshd gives a terminal to a group that this user may not name
            group = [line for line in group if not line.startswith("tty:")]
        shadow = []
        for user in self.plan.users:
            # The last line of a uid or name would lose against an earlier one: ours come first.
            passwd.insert(0, f"{user.name}:x:{user.uid}:{user.gid}::{user.home}:{_shell()}")
            shadow.append(f"{user.name}:*:19000:0:99999:7:::")
            if user.name != "root":
                group.insert(0, f"{user.name}:x:{user.gid}:")
        self._write("/etc/passwd", "\n".join(passwd) + "\n")
        self._write("/etc/group", "\n".join(group) + "\n")
        self._write("/etc/shadow", "\n".join(shadow) + "\n", mode=0o600)

    # -- at each boot, inside the host's namespaces -------------------------------------------------------------

    def mount(self, mount_points: list[Path]) -> None:
        """Make the disk this mount namespace's root, with fresh /tmp, /run, /dev/shm and /proc."""
        root = self.root
        sys_.mount(self.upper, root, flags=sys_.MS_BIND)
        self._compose(Path("/"), mount_points)
        for path in _OWN:
            (root / path).mkdir(exist_ok=True)
        for path in ("dev", "sys"):
            sys_.mount(f"/{path}", root / path, flags=sys_.MS_BIND | sys_.MS_REC)
        sys_.mount("proc", root / "proc", "proc", sys_.MS_NOSUID | sys_.MS_NODEV | sys_.MS_NOEXEC)
        for path, mode in (("tmp", "1777"), ("run", "755"), ("dev/shm", "1777")):
            sys_.mount("tmpfs", root / path, "tmpfs", sys_.MS_NOSUID | sys_.MS_NODEV, data=f"mode={mode}")
        self._mount_terminals()
        self._show_volatile()
        (root / "run/sshd").mkdir(mode=0o755)
        os.chdir(root)
        sys_.mount(".", "/", flags=sys_.MS_MOVE)
        os.chroot(".")
        os.chdir("/")
        self._make_homes()

    def _compose(self, path: Path, mount_points: list[Path]) -> None:
        """Show a copy-on-write copy of `path`.

        The kernel refuses to copy a directory that something is mounted below to a user namespace (it would show
        what lies beneath), so such a directory is put together from its entries.
        """
        relative = path.relative_to("/")
        if not any(path in point.parents for point in mount_points):
            upper, work = self._directory(path), self.work / (str(relative).replace("/", "%") or "root")
            work.mkdir(exist_ok=True)
            options = f"lowerdir={path},upperdir={upper},workdir={work}"
            try:
                sys_.mount("overlay", self.root / relative, "overlay", data=options + self._user_option())
            except OSError:
                if self._is_needed(path):
                    raise
            return
        for entry in sorted(path.iterdir()):
            target = self._directory(path) / entry.name
            if entry.is_symlink():
                if not target.is_symlink():
                    target.symlink_to(entry.readlink())
            elif stat.S_ISCHR(target.lstat().st_mode if target.exists() else 0):
                continue  # hidden
            elif entry.is_file():
                self._copy_file(entry, target)
            elif entry.is_dir() and not (path == Path("/") and entry.name in _OWN):
                self._compose(entry, mount_points)

    def _copy_file(self, entry: Path, target: Path) -> None:
        if target.exists():
            return
        with contextlib.suppress(PermissionError):  # what this user cannot read, a host does not have
            if entry.stat().st_size > 1 << 20:
                target.touch()
                sys_.mount(entry, self.root / entry.relative_to("/"), flags=sys_.MS_BIND)
            else:
                shutil.copy(entry, target)

    def _user_option(self) -> str:
        return ",userxattr" if self.plan.rootless else ""

    def _mount_terminals(self) -> None:
        options = "newinstance,ptmxmode=0666,mode=620" + ("" if self.plan.rootless else ",gid=5")
        pts = self.root / "dev/pts"
        sys_.mount("devpts", pts, "devpts", sys_.MS_NOSUID | sys_.MS_NOEXEC, data=options)
        if not (self.root / "dev/ptmx").is_symlink():
            sys_.mount(pts / "ptmx", self.root / "dev/ptmx", flags=sys_.MS_BIND)

    def _show_volatile(self) -> None:
        """What is needed and lies in the machine's /tmp or /run: a copy-on-write copy, new at each boot."""
        needed = {path for path in map(Path, self.plan.needed) if _volatile(path) and path.is_dir()}
        layers = self.directory / "volatile"
        shutil.rmtree(layers, ignore_errors=True)
        for number, path in enumerate(sorted(needed)):
            if needed.isdisjoint(path.parents):
                target = self.root / path.relative_to("/")
                upper, work = layers / f"{number}/upper", layers / f"{number}/work"
                for directory in (target, upper, work):
                    directory.mkdir(parents=True)
                options = f"lowerdir={path},upperdir={upper},workdir={work}"
                sys_.mount("overlay", target, "overlay", data=options + self._user_option())
                if not self.plan.rootless:
                    target.chmod(0o755)

    def _make_homes(self) -> None:
        for user in self.plan.users:
            ssh = Path(user.home, ".ssh")
            if ssh.exists():
                continue  # not the first boot
            ssh.mkdir(parents=True)
            Path(user.home).chmod(Path(user.home).stat().st_mode & 0o7777 if user.uid == 0 else 0o700)
            ssh.chmod(0o700)
            keys = ssh / "authorized_keys"
            keys.write_text(self.plan.authorized_key)
            keys.chmod(0o600)
            if not self.plan.rootless:
                for path in (Path(user.home), ssh, keys):
                    os.chown(path, user.uid, user.gid)


def resize_tmpfs(directory: Path, full: bool) -> None:
    """Make a tmpfs as small as what is on it, or half of the memory again."""
    status = os.statvfs(directory)
    used = max(1, status.f_blocks - status.f_bfree) * status.f_frsize
    size = str(used) if full else "50%"
    sys_.mount("tmpfs", directory, "tmpfs", sys_.MS_REMOUNT, data=f"size={size}")


def _volatile(path: Path) -> bool:
    return any(path == (top := Path(name)) or top in path.parents for name in _VOLATILE)


def _present(path: Path) -> bool:
    try:
        path.lstat()
    except OSError:
        return False
    return True


def _shell() -> str:
    return shutil.which("bash") or "/bin/sh"


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


def _hosts_file(plan: Plan) -> str:
    lines = ["127.0.0.1 localhost", "::1 localhost", f"{plan.primary} primary"]
    lines += [f"{host.address} {host.name}" for host in plan.hosts]
    lines += [f"{host.address6} {host.name}" for host in plan.hosts if host.address6]
    return "\n".join(lines) + "\n"


def mount_points() -> list[Path]:
    """What is mounted in this mount namespace, without /."""
    points = {
        Path(line.split()[4].encode().decode("unicode_escape")) for line in _lines("/proc/self/mountinfo")
    }
    return sorted(points - {Path("/")})
