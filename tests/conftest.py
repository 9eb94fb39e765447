"""Shared fixtures: small checkpoints, one group of ranks at a time, and a private folder for everything written."""

from __future__ import annotations

import errno
import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# Spawned ranks import from this folder, and the benchmarks, by name; MPI's daemon hands on the environment it started with.
HERE = Path(__file__).parent
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH")]))
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"
# The tests' models are too small for several threads to gain anything, and threads that wait for each other on a processor
# that has something else to do as well lose a lot.
os.environ.setdefault("OMP_NUM_THREADS", "1")

RANK_COUNTS = (1, 2, 3, 4)


def pytest_collection_finish(session: pytest.Session) -> None:
    """What was imported by now stays: the collector need not look through it again and again.

    Raises:
        pytest.UsageError: this pytest and this pytest-xdist do not group tests together.
    """
    grouped = getattr(session.config.option, "loadgroup", False)  # in a process that shares the tests
    if grouped and not all("@" in item.nodeid for item in session.items):
        raise pytest.UsageError("pytest-xdist cannot group the tests of this pytest; the versions of constraints.txt would do")
    gc.collect()
    gc.freeze()


def pytest_itemcollected(item: pytest.Item) -> None:
    """A test with a number of ranks among its parameters is marked by it; any other that starts ranks says how many.

    Of the processes that share the tests, each takes all on as many ranks, or another file, at a time. pytest-xdist reads these
    groups before the tests are put in order.

    Raises:
        pytest.UsageError: it does not say, and would start ranks anew among tests of another number.
    """
    marker = item.get_closest_marker("ranks")
    if marker is None:
        if _ranks_of(item):
            item.add_marker("ranks")
    elif not marker.args:
        raise pytest.UsageError(f"{item.nodeid}: mark.ranks(2), say, or mark.ranks('own') where it starts its own")
    count = _ranks_of(item)
    item.add_marker(pytest.mark.xdist_group(f"{count} ranks" if count else item.path.name))


@pytest.hookimpl(trylast=True)  # after pytest's own order
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever runs on as many ranks runs together: to start ranks takes longer than most tests.

    Of that, what has a checkpoint's name for a parameter runs by its name: it is loaded once (`once.load`). What takes longest
    comes first, so that processes that share the tests end together.
    """

    def place(item: pytest.Item) -> tuple[int, int, str]:
        if count := _ranks_of(item):
            return 0, -count, str(_parameters(item).get("name", ""))
        return 1 + (item.path.parent == HERE), 0, ""  # browsers and kernels before the rest

    items.sort(key=place)


def _parameters(item: pytest.Item) -> dict[str, Any]:
    return item.callspec.params if hasattr(item, "callspec") else {}


def _ranks_of(item: pytest.Item) -> int:
    """On how many of the session's ranks a test runs: of those that have them as a parameter, or say so in their marker."""
    count = _parameters(item).get("ranks")
    if isinstance(count, int):
        return count
    marker = item.get_closest_marker("ranks")
    return marker.args[0] if marker and marker.args and isinstance(marker.args[0], int) else 0


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of a named random checkpoint, written at the first call."""
    import models

    folder = tmp_path_factory.mktemp("checkpoints")
    return lambda name: models.build(name, folder)


@pytest.fixture(scope="session")
def large(checkpoints: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """About 290 MB of bfloat16 weights, tied embeddings, with a small checkpoint's tokenizer."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    folder = tmp_path_factory.mktemp("large")
    small = checkpoints("llama-gqa")
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=16_000,
        hidden_size=896,
        intermediate_size=3584,
        num_hidden_layers=10,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=64,
        tie_word_embeddings=True,
        max_position_embeddings=512,
        dtype="bfloat16",
    )
    Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).write_bytes((small / file).read_bytes())
    yield folder
    for file in folder.iterdir():
        file.unlink()


@pytest.fixture(autouse=True)
def kept_runs_go_to_a_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LENS_RUNS_DIR", str(tmp_path / "runs"))


@pytest.fixture
def fill_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From the call on no file of bytes can be written."""

    def full(*given: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return lambda: monkeypatch.setattr(Path, "write_bytes", full)


@pytest.fixture(scope="session", autouse=True)
def ranks_end_with_the_tests() -> Iterator[None]:
    yield
    from lens_magic.ranks.environment import remove_for_good, remove_stale
    from lens_magic.session import current

    current().close()
    remove_for_good()  # a process that shares the tests may be ended before its exit functions
    remove_stale(Path("/dev/shm"))  # of processes that tests have killed, as the next start would


@pytest.fixture(scope="session", params=RANK_COUNTS, ids=lambda count: f"{count}-ranks")
def ranks(request: pytest.FixtureRequest) -> int:
    """Every number of ranks in turn; all modules' tests of one number run together, so that ranks start once."""
    return int(request.param)


@pytest.fixture
def with_gpus() -> Iterator[Callable[..., Any]]:
    """Starts ranks anew, each with a pretended GPU."""
    import pretended

    from lens_magic.session import current

    def start(count: int = 1, **options: Any) -> Any:
        current().close()
        current().default_ranks = count
        group = current().group
        group.call(pretended.begin, **options)
        return group

    before = current().default_ranks
    yield start
    pretended.end()  # first: there is no NCCL to abort
    current().close()
    current().default_ranks = before
