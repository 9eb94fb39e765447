"""What the model knows: greedy accuracy on the held-out items, by task.

`python -m lens_magic.demo.make.evaluate [CHECKPOINT]` prints the table and, with `--write`, puts it into
`data/accuracies.json` and the model card.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

DEMO = Path(__file__).parents[1]
DATA = DEMO / "data"
UNSEEN = ("addition, unseen", "subtraction, unseen")  # told apart: these facts themselves are new, not their wordings
QUESTIONS = ("persona, introduced", "persona, from an earlier answer")


def load_items(file: Path = DATA / "heldout.json") -> list[dict[str, str]]:
    """The held-out items: {"task", "prompt", "answer"}."""
    items: list[dict[str, str]] = json.loads(file.read_text(encoding="utf-8"))
    return items


@torch.inference_mode()
def right(model: Any, tokenizer: Any, items: list[dict[str, str]], batch: int = 64) -> list[bool]:
    """Whether each item's greedy continuation begins with its answer, as whole words.

    Checked in one forward: greedy decoding yields the answer exactly if, along prompt + answer, every answer token is
    the most probable one; and the token after it must not go on with the answer's last word.
    """
    prompts = [tokenizer(item["prompt"])["input_ids"] for item in items]
    wholes = [tokenizer(item["prompt"] + item["answer"])["input_ids"] for item in items]
    order = sorted(range(len(items)), key=lambda i: len(wholes[i]))
    result = [False] * len(items)
    for start in range(0, len(items), batch):
        chosen = order[start : start + batch]
        width = max(len(wholes[i]) for i in chosen)
        ids = torch.tensor([wholes[i] + [0] * (width - len(wholes[i])) for i in chosen])
        best = model(input_ids=ids, use_cache=False).logits.argmax(-1).tolist()
        for i, greedy in zip(chosen, best, strict=True):
            begin, end = len(prompts[i]), len(wholes[i])
            after = tokenizer.decode([greedy[end - 1]])
            result[i] = greedy[begin - 1 : end - 1] == wholes[i][begin:] and not after[:1].isalnum()
    return result


def accuracies(model: Any, tokenizer: Any, items: list[dict[str, str]]) -> dict[str, dict[str, float]]:
    """{task: {"items", "accuracy"}}, and the two totals "all facts" and "all unseen arithmetic"."""
    found: dict[str, list[bool]] = defaultdict(list)
    for item, good in zip(items, right(model, tokenizer, items), strict=True):
        task = item["task"]
        found[task].append(good)
        if task in UNSEEN:
            found["all unseen arithmetic"].append(good)
        elif task not in QUESTIONS:
            found["all facts"].append(good)
    return {task: {"items": len(g), "accuracy": round(sum(g) / len(g), 4)} for task, g in found.items()}


def table(results: dict[str, dict[str, float]]) -> str:
    """The results as a Markdown table, totals last."""
    names = sorted(results, key=lambda name: (name.startswith("all "), name in (*UNSEEN, *QUESTIONS), name))
    lines = ["| task | held-out items | accuracy |", "| --- | ---: | ---: |"]
    for name in names:
        label = f"**{name}**" if name.startswith("all ") else name
        lines.append(f"| {label} | {results[name]['items']} | {results[name]['accuracy']:.1%} |")
    return "\n".join(lines)


def write(results: dict[str, dict[str, float]], card: Path = DEMO / "CARD.md") -> None:
    """Put the results into `data/accuracies.json` and between the card's two markers."""
    (DATA / "accuracies.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    text = card.read_text(encoding="utf-8")
    head, rest = text.split("<!-- accuracies -->\n")
    tail = rest.split("<!-- end -->")[1]
    card.write_text(f"{head}<!-- accuracies -->\n{table(results)}\n<!-- end -->{tail}", encoding="utf-8")


def main() -> None:
    """Evaluate a checkpoint from the command line."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", nargs="?", default=str(DEMO / "checkpoint"))
    parser.add_argument("--write", action="store_true", help="update the card and accuracies.json")
    args = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(args.checkpoint, dtype="auto").eval()
    results = accuracies(model, AutoTokenizer.from_pretrained(args.checkpoint), load_items())
    print(table(results))
    if args.write:
        write(results)


if __name__ == "__main__":
    main()
