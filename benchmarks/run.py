"""Measure a plan: methods take turns in rounds, the file is written after every sample, and the time is limited."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from . import checkpoints, machine, memory
from .peers import PEERS, PeerError, command
from .plan import OURS, Row, Suite
from .process import Failed, Process, TooLong, with_this_tree
from .store import Cell, Results

WARM_TOKENS = 2
PATIENCE_S = 24 * 3600.0  # no budget

T = TypeVar("T")


class Runner:
    """Runs suites.

    Args:
        out: folder of results, models and peers' environments.
        budget_s: total seconds; what does not fit is left out, and the results say so.
        fresh: measure again what has been measured already.
    """

    def __init__(
        self, out: Path, budget_s: float = PATIENCE_S, fresh: bool = False, tell: Callable[[str], None] = print
    ) -> None:
        self.out, self.fresh, self.tell = out, fresh, tell
        self._deadline = time.monotonic() + budget_s
        self._main: tuple[tuple[Any, ...], Process] | None = None
        self._peers: dict[str, Process] = {}
        self._peers_at: dict[str, tuple[str, str]] = {}
        self._results: dict[str, Results] = {}

    @property
    def left_s(self) -> float:
        """Seconds left of the budget."""
        return self._deadline - time.monotonic()

    def run(self, suite: Suite) -> Results:
        """Measure what a suite's results still lack."""
        if suite.name not in self._results:
            self._results[suite.name] = Results(self.out, suite.name, self.fresh)
        results = self._results[suite.name]
        results.about["question"] = suite.question
        if "copy_bytes_per_s" not in results.about:
            results.about["copy_bytes_per_s"] = machine.copy_rate()
        for row in suite.rows:
            cells = {method: self._cell(results, row, method) for method in row.methods}
            if all(len(cell.samples) >= cell.wanted for cell in cells.values()):
                continue
            where = f"{row.model}, {row.ranks} rank{'s' * (row.ranks > 1)}, {row.dtype}, T = {row.tokens}"
            self.tell(f"{suite.name}: {where} ({self.left_s:.0f} s left)" if self.left_s < PATIENCE_S / 2 else where)
            if row.memory:
                self._memory_row(results, row, cells)
            else:
                self._row(results, row, cells)
            for cell in cells.values():
                self.tell(f"  {cell.method:24} {_summary(cell, row.memory)}")
            results.save()
        return results

    def close(self) -> None:
        """End all processes."""
        for process in [*self._peers.values(), *([self._main[1]] if self._main else [])]:
            process.close()
        self._main, self._peers = None, {}

    # -- time ----------------------------------------------------------------------------------------------------------

    def _row(self, results: Results, row: Row, cells: dict[str, Cell]) -> None:
        ours: dict[str, Any] | None = None  # the first answer, which the others are compared with
        for method in cells:
            if not self._may(cells[method]):
                continue
            answer = self._try(cells[method], lambda m=method: self._measure(row, m, min(WARM_TOKENS, row.tokens)))
            if answer is None:
                continue
        for number in range(row.rounds):
            for method, cell in cells.items():
                if len(cell.samples) > number or number >= cell.wanted or not self._may(cell):
                    continue
                told = self._try(cell, lambda m=method, n=number: self._measure(row, m, row.tokens, answers=n == 0))
                if told is None:
                    continue
                answer = {name: told.pop(name) for name in ("output_ids", "lens", "probabilities") if name in told}
                if method == OURS and answer:
                    ours = answer
                elif ours and answer:
                    cell.agrees = agreement(answer, ours)
                cell.samples.append({"round": number, **told})
                results.save()

    def _measure(self, row: Row, method: str, tokens: int, answers: bool = False) -> dict[str, Any]:
        if method in PEERS:
            ids = self._prompt_ids(row)
            request = {"prompt_ids": ids, "tokens": tokens, "answers": answers}
            return self._peer(row, method).ask(request, self.left_s)
        request = {"do": "measure", "method": method, "tokens": tokens, "answers": answers}
        return self._main_process(row).ask(request, self.left_s)

    def _prompt_ids(self, row: Row) -> list[int]:
        from transformers import AutoTokenizer

        ids: list[int] = AutoTokenizer.from_pretrained(self._folder(row))(checkpoints.PROMPT)["input_ids"]
        return ids

    # -- memory --------------------------------------------------------------------------------------------------------

    def _memory_row(self, results: Results, row: Row, cells: dict[str, Cell]) -> None:
        """Measure each method in a fresh process of its own, relative to what is resident after warm-up.

        Warm-up is a run at full length, so that the libraries' code is loaded, and then a short one, so that nothing is kept.
        """
        self.close()
        for method, cell in cells.items():
            if len(cell.samples) >= cell.wanted or not self._may(cell):
                continue
            needed = published_bytes(row) if method == "published" else 0
            if needed > 0.6 * memory.available():
                cell.left_out = f"its projections alone are {needed / 1e9:.0f} GB, more than this machine has"
                continue
            if (process := self._try(cell, lambda m=method: self._alone(m))) is None:
                continue
            try:
                self._try(cell, lambda m=method, p=process: p.ask(self._load_alone(row, m), self.left_s))
                for tokens in (row.tokens, WARM_TOKENS):
                    warm = self._try(cell, lambda t=tokens, m=method, p=process: p.ask(self._run(row, m, t), self.left_s))
                resident: list[int] | None = None
                for number in range(len(cell.samples), cell.wanted):
                    told = None
                    if warm is not None and self._may(cell):
                        told = self._try(cell, lambda m=method, p=process: p.ask(self._run(row, m, row.tokens), self.left_s))
                    if told is None:
                        break
                    resident = resident or told["resident"]
                    grown = [peak - before for peak, before in zip(told["peak"], resident, strict=True)]
                    cell.samples.append({"round": number, **told, "resident": resident, "grown": grown})
                    results.save()
            finally:
                process.close()

    def _alone(self, method: str) -> Process:
        """Return a fresh process for one method that can measure its own memory."""
        if method in PEERS:
            return self._peer_process(method, {**memory.ENVIRONMENT, **with_this_tree()})
        return self._bench_process(method, memory.ENVIRONMENT)

    def _load_alone(self, row: Row, method: str) -> dict[str, Any]:
        return self._load_peer(row) if method in PEERS else self._load(row, method)

    def _run(self, row: Row, method: str, tokens: int) -> dict[str, Any]:
        what = {"prompt_ids": self._prompt_ids(row)} if method in PEERS else {"method": method}
        return {"do": "memory", "tokens": tokens, **what}

    # -- processes -----------------------------------------------------------------------------------------------------

    def _main_process(self, row: Row) -> Process:
        """Return the process that has the row's model on the row's ranks; models take turns in it."""
        wanted = (row.model, row.dtype, row.ranks)
        if self._main is not None and self._main[0] == wanted:
            return self._main[1]
        process = self._main[1] if self._main else self._bench_process("time")
        self._main = (("loading",), process)
        process.ask(self._load(row), self.left_s)
        self._main = (wanted, process)
        return process

    def _bench_process(self, log: str, environment: dict[str, str] | None = None) -> Process:
        log_file = self.out / "logs" / f"{log.replace(', ', '-').replace(' ', '-')}.log"
        python = [sys.executable, "-m", "benchmarks.bench_process"]
        return Process(python, log_file, {**with_this_tree(), **(environment or {})})

    def _load(self, row: Row, only: str | None = None) -> dict[str, Any]:
        fields = {"model": self._folder(row), "dtype": row.dtype, "ranks": row.ranks}
        return {"load": {**fields, "prompt": checkpoints.PROMPT, "only": only}}

    def _folder(self, row: Row) -> str:
        return str(checkpoints.folder(row.model, self.out))

    def _peer(self, row: Row, name: str) -> Process:
        if name not in self._peers:
            self._peers[name] = self._peer_process(name)
        if self._peers_at.get(name) != (row.model, row.dtype):
            self._peers[name].ask(self._load_peer(row), self.left_s)
            self._peers_at[name] = (row.model, row.dtype)
        return self._peers[name]

    def _peer_process(self, name: str, environment: dict[str, str] | None = None) -> Process:
        self.tell(f"  {name}: its environment is made if it is not there")
        served = command(name, self.out.resolve(), self.left_s)
        return Process(served, self.out / "logs" / f"{name}.log", environment)

    def _load_peer(self, row: Row) -> dict[str, Any]:
        return {"load": {"folder": self._folder(row), "dtype": row.dtype}}

    # -- what can go wrong ---------------------------------------------------------------------------------------------

    def _cell(self, results: Results, row: Row, method: str) -> Cell:
        cell = results.cell(row.model, row.dtype, row.ranks, row.tokens, method)
        cell.wanted, cell.left_out = max(cell.wanted, row.wanted(method)), None
        return cell

    def _may(self, cell: Cell) -> bool:
        """Whether another sample of a cell can be measured: it has not failed, and would not exceed the budget."""
        if cell.left_out is None:
            expected = max((sample["wall_s"] for sample in cell.samples), default=0.0)
            if self.left_s < max(expected, 1.0):
                cell.left_out = "the time for the whole run was used up"
        return cell.left_out is None

    def _try(self, cell: Cell, measure: Callable[[], T]) -> T | None:
        """Return what was measured, or None with the reason in the cell; a process that failed is not used again."""
        if cell.left_out is not None:
            return None
        try:
            return measure()
        except TooLong:
            cell.left_out = "it took longer than was left of the time for the whole run"
        except (Failed, PeerError) as error:
            cell.left_out = str(error)
        self._forget(cell.method)
        return None

    def _forget(self, method: str) -> None:
        if method in PEERS:
            self._peers_at.pop(method, None)
            if process := self._peers.pop(method, None):
                process.end()
        elif self._main is not None:
            self._main[1].end()
            self._main = None


def published_bytes(row: Row) -> int:
    """Bytes that LogitLens4LLMs holds at the end of a row: four projections per layer of the whole sequence, on every rank."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(checkpoints.DEMO) if row.model == "demo" else checkpoints.config(row.model)
    width = 4 if row.dtype == "float32" else 2
    return 4 * config.num_hidden_layers * (row.tokens + 12) * config.vocab_size * width * row.ranks


def agreement(answer: dict[str, Any], ours: dict[str, Any]) -> dict[str, float]:
    """Compare two answers: shares of equal tokens and first candidates, largest difference of equal ones' probability.

    The lens is compared up to the first token that differs; a lens of one site, with our last site.
    """
    pairs = list(zip(answer["output_ids"], ours["output_ids"], strict=False))
    tokens = sum(a == b for a, b in pairs) / max(1, len(pairs))
    if "lens" not in answer or "lens" not in ours:
        return {"tokens": tokens}
    import numpy as np

    from lens_magic.model.tokens import common_prefix

    until = min(common_prefix(answer["output_ids"], ours["output_ids"]) + 1, len(pairs))

    def part(of: dict[str, Any], name: str) -> Any:
        return np.array(of[name])[:until]

    theirs, mine = part(answer, "lens")[..., 0], part(ours, "lens")[..., 0]  # [position, layer, site]
    sites = theirs.shape[2]
    same = theirs == mine[..., -sites:]
    apart = np.abs(part(answer, "probabilities")[..., 0] - part(ours, "probabilities")[..., -sites:, 0])[same]
    return {"tokens": tokens, "first": float(same.mean()), "probability": float(apart.max(initial=0.0))}


def _summary(cell: Cell, is_memory: bool) -> str:
    if not cell.samples:
        return f"left out: {cell.left_out}"
    if is_memory:
        return f"{max(cell.samples[-1]['grown']) / 1e6:.1f} MB a rank at most, N = {len(cell.samples)}"
    mean = sum(sample["wall_s"] for sample in cell.samples) / len(cell.samples)
    return f"{mean:.2f} s, {cell.tokens / mean:.1f} tokens/s, N = {len(cell.samples)}" + (
        f" of {cell.wanted}: {cell.left_out}" if cell.left_out else ""
    )
