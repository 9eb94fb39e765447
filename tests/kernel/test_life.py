"""A kernel's life cycle: it starts quickly, is quiet when idle, and leaves nothing behind however it ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import driver
import psutil
import pytest
from driver import PROMPT, SETUP, Kernel, kill
from server import server

pytestmark = [pytest.mark.kernel, pytest.mark.ranks("own")]

GONE_S = 10.0  # after a kernel's end, however it came about, nothing runs any more


def used_s(processes: list[psutil.Process]) -> dict[int, float]:
    return {process.pid: sum(process.cpu_times()[:2]) for process in processes}


def share_of_a_core(processes: list[psutil.Process], seconds: float) -> dict[int, float]:
    before, begun = used_s(processes), time.monotonic()
    time.sleep(seconds)
    elapsed = time.monotonic() - begun
    return {pid: (after - before[pid]) / elapsed for pid, after in used_s(processes).items()}


def quiet(shares: dict[int, float]) -> bool:
    return all(share < 0.02 for share in shares.values())


def test_from_start_to_shutdown(tmp_path: Path, no_trace: None) -> None:
    """A kernel installed for three ranks: started, restarted, shut down."""
    prefix = tmp_path / "prefix"
    command = [
        sys.executable,
        "-m",
        "lens_magic.cli",
        "kernel",
        "install",
        "--prefix",
        prefix,
        "--name",
        "three",
        "--ranks",
        "3",
    ]
    subprocess.run(command, check=True, timeout=60, stdout=subprocess.DEVNULL)

    begun = time.monotonic()
    with driver.kernel(tmp_path, "three", kernel_dir=prefix / "share" / "jupyter" / "kernels") as kernel:
        assert time.monotonic() - begun < 3.0
        heavy = "[name for name in ('torch', 'transformers', 'deepspeed', 'pandas', 'xarray') if name in sys.modules]"
        assert kernel.value(f"import sys\n{heavy}") == []
        kernel.ok(SETUP)
        ahead = ["torch", "transformers"]  # which ranks import while the user types; three, as its specification says
        deadline = time.monotonic() + 120
        while kernel.value("call(faulty.heavy)") != [[], ahead, ahead]:
            assert time.monotonic() < deadline
            time.sleep(1)  # they import between calls
        assert kernel.value("__import__('os').environ.get('LENS_RANKS')") is None

        processes = kernel.processes()
        assert {kernel.pid, *kernel.pids()} <= {process.pid for process in processes}
        deadline = time.monotonic() + 60
        while not quiet(shares := share_of_a_core(processes, 3.0)):  # at first they may have something to do still
            assert time.monotonic() < deadline, shares

        kernel.manager.restart_kernel()
        kernel.client.wait_for_ready(timeout=60)
        assert all(not process.is_running() or process.status() == psutil.STATUS_ZOMBIE for process in processes)
        kernel.ok(SETUP)
        again = kernel.pids()
        assert len(again) == 3
        assert not {process.pid for process in processes} & {process.pid for process in kernel.processes()}

        kernel.manager.shutdown_kernel()
        assert driver.gone(kernel.mark, 5.0) == []


def test_shut_down_while_a_cell_runs(tmp_path: Path, no_trace: None) -> None:
    """One that no interrupt ends, as an import: Jupyter ends a kernel that is still there after some seconds."""
    with driver.kernel(tmp_path, LENS_RANKS="2") as kernel:
        kernel.ok(SETUP)
        assert len(kernel.pids()) == 2
        ignoring = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)"
        kernel.start(f"{ignoring}\nprint('here')\nwhile True: pass").says("here")
        kernel.manager.shutdown_kernel()
        assert driver.gone(kernel.mark, GONE_S) == []


def test_idle_ranks_with_a_model(kernel: Kernel) -> None:
    kernel.value("tokens()")
    time.sleep(0.5)
    shares = share_of_a_core(kernel.processes(), 3.0)
    assert len(shares) >= 3  # both ranks, and MPI's daemon
    assert quiet(shares), shares


def test_two_kernels_and_the_sudden_end_of_one(kernel: Kernel, checkpoint: Path, tmp_path: Path, no_trace: None) -> None:
    expected = kernel.value("tokens()")
    with driver.kernel(tmp_path, LENS_RANKS="2") as other:
        other.ok(SETUP)
        here = kernel.start("repeated = [tokens() for _ in range(20)]")
        reply = other.ok(f"%lens load {checkpoint}")
        loaded, whole = reply.stdout.splitlines()
        assert "on 2 ranks " in loaded
        assert whole.startswith("every rank keeps all of: ")
        assert reply.stderr == ""  # what libraries say while they are imported is kept from the user
        assert other.value("[tokens() for _ in range(5)]") == [expected] * 5
        assert here.wait().status == "ok"
        assert kernel.value("repeated == [tokens()] * 20")

        cell = other.start(f"%%lens -n 500 --ignore-eos\n{PROMPT}")
        cell.until(lambda reply: len(reply.stdout) > 20)
        kill(other.pid)
        assert driver.gone(other.mark, GONE_S) == []
    assert kernel.value("tokens()") == expected


def test_another_number_of_ranks(kernel: Kernel, checkpoint: Path) -> None:
    """One rank in the kernel's own process, and back; the same code, the same tokens, the same interrupt."""
    expected, before = kernel.value("tokens()"), kernel.pids()
    assert "on 1 rank " in kernel.ok(f"%lens load {checkpoint} --ranks 1").stdout
    assert kernel.pids() == before[:1]
    assert driver.alive(before[1]) is False
    assert kernel.value("tokens()") == expected
    kernel.ok("call(faulty.watch, ('token', 3), 1.0)")
    cell = kernel.start(f"%%lens -n 300 --ignore-eos -o partial\n{PROMPT}").says("paused")
    kernel.interrupt()
    assert cell.wait().ename == "KeyboardInterrupt"
    assert kernel.value("partial.output_ids") == expected[:4]
    assert "on 1 rank " in kernel.ok("%lens restart").stdout
    assert "on 3 ranks " in kernel.ok(f"%lens load {checkpoint} --ranks 3").stdout
    assert kernel.value("tokens()") == expected
    assert "on 2 ranks " in kernel.ok(f"%lens load {checkpoint} --ranks 2").stdout
    assert kernel.value("tokens()") == expected


def wait_for_ranks(mark: str) -> None:
    """Wait until a kernel's ranks hear that it has ended: they are connected to it, and read."""
    deadline = time.monotonic() + driver.PATIENCE_S
    while not any(driver.connected(process.pid) for process in driver.marked(mark)):
        assert time.monotonic() < deadline, "there are no ranks"
        time.sleep(0.2)
    time.sleep(1.0)


def test_an_interrupted_demo(tmp_path: Path, no_trace: None) -> None:
    """Of the tutorial's cells one is always running while the ranks start."""
    pytest.importorskip("nbclient")
    env = driver.environment(tmp_path, LENS_RANKS="2")
    command = [sys.executable, "-m", "lens_magic.cli", "demo", "--out", str(tmp_path / "out")]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as demo:
        wait_for_ranks(env[driver.MARK])
        demo.send_signal(signal.SIGINT)
        said, complaints = demo.communicate(timeout=60)
    assert (demo.returncode, said) == (130, "")
    assert complaints.splitlines()[-1] == "lens-magic: interrupted"
    assert "Traceback" not in complaints
    assert driver.gone(env[driver.MARK], GONE_S) == []


def test_the_sudden_end_of_a_jupyter_server(tmp_path: Path, no_trace: None) -> None:
    pytest.importorskip("jupyter_server")
    with server(tmp_path, LENS_RANKS="2") as running:
        running.ask("kernels", {"name": "lens"})
        wait_for_ranks(running.mark)
        assert len(driver.marked(running.mark)) >= 4  # server, kernel, MPI's daemon, rank 1
        kill(running.pid)
        assert driver.gone(running.mark, GONE_S) == []
