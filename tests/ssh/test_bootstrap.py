"""The listener starts on a host where nothing was installed, whatever the user's shell and its start-up files are."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import pytest

from distributed_provisioner.ssh import bootstrap
from distributed_provisioner.ssh.bootstrap import MarkerSearch, TooMuchNoise, words

MARKER = "0123456789abcdef" * 2


@pytest.mark.parametrize("shell", ["sh", "bash", "dash", "zsh", "ksh", "csh", "tcsh", "fish"])
def test_the_command_means_the_same_to_every_login_shell(shell: str) -> None:
    """sshd hands it to whatever shell the user has."""
    path = shutil.which(shell)
    if path is None:
        pytest.skip(f"other platform: no {shell} here")
    done = subprocess.run(
        [path, "-c", bootstrap.remote_command(MARKER)],
        input=b"00000000",
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert f"\n{MARKER}\n".encode() in done.stdout
    assert b"zlib.error" in done.stderr  # it ran as far as unpacking the nothing that it was sent


def test_the_command_has_no_character_that_a_shell_could_take_amiss() -> None:
    """csh expands `!`, fish reads backslashes inside quotes, and a newline ends a command."""
    for user in (None, "alice"):
        command = bootstrap.remote_command(MARKER, user)
        script = command.removeprefix("exec /bin/sh -c '").removesuffix("'")
        assert not re.search(r"['!\\\n]", script)
    assert not re.search(r"[\"'!\\\n$`]", bootstrap.STUB)


def test_nothing_but_a_marker_gets_into_the_command() -> None:
    """No name of a host, user or kernel may ever be part of a shell line."""
    for text in ("x; touch /tmp/x", MARKER.upper(), MARKER + "\n", ""):
        with pytest.raises(ValueError, match="32 hex digits"):
            bootstrap.remote_command(text)
    for name in (
        "-u root",
        "-l",
        "a;b",
        "$(x)",
        "`x`",
        "a b",
        "a\n",
        "#0",
        "0",
        "..",
        "",
        "a'b",
        'a"b',
        "a\\b",
    ):
        for command in (bootstrap.remote_command, bootstrap.local_command):
            with pytest.raises(ValueError, match="not the name of an account"):
                command(MARKER, name)
    assert bootstrap.new_marker() != bootstrap.new_marker()


def test_the_source_that_is_shipped_is_complete() -> None:
    """A module that the listener imports and that is not shipped breaks every host but this one."""
    probe = "import json,sys,zlib;d=sys.stdin.buffer.read();print([n for n,_ in json.loads(zlib.decompress(d[8:]))],int(d[:8])==len(d)-8)"
    done = subprocess.run(
        [sys.executable, "-c", probe], input=bootstrap.preface(), capture_output=True, check=True
    )
    assert done.stdout.decode().strip() == f"{list(bootstrap.SOURCES)} True"


def test_noise_before_the_marker_is_kept_apart_however_it_is_cut() -> None:
    """Start-up files print what they like, and packets end where they like."""
    stream = b"Welcome\nno newline at the end\n" + MARKER.encode() + b'\n{"id": 1}\n'
    for cut in range(len(stream)):
        search = MarkerSearch(MARKER)
        assert search.feed(stream[:cut]) + search.feed(stream[cut:]) == b'{"id": 1}\n'
        assert search.noise == b"Welcome\nno newline at the end"


def test_endless_noise_is_given_up() -> None:
    """A forced command may print for ever."""
    search = MarkerSearch(MARKER)
    search.feed(b"x" * bootstrap.MAX_NOISE)
    with pytest.raises(TooMuchNoise):
        search.feed(b"x")


def test_a_hosts_words_are_made_fit_to_be_shown() -> None:
    """They end up in a log and in a browser's dialog."""
    said = words(b"\x1b[31mRed\x1b[0m alert\r\n\x00\x07\n\xff\xfe binary\n" + b"l\n" * 100)
    assert said == "Red alert / \ufffd\ufffd binary / l / l / l"
    assert len(words(b"x" * 5000)) == 500
