"""Functions the tests send to ranks; a rank imports them by name."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch


def place(rank: Any) -> tuple[int, int]:
    return rank.rank, rank.size


def variable(rank: Any, name: str) -> str | None:
    return os.environ.get(name)


def begin_cuda(rank: Any, who: int) -> None:
    """Have it look, on one rank, as if CUDA had been initialised."""
    from lens_magic.ranks import followed

    if rank.rank == who:
        followed._cuda_has_begun = lambda: True


def of_a_module_only_here(name: str) -> Any:
    """A value of a class in a module that only this process has."""
    module = sys.modules[name] = ModuleType(name)
    module.Thing = type("Thing", (), {"__module__": name})  # type: ignore[attr-defined]
    return module.Thing()


def given_or_made(rank: Any, given: Any, who: int | None = None) -> Any:
    """On one rank something that no other can read, on all others what they were given."""
    return of_a_module_only_here("only_there") if rank.rank == who else given


def import_everything(rank: Any) -> None:
    """What ranks import between calls, so that they hear the next at once."""
    import transformers.activations
    import transformers.modeling_utils  # noqa: F401


def say(rank: Any, words: str) -> None:
    print(words, flush=True)


def fail(rank: Any, who: int) -> None:
    if rank.rank == who:
        raise ValueError(f"planned on {who}")
    rank.wait_for(rank.communicator.Ibarrier())


def fail_alone(rank: Any, who: int = 0) -> None:
    """The other ranks wait for nobody."""
    if rank.rank == who:
        raise ValueError(f"planned on {who}")


def give_up(rank: Any) -> None:
    from lens_magic.ranks.rank import Aborted

    raise Aborted


def die(rank: Any, who: int) -> None:
    if rank.rank == who:
        os.kill(os.getpid(), signal.SIGKILL)
    rank.wait_for(rank.communicator.Ibarrier())


def hang(rank: Any, who: int) -> None:
    while rank.rank == who:
        time.sleep(1)
    rank.wait_for(rank.communicator.Ibarrier())


def connect_but(rank: Any, who: int) -> bool:
    """Connect; one rank fails before it meets the others, as where its GPU cannot be had."""
    from lens_magic.ranks import collectives

    if rank.rank == who:
        raise ValueError(f"planned on {rank.rank}")
    collectives.connect(rank)
    return collectives.dist.is_initialized()


def meet_from_afar(rank: Any) -> tuple[str, float]:
    """Connect as ranks of different hosts do; what they met through, and the sum of 1 and 2."""
    import torch.distributed as dist

    from lens_magic.ranks import collectives

    rank.local_size = 1
    collectives.connect(rank)
    sent = torch.tensor([rank.rank + 1.0])
    dist.all_reduce(sent)
    return type(collectives._stores[0]).__name__, float(rank.all_reduce(sent / 2))


def fail_while_others_hang(rank: Any, who: int) -> None:
    if rank.rank == who:
        raise ValueError(f"planned on {who}")
    while True:
        time.sleep(1)


released = threading.Event()


def fail_while_rank_0_waits(rank: Any) -> None:
    """Rank 0 waits where it does not hear that another has failed, until it is released."""
    if rank.rank:
        raise ValueError(f"planned on {rank.rank}")
    assert released.wait(10)


def refuse(rank: Any, who: int) -> None:
    from lens_magic.errors import LensError

    if rank.rank == who:
        raise LensError(f"{who} is refused; another would do")
    rank.wait_for(rank.communicator.Ibarrier())


def compare_gpus(rank: Any, stopped: int | None = None) -> list[str]:
    """Compare; one rank may be stopped before it knows of the others, as by a failure of one that does."""
    from lens_magic.ranks import collectives

    found = collectives.compare_gpus(rank)
    if rank.rank == stopped:
        rank.gpus = []
        raise ValueError(f"planned on {stopped}")
    return found


def until_stopped(rank: Any) -> int:
    """How many rounds all ranks made together before they agreed to stop."""
    rounds = 0
    while not rank.agree_to_stop():
        rounds += 1
        rank.emit(("round", rounds))
        time.sleep(0.01)
    rank.acknowledge_stop()
    return rounds


def sizes(rank: Any, counts: list[int]) -> list[bool]:
    """Sums, gathers and broadcasts of so many numbers, ours and torch.distributed's: whether each is what it should be."""
    import torch.distributed as dist

    from lens_magic.ranks import collectives

    collectives.connect(rank)
    found = []
    for count in counts:
        mine = torch.arange(count, dtype=torch.float32) * (rank.rank + 1)
        total = torch.arange(count, dtype=torch.float32) * sum(range(1, rank.size + 1))
        everyone = torch.stack([torch.arange(count, dtype=torch.float32) * (other + 1) for other in range(rank.size)])
        found += [torch.equal(rank.all_reduce(mine.clone()), total), torch.equal(rank.all_gather(mine), everyone)]
        if rank.size > 1:
            theirs, told = mine.clone(), mine.clone()
            dist.all_reduce(theirs)
            dist.broadcast(told, src=1)
            dist.barrier()
            found += [torch.equal(theirs, total), torch.equal(told, everyone[1])]
    return found


def in_a_hurry(rank: Any, rounds: int, seed: int) -> int:
    """Many exchanges one after another, each rank late at random: how many were wrong."""
    from lens_magic.ranks import collectives

    collectives.connect(rank)
    late, same = random.Random(seed + rank.rank), random.Random(seed)
    wrong = 0
    for number in range(rounds):
        if late.random() < 0.05:
            time.sleep(late.random() * 0.003)
        count = same.choice((0, 1, 7, 256, 5000))
        values = torch.full((count,), float(number + rank.rank))
        expected = float(number * rank.size + sum(range(rank.size)))
        wrong += int((rank.all_reduce(values) != expected).sum())
    return wrong


def fail_while_others_sum(rank: Any, who: int) -> None:
    """One rank fails while the others wait for its part of a sum."""
    from lens_magic.ranks import collectives

    collectives.connect(rank)
    rank.all_reduce(torch.ones(3))
    if rank.rank == who:
        time.sleep(0.05)
        raise ValueError(f"planned on {who}")
    rank.all_reduce(torch.ones(3))


def has_board(rank: Any) -> bool:
    return rank.board is not None


def tell_and_sum(rank: Any) -> None:
    """Sums that rank 0 announces."""
    if rank.rank == 0:
        rank.emit(("summing",))
    rank.all_reduce(torch.ones(3))


def reductions(rank: Any) -> dict[str, Any]:
    """Every collective the package uses, in the types it uses them with."""
    from lens_magic.ranks import collectives

    collectives.connect(rank)
    mine = torch.arange(3, dtype=torch.float32) + 10 * rank.rank
    half = torch.full((2, 2), 1.5 + rank.rank, dtype=torch.bfloat16)
    return {
        "sum": rank.all_reduce(mine.clone()).tolist(),
        "max": rank.all_reduce(mine.clone(), "max").tolist(),
        "min": rank.all_reduce(mine.clone(), "min").tolist(),
        "bfloat16": rank.all_reduce(half).float().tolist(),
        "strided": rank.all_reduce(torch.ones(4, 4)[:, ::2]).tolist(),
        "gathered": rank.all_gather(mine[None]).tolist(),
        "integers": rank.all_gather(torch.tensor([rank.rank])).tolist(),
    }


def reductions_by_torch(rank: Any) -> dict[str, Any]:
    """The same the way NCCL has them: by ``torch.distributed``."""
    from lens_magic.ranks import collectives

    collectives.connect(rank)
    groups, rank.process_groups = rank.process_groups, []
    try:
        return reductions(rank)
    finally:
        rank.process_groups = groups


def hooks(rank: Any) -> int:
    """How much is attached to this rank's model: hooks, forwards stood in for."""
    from lens_magic.model.load import loaded_on

    model = loaded_on(rank).model
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + ("forward" in vars(m)) for m in model.modules())


_usual: dict[str, Any] = {}
_replays: list[int] = []


def step_by(rank: Any, way: str, every: int = 0) -> None:
    """Have decode steps run one by one ("eager"), replayed with a recording for so many columns ("replay"), or as usual.

    "anew" is one by one, with as many columns as replayed.
    """
    from lens_magic.model import generate, graph
    from lens_magic.ranks.recording import Recording

    if "runner" not in _usual:
        _usual.update(runner=generate.runner_for, boundary=graph.Recorded.boundary, least=graph.LEAST, replay=Recording.replay)

    def counted(self: Recording) -> None:
        _replays.append(1)
        _usual["replay"](self)

    _replays.clear()
    generate.runner_for = _usual["runner"] if way != "eager" else lambda *_: graph.Eager()
    graph.Recorded.boundary = every if way in ("replay", "anew") else _usual["boundary"]
    graph.LEAST = {"replay": 3, "anew": 10**9}.get(way, _usual["least"])
    Recording.replay = counted if way == "replay" else _usual["replay"]  # type: ignore[method-assign]


def replays(rank: Any) -> int:
    """How many steps this rank has replayed since it was told how to step."""
    return len(_replays)


def multiply_as(rank: Any, slow: bool | None) -> None:
    """Have 16-bit products computed as on a processor without instructions for them, as on one with them, or as usual.

    In the first two cases small heads are multiplied as large ones are.
    """
    from lens_magic.model import head, products

    usual = _usual.setdefault("is_slow", products.is_slow)
    small = _usual.setdefault("small", head._SMALL)
    products.is_slow = usual if slow is None else lambda device, dtype: slow and dtype.itemsize == 2
    head._SMALL = small if slow is None else 0


def forward_shapes(rank: Any, prompt_ids: list[int], tokens: int) -> list[int]:
    """Lengths of the backbone's inputs during one captured generation."""
    from lens_magic.lens.capture import CapturePlan, Trajectories
    from lens_magic.model.generate import generate
    from lens_magic.model.load import loaded_on

    loaded = loaded_on(rank)
    lengths: list[int] = []
    handle = loaded.backbone.register_forward_pre_hook(
        lambda module, positional, named: lengths.append(named["input_ids"].shape[1]), with_kwargs=True
    )
    try:
        plan = CapturePlan(("resid_post",), tuple(range(loaded.layers)), len(prompt_ids) - 1, tokens)
        generate(rank, loaded, [prompt_ids], tokens, visitors=[Trajectories(rank, loaded, plan)])
    finally:
        handle.remove()
    return lengths


class Adds:
    """A visitor that adds a vector to the states at one site, everywhere."""

    def __init__(self, key: tuple[str, int], shape: tuple[int, ...], vector: torch.Tensor) -> None:
        self.key, self.shape, self.vector = key, shape, vector

    def visits(self) -> dict[tuple[str, int], Any]:
        return {self.key: self.add}

    def add(self, states: torch.Tensor, window: Any) -> torch.Tensor:
        assert states.shape == self.shape
        return states + self.vector

    def prepare(self, window: Any) -> None: ...

    def finish(self, window: Any) -> None: ...


def logits_with(rank: Any, sequences: list[list[int]], site: str, layer: int, vector: list[float]) -> np.ndarray:
    """Logits after each sequence, ``[batch, vocabulary]``, of one forward in which a visit adds a vector at one site."""
    from lens_magic.model.batch import read_forward
    from lens_magic.model.load import loaded_on

    loaded = loaded_on(rank)
    shape = (len(sequences), max(len(sequence) for sequence in sequences), loaded.width)
    mine = loaded.head.logits(read_forward(loaded, sequences, [Adds((site, layer), shape, torch.tensor(vector))]))
    sizes = [end - begin for begin, end in pairwise(loaded.bounds)]
    parts = rank.all_gather(torch.nn.functional.pad(mine, (0, max(sizes) - mine.shape[1])))
    return torch.cat([part[:, :size] for part, size in zip(parts, sizes, strict=True)], -1).numpy()


def parameters(rank: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of what this rank holds of the model's blocks."""
    from lens_magic.model.load import loaded_on

    return {name: tuple(parameter.shape) for name, parameter in loaded_on(rank).model.named_parameters()}


def experts_while_loading(rank: Any, checkpoint: Any) -> set[tuple[int, ...]]:
    """Shapes that experts' tensors are gathered to while a checkpoint is loaded."""
    from transformers.core_model_loading import WeightConverter

    from lens_magic.model.load import load

    seen: set[tuple[int, ...]] = set()
    convert = WeightConverter.convert

    def watched(*args: Any, **kwargs: Any) -> Any:
        made = convert(*args, **kwargs)
        seen.update(tuple(tensor.shape) for name, tensor in made.items() if ".experts." in name)
        return made

    WeightConverter.convert = watched
    try:
        load(rank, checkpoint)
    finally:
        WeightConverter.convert = convert
    return seen


def memory(rank: Any) -> int:
    from lens_magic.ranks.memory import used_memory

    return used_memory(torch.device("cpu"))


def set_prefill_columns(rank: Any, columns: int) -> None:
    from lens_magic.model import generate

    generate.PREFILL_COLUMNS = columns


def plus_rank(rank: Any, tensor: torch.Tensor) -> torch.Tensor:
    return tensor + rank.rank


def replaced_forwards(rank: Any) -> int:
    """Modules whose own ``forward`` hides their class's."""
    from lens_magic.model.load import loaded_on

    return sum("forward" in vars(module) for module in loaded_on(rank).model.modules())


def fail_and_die_when_renewed(rank: Any, who: int) -> None:
    if rank.rank == who:
        rank.renew = lambda: os._exit(1)
        raise MemoryError("planned")
    rank.wait_for(rank.communicator.Ibarrier())


def fail_and_meet_late(rank: Any, who: int) -> None:
    """When the ranks meet again, this one learns last that they have: once it has been told of the next call, or after 5 s."""
    if rank.rank == who:
        wait_for, deadline, waits = rank.wait_for, time.monotonic() + 5, []

        def late(request: Any) -> None:
            waits.append(request)
            if len(waits) < 2:  # they exchange the board's name first
                wait_for(request)
                return

            def answers() -> Iterator[bool]:
                while not request.Test():
                    yield False
                while not rank.aborted.is_set() and time.monotonic() < deadline:
                    yield False
                yield False  # told of the next call, and not yet of this
                yield True

            del rank.wait_for
            wait_for(SimpleNamespace(Test=answers().__next__))

        rank.wait_for = late
        raise MemoryError("planned")
    rank.wait_for(rank.communicator.Ibarrier())


def torch_settings(rank: Any) -> tuple[Any, ...]:
    modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")
    kinds = torch.backends.mkldnn.matmul, torch.backends.cuda.matmul
    products = [kind.fp32_precision.replace("none", "ieee") for kind in kinds]  # none has been chosen: exact ones
    return torch.get_default_dtype(), torch.empty(0).device.type, *modes, *products
