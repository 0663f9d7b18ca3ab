"""A forked kernel is like one that was started: the same questions are put to one of each, and their answers are equal."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.manager import AsyncKernelManager

from tests.applications import test_protocol
from tests.applications.desk import Desk
from tests.cluster.real_kernels import prefork_of, provisioner_of, run, running, warm

if TYPE_CHECKING:
    from distributed_provisioner.testing.namespaces import Cluster

pytestmark = pytest.mark.cluster

PROBES = {
    "environment": "import os; print(sorted((n, v) for n, v in os.environ.items() if n != 'KERNEL_ID'))",
    "own kernel id": """
        import os
        print(os.environ['KERNEL_ID'] in open('/proc/self/cmdline').read(), end=' ')
        print('KERNEL_ID=' + os.environ['KERNEL_ID'] in open('/proc/self/environ').read())
    """,
    "environment of a child": "!env | grep -v -e ^KERNEL_ID= -e ^_= | sort",
    "directory": "import os; print(os.getcwd(), os.path.realpath('/proc/self/cwd'))",
    "time zone": "import time; print(time.tzname, time.timezone, time.localtime(0)[:6])",
    "argv": "import sys; print([item.rpartition('/')[2] for item in sys.argv])",
    "original argv": "import sys; print([p for p in sys.orig_argv if 'response' not in p and '/r' not in p and len(p) != 36])",
    "command line": """
        print([p for p in open('/proc/self/cmdline').read().rstrip(chr(0)).split(chr(0)) if not p.endswith('/r') and len(p) != 36])
    """,
    "name of the process": "print(open('/proc/self/comm').read())",
    "executable": "import sys, os; print(sys.executable, sys.prefix, os.readlink('/proc/self/exe'))",
    "flags": "import sys; print(sys.flags, sys.warnoptions, sys._xoptions, sys.dont_write_bytecode)",
    "sys.path": "import sys; print(sys.path)",
    "import of what lies beside": """
        import importlib.util
        names = ('listener', 'prefork', 'prefork_template', 'launch_ipykernel', 'kernels')
        print([importlib.util.find_spec(n) is not None for n in names])
    """,
    "modules": """
        import sys
        print([n for n in ('prefork_template', 'launch_ipykernel', 'numpy', 'pandas', 'matplotlib') if n in sys.modules])
    """,
    "__main__": """
        import sys
        main = sys.modules['__main__']
        print(main.__name__, getattr(main, '__file__', None), main.__spec__, main.__dict__ is globals(), __name__)
    """,
    "namespace": "print(sorted(n for n in globals() if not n.startswith('_')))",
    "class of the application": """
        from ipykernel.kernelapp import IPKernelApp
        print(type(IPKernelApp.instance()).__module__, type(IPKernelApp.instance()).__qualname__, IPKernelApp.instance().extra_args)
    """,
    "signals": """
        import signal
        def name(handler): return getattr(handler, '__name__', handler)
        print([(s.name, name(signal.getsignal(s))) for s in signal.valid_signals() if isinstance(s, signal.Signals)])
        with open('/proc/self/status') as status:
            print([line for line in status if line.startswith(('SigBlk', 'SigIgn', 'SigCgt'))])
    """,
    "limits": "import resource; print([resource.getrlimit(n) for n in range(16)], open('/proc/self/limits').read())",
    "umask": "import os; m = os.umask(0); os.umask(m); print(oct(m))",
    "user and groups": "import os; print(os.getresuid(), os.getresgid(), os.getgroups())",
    "priority": "import os; print(os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0), sorted(os.sched_getaffinity(0)))",
    "cgroup": "print(open('/proc/self/cgroup').read(), open('/proc/self/oom_score_adj').read())",
    "session and group": "import os; print(os.getsid(0) == os.getpid() == os.getpgrp(), os.getppid() > 1)",
    "parent": "import os; print('serve' in open(f'/proc/{os.getppid()}/cmdline').read())",
    "own pid": """
        import os, threading, multiprocessing, psutil, time
        print(os.getpid() == threading.main_thread().native_id == threading.get_native_id() == multiprocessing.current_process().pid)
        print(time.time() - psutil.Process().create_time() < 300, threading.current_thread() is threading.main_thread())
    """,
    "threads": """
        import threading
        print(sorted(type(t).__name__ for t in threading.enumerate()))
    """,
    "files that are open": """
        import os, stat
        def kind(n):
            try:
                target = os.path.basename(os.readlink(f'/proc/self/fd/{n}')).partition(':')[0]
                return stat.S_IFMT(os.stat(f'/proc/self/fd/{n}').st_mode), os.get_inheritable(int(n)), target
            except OSError:
                return ()
        found = [kind(n) for n in os.listdir('/proc/self/fd')]
        import collections; print(collections.Counter(k for k in found if k and 'log' not in k[2]))
    """,
    "standard streams": """
        import os, sys
        print(os.readlink('/proc/self/fd/0'), sys.__stdin__.encoding, sys.__stdout__.encoding)
        print(sys.__stdout__.line_buffering, sys.__stderr__.errors)
        print(os.readlink('/proc/self/fd/2') == os.readlink(f'/proc/self/fd/{sys.stdout._original_stdstream_copy}'))
    """,
    "locale": "import locale, sys; print(locale.setlocale(locale.LC_ALL), sys.getfilesystemencoding(), locale.getpreferredencoding())",
    "temporary names": "import tempfile; print(tempfile.gettempdir(), tempfile.tempdir)",
    "profile": "ip = get_ipython(); print(ip.profile, ip.profile_dir.location, ip.ipython_dir)",
    "start-up files": "import glob; print(glob.glob(get_ipython().profile_dir.location + '/startup/*'), from_startup)",
    "history": """
        h = get_ipython().history_manager
        print(h.enabled, h.hist_file, h.session_number > 0, h.db is not None)
    """,
    "magics": "print(sorted(get_ipython().magics_manager.lsmagic()['line']))",
    "warnings": "import warnings; print(warnings.filters)",
    "loggers": """
        import logging
        root = logging.getLogger()
        print(root.handlers, root.level, sorted(root.manager.loggerDict))
    """,
    "log's clock": "import logging, time; print(0 <= logging.makeLogRecord({}).relativeCreated < 60_000)",
    "process": "import subprocess; print(subprocess.run(['sh', '-c', 'echo out; exit 3'], capture_output=True))",
    "exit status of a child": """
        import os
        pid = os.fork()
        if pid == 0: os._exit(7)
        print(os.waitpid(pid, 0)[1])
    """,
    "shell": "!echo from a shell; exit 4",
    "exit code of a shell": "print(_exit_code)",
    "system": "import os; print(os.system('exit 5'))",
    "multiprocessing by fork": """
        import multiprocessing
        with multiprocessing.get_context('fork').Pool(2) as pool: print(pool.map(abs, [-1, -2]))
    """,
    "multiprocessing by spawn": """
        import multiprocessing
        with multiprocessing.get_context('spawn').Pool(1) as pool: print(pool.map(abs, [-1, -2]))
    """,
    "multiprocessing by forkserver": """
        import multiprocessing
        with multiprocessing.get_context('forkserver').Pool(1) as pool: print(pool.map(abs, [-1, -2]))
    """,
    "shared memory": """
        from multiprocessing import shared_memory
        m = shared_memory.SharedMemory(create=True, size=10); m.buf[:2] = b'ab'; print(bytes(m.buf[:2])); m.close(); m.unlink()
    """,
    "threads that run": """
        import concurrent.futures as f
        with f.ThreadPoolExecutor(3) as pool: print(list(pool.map(abs, [-1, -2])))
    """,
    "asyncio": "import asyncio; print(await asyncio.gather(asyncio.sleep(0.01, 1), asyncio.to_thread(lambda: 2)))",
    "child of asyncio": """
        import asyncio
        p = await asyncio.create_subprocess_exec('sh', '-c', 'echo hello; exit 6', stdout=-1)
        print(await p.communicate(), p.returncode)
    """,
    "hooks of a fork": """
        import os
        seen = []
        os.register_at_fork(before=lambda: seen.append('before'), after_in_parent=lambda: seen.append('after'))
        pid = os.fork()
        if pid == 0: os._exit(0)
        os.waitpid(pid, 0); print(seen)
    """,
    "matplotlib": """
        import matplotlib, matplotlib.pyplot as plt
        plt.plot([1, 2]); print(matplotlib.get_backend(), type(plt.gcf().canvas).__name__, plt.get_fignums())
    """,
    "matplotlib's magic": "%matplotlib inline\nimport matplotlib; print(matplotlib.rcParams['backend'])",
    "numpy": "import numpy as n; print((n.ones((400, 400)) @ n.ones((400, 400))).sum(), n.linalg.norm(n.ones(9)))",
    "pandas": "import pandas as p; print(p.Timestamp('2024-01-01').tz_localize('Europe/Berlin'), p.DataFrame({'a': [1]}).sum())",
    "autoreload": """
        import os, sys, tempfile, time
        d = tempfile.mkdtemp(); sys.path.insert(0, d)
        def put(n):
            with open(d + '/reloaded_one.py', 'w') as file: file.write(f'x = {n}  #' + 'y' * n)
        put(1)
        %load_ext autoreload
        %autoreload 2
        import reloaded_one
        print(reloaded_one.x)
        put(2); time.sleep(0.01)
        os.utime(d + '/reloaded_one.py', (2e9, 2e9))
    """,
    "autoreload, next cell": "print(reloaded_one.x)",
    "autoreload, off": "%autoreload 0\nimport sys; sys.path.pop(0)",
    "sqlite": "import sqlite3; c = sqlite3.connect(':memory:'); print(c.execute('select 1').fetchall())",
    "TLS": "import ssl; print(ssl.create_default_context().check_hostname, len(ssl.RAND_bytes(8)))",
    "name of the host": "import socket; print(socket.gethostname(), socket.getaddrinfo('localhost', 1)[0][0])",
    "core": "import faulthandler, sys; print(faulthandler.is_enabled(), sys.getswitchinterval(), sys.getrecursionlimit())",
    "hooks of the interpreter": """
        import sys, threading
        print(sys.excepthook, sys.displayhook.__class__, sys.gettrace(), sys.getprofile(), threading.excepthook, sys.breakpointhook)
    """,
    "pdb": "import pdb; print(pdb.Pdb, pdb.set_trace)",
    "comm": "import comm; c = comm.create_comm(target_name='t', data={}); print(type(c), c.primary); c.close()",
    "audit and tracing": "import tracemalloc, gc; print(tracemalloc.is_tracing(), gc.isenabled(), gc.get_threshold(), gc.callbacks)",
    "page": "get_ipython().run_line_magic('pinfo', 'abs')",
    "timer": "r = get_ipython().run_line_magic('timeit', '-o -n1 -r1 -q 1'); print(r is not None)",
    "resource usage": "import time, resource; print(time.process_time() < 30, resource.getrusage(resource.RUSAGE_CHILDREN).ru_nsignals)",
}
"""Code whose output is compared, in this order."""

ONCE = {
    "random numbers": "import random; print(random.random())",
    "numpy's random numbers": "import numpy; print(numpy.random.rand())",
    "numpy's generators": "import numpy; print(numpy.random.default_rng().random())",
    "temporary name": "import tempfile; print(tempfile.mktemp())",
    "uuid": "import uuid; print(uuid.uuid4())",
    "key between processes": "import multiprocessing; print(bytes(multiprocessing.current_process().authkey))",
    "random bytes": "import secrets; print(secrets.token_hex())",
    "OpenSSL": "import ssl; print(ssl.RAND_bytes(8))",
}
"""Code whose output differs between any two kernels."""

STARTUP = "from_startup = 'seen by ' + __name__\n"


@pytest.fixture(scope="module", autouse=True)
def specs(cluster: Cluster, desk: Desk) -> Iterator[None]:
    """`cold_python` and `forked_python`, which differ in one option; a start-up file; and the environment of a user."""
    env = {"TZ": "Asia/Kolkata", "FROM_SPEC": "${HOME}/x", "PYTHONWARNINGS": "default"}
    for name, prefork in (("cold_python", False), ("forked_python", True), ("loaded_python", True)):
        desk.copy("ssh_python", name)
        desk.change(name, env=env, prefork=prefork, remote_hosts=["host1"])
    desk.change("loaded_python", preload=["numpy", "pandas", "matplotlib.pyplot", "scipy.linalg"])
    startup = ".ipython/profile_default/startup"
    script = f"mkdir -p ~/{startup} && printf %s {shlex.quote(STARTUP)} > ~/{startup}/10-test.py"
    cluster["host1"].run("sh", "-c", script)
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("GP_", "KERNEL_", "JUPYTER_"))]:
            patch.delenv(name)
        for name, value in desk.settings.items():
            patch.setenv(name, value)
        yield
    cluster["host1"].run("sh", "-c", f"rm ~/{startup}/10-test.py")


async def answers(name: str, probes: dict[str, str]) -> dict[str, str]:
    found = {}
    async with running(name) as (manager, client):
        assert prefork_of(manager)["used"] == (name != "cold_python"), prefork_of(manager)
        # What probes leave open is told on the other stream, before or after their answer.
        await run(client, "import warnings; warnings.simplefilter('ignore', ResourceWarning)")
        for probe, code in probes.items():
            try:
                text = await run(client, textwrap.dedent(code).strip())
            except RuntimeError as error:
                text = f"raised {error}"
            text = re.sub(r"0x[0-9a-f]+", "0x", text)
            text = re.sub(r"ipykernel_\d+", "ipykernel_N", text)
            found[probe] = text.replace(name, "SPEC")
    return found


@pytest.fixture(scope="module")
def compared(desk: Desk) -> dict[str, dict[str, str]]:
    """The answers of one kernel of each kind."""

    async def ask() -> dict[str, dict[str, str]]:
        await warm("forked_python")
        await warm("loaded_python")
        names = ("cold_python", "forked_python", "loaded_python")
        return {name: await answers(name, PROBES) for name in names}

    return asyncio.run(ask())


@pytest.mark.parametrize("probe", PROBES)
def test_a_forked_kernel_answers_like_a_cold_one(compared: dict[str, dict[str, str]], probe: str) -> None:
    """If one fails: code that works in one kernel does something else in the next, for no reason that its user could see."""
    cold, forked = compared["cold_python"][probe], compared["forked_python"][probe]
    assert not cold.startswith("raised"), cold
    assert forked == cold


NOT_WITH_PRELOAD = ("modules", "loggers", "warnings")
"""What is imported before shows there."""


@pytest.mark.parametrize("probe", [probe for probe in PROBES if probe not in NOT_WITH_PRELOAD])
def test_a_kernel_with_preloaded_modules_answers_like_a_cold_one(
    compared: dict[str, dict[str, str]], probe: str
) -> None:
    """If one fails: `preload` changes what a kernel does, not only when it imports."""
    assert compared["loaded_python"][probe] == compared["cold_python"][probe]


async def test_no_two_kernels_share_random_numbers_names_or_keys() -> None:
    """If it fails: experiments that should be independent have the same numbers, and temporary files collide."""
    await warm("loaded_python")
    first, second = await answers("loaded_python", ONCE), await answers("loaded_python", ONCE)
    assert not [probe for probe in ONCE if first[probe] == second[probe]]


class TestForkedKernel(test_protocol.TestKernelOnAHost):
    """Jupyter's own suite, once more. If one fails: some front end finds a forked kernel wanting."""

    kernel_name = "forked_python"

    @classmethod
    def setUpClass(cls) -> None:
        asyncio.run(warm("forked_python"))
        super().setUpClass()

    def test_it_is_a_fork(self) -> None:
        """If it fails: the suite says nothing of forks."""
        assert prefork_of(self.km)["used"], prefork_of(self.km)


async def test_the_debugger_stops_in_a_forked_kernel() -> None:
    """If it fails: breakpoints work in the first kernel of a day, and in no other."""
    await warm("forked_python")
    await test_protocol.stop_at_a_breakpoint("forked_python")


async def talk(client: AsyncKernelClient, code: str, answer: str) -> str:
    """What a cell prints that asks once for a line of input."""
    cell = client.execute(code, allow_stdin=True)
    await client.get_stdin_msg(timeout=15)
    client.input(answer)
    printed = ""
    while True:
        message = await client.get_iopub_msg(timeout=15)
        if message["parent_header"].get("msg_id") != cell:
            continue
        if message["msg_type"] == "stream":
            printed += message["content"]["text"]
        if message["content"].get("execution_state") == "idle":
            return printed.strip()


@pytest.mark.parametrize("name", ["cold_python", "forked_python"])
async def test_interrupts_input_and_exit_codes(name: str) -> None:
    """If it fails: a cell cannot be stopped, a question goes unheard, or nobody learns why a kernel is gone."""
    if name == "forked_python":
        await warm(name)
    async with running(name) as (manager, client):
        for code in ("import time; time.sleep(60)", "while True: pass", "input()"):
            cell = asyncio.ensure_future(run(client, code))
            await asyncio.sleep(0.7)
            await manager.interrupt_kernel()
            with pytest.raises(
                RuntimeError, match=r"KeyboardInterrupt|Interrupted by user|StdinNotImplemented"
            ):
                await asyncio.wait_for(cell, 15)
        assert await run(client, "print(1)") == "1"
        assert await talk(client, "print(input('? ') * 2)", "ab") == "abab"
        client.execute("import os; os._exit(23)")
        assert await asyncio.wait_for(provisioner_of(manager).wait(), 10) == 23
    async with running(name) as (manager, client):
        client.execute("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
        assert await asyncio.wait_for(provisioner_of(manager).wait(), 10) == -11


@pytest.mark.parametrize("name", ["cold_python", "forked_python"])
async def test_a_kernel_that_is_asked_to_leave_ends_in_order(name: str) -> None:
    """If it fails: what a notebook has registered for its end (`atexit`) is not run."""
    if name == "forked_python":
        await warm(name)
    mark = f"/tmp/left-{name}"  # on the host
    manager = AsyncKernelManager(kernel_name=name)
    await manager.start_kernel()
    client = manager.client()
    client.start_channels()
    await client.wait_for_ready(timeout=30)
    await run(client, f"import atexit, os; atexit.register(lambda: open({mark!r}, 'w').close())")
    await manager.shutdown_kernel()
    client.stop_channels()
    async with running(name) as (_, client):
        assert await run(client, f"import os; print(os.path.exists({mark!r})); os.remove({mark!r})") == "True"


async def test_a_restart_through_the_template_keeps_its_clients() -> None:
    """If it fails: restarting a kernel, which is what is done most often, is not faster, or loses its notebook."""
    await warm("forked_python")
    async with running("forked_python") as (manager, client):
        await run(client, "x = 1")
        await manager.restart_kernel(now=True)
        assert prefork_of(manager)["used"], prefork_of(manager)
        await client.wait_for_ready(timeout=30)
        assert await run(client, "print('x' in globals())") == "False"
