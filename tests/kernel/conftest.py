"""One kernel on two ranks with a tiny model for all tests that leave it alive; fresh kernels for tests that end them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import driver  # noqa: E402
from driver import SETUP, Kernel  # noqa: E402


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import models

    return models.build("llama-gqa", tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="session")
def _shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    folder = tmp_path_factory.mktemp("shared")
    before = set(driver.shared_files())
    with driver.kernel(folder, LENS_RANKS="2") as shared:
        yield shared
        # After all that has been done to it and to its ranks, it ends in order and leaves nothing.
        shared.manager.shutdown_kernel()
        assert driver.gone(shared.mark, 10.0) == []
    assert set(driver.shared_files()) <= before
    assert driver.left_behind(folder) == []


@pytest.fixture
def kernel(_shared: Kernel, checkpoint: Path) -> Iterator[Kernel]:
    """A Lens kernel on two ranks that holds the tiny model; whatever the test does to its ranks is mended after it."""
    shared = _shared
    shared.ok(SETUP)
    if shared.run("call(faulty.arm, '')").status != "ok":
        shared.ok("%lens restart")
    if shared.value("(lens.status().model, len(lens.status().ranks))") != (str(checkpoint), 2):
        shared.ok(f"%lens load {checkpoint} --ranks 2")
    yield shared
    shared.run("call(faulty.arm, '')")


@pytest.fixture
def no_trace(tmp_path: Path) -> Iterator[None]:
    """The test leaves no shared memory and none of MPI's files."""
    before = set(driver.shared_files())  # the shared kernel's, which lives on
    yield
    assert set(driver.shared_files()) <= before
    assert driver.left_behind(tmp_path) == []
