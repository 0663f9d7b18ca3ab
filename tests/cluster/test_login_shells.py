"""The environment of a login, for each shell that people have, over a real sshd."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from tests.cluster.real_kernels import run, running, write_spec

from distributed_provisioner.testing.errors import Unsupported

if TYPE_CHECKING:
    from distributed_provisioner.testing.namespaces import Cluster

pytestmark = pytest.mark.cluster

FILES = {
    "sh": (".profile", "export FROM_RC='a b'\numask 027"),
    "bash": (".bash_profile", "export FROM_RC='a b'\numask 027"),
    "zsh": (".zprofile", "export FROM_RC='a b'\numask 027"),
    "fish": (".config/fish/config.fish", "set -gx FROM_RC 'a b'\numask 027"),
    "tcsh": (".login", "setenv FROM_RC 'a b'\numask 027"),
}
ALWAYS_READ = {"bash": ".bashrc", "zsh": ".zshenv", "tcsh": ".cshrc", "fish": ".config/fish/config.fish"}
"""Read by the shell that runs sshd's command, too: what it prints comes before everything else."""
NOISE = 'echo noise\necho \'{"id": 1, "result": {}}\'\n'


@pytest.fixture(params=FILES)
def shell(request: pytest.FixtureRequest, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The shell of the user on host2, with a noisy startup file that sets a variable and the umask."""
    name: str = request.param
    monkeypatch.setenv("GP_UNAUTHORIZED_USERS", "")
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    host = cluster["host2"]
    before = host.run("sh", "-c", "getent passwd $(id -un) | cut -d: -f7").stdout.strip()
    try:
        host.run("usermod", "-s", path, cluster.user, user="root")
    except Unsupported as reason:
        pytest.skip(f"shells cannot be changed on these hosts: {reason}")
    file, lines = FILES[name]
    files = {file: NOISE + lines + "\n"}
    if name in ALWAYS_READ:
        files[ALWAYS_READ[name]] = NOISE + files.get(ALWAYS_READ[name], "")
    for where, text in files.items():
        host.run("sh", "-c", 'mkdir -p "$(dirname "$1")"; cat > "$1"', "sh", where, input=text.encode())
    yield name
    host.run("rm", "-f", *files)
    host.run("usermod", "-s", before, cluster.user, user="root")


async def test_login_environment_reaches_the_kernel(cluster: Cluster, shell: str) -> None:
    """If it fails: a kernel lacks what people set in their startup files, or noise in them keeps it from starting."""
    async with running(write_spec(remote_hosts=["host2"])) as (_, client):
        told = await run(
            client,
            "import json, os; print(json.dumps([os.environ.get('FROM_RC'), os.umask(0o22), os.environ['SHELL']]))",
        )
        variable, umask, path = json.loads(told)
        assert (variable, umask) == ("a b", 0o027)
        assert path.endswith(shell)
