"""The files in `data/`: held-out items, questionnaires and mood pairs. `python -m lens_magic.demo.make.data` writes them."""

from __future__ import annotations

import json
import random
from dataclasses import asdict
from pathlib import Path

from lens_magic.demo.make import arithmetic, facts, questionnaires, stories

DATA = Path(__file__).parents[1] / "data"
A_TASK = 60  # at most so many held-out items of a task


def held_out() -> list[dict[str, str]]:
    """The held-out items of all tasks, at most `A_TASK` each."""
    rng = random.Random(5)
    by_task: dict[str, list[dict[str, str]]] = {}
    for item in facts.held_out_items() + arithmetic.held_out_items() + questionnaires.held_out_items():
        by_task.setdefault(item.task, []).append(asdict(item))
    chosen = []
    for items in by_task.values():
        keep = set(rng.sample(range(len(items)), min(A_TASK, len(items))))
        chosen += [item for i, item in enumerate(items) if i in keep]
    return chosen


def _lines(name: str, rows: list[dict[str, str]]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (DATA / name).write_text(text, encoding="utf-8")


def main() -> None:
    """Write every file."""
    DATA.mkdir(exist_ok=True)
    text = ",\n".join(json.dumps(item, ensure_ascii=False) for item in held_out())
    (DATA / "heldout.json").write_text(f"[\n{text}\n]\n", encoding="utf-8")
    _lines("persona-train.jsonl", questionnaires.rows(held_out=False, count=80))
    _lines("persona-heldout.jsonl", questionnaires.rows(held_out=True, count=48))
    _lines("persona-pairs.jsonl", questionnaires.persona_pairs(60))
    _lines("mood-pairs.jsonl", stories.mood_pairs(80))


if __name__ == "__main__":
    main()
