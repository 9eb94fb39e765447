"""Train the demo model: `python -m lens_magic.demo.make.train --out FOLDER --minutes 65` (or `--tokens N`).

Seeded, with data that this folder writes as it goes, in two processes of one thread each that average their gradients
at every step (on a busy machine far faster than two threads, which wait for each other at every operation). The
learning rate follows the share of the budget that is used up, so a run ends well however busy the machine is; a
checkpoint is written every few minutes.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch.multiprocessing.spawn import spawn
from transformers import Qwen3Config, Qwen3ForCausalLM

from lens_magic.demo.make import corpus, data, evaluate, tokenizer

LONG = 2048


@dataclass(frozen=True)
class Options:
    """What a run is made of."""

    out: Path
    minutes: float | None
    tokens: int | None
    seed: int
    lr: float
    batch: int  # tokens a step, of all processes together
    processes: int
    compiled: bool
    save_every: float  # minutes
    init: Path | None  # a checkpoint to go on from


def config(vocabulary: int) -> Qwen3Config:
    """Eight layers, 256 wide; twelve heads and 768 = 12 × 64 inner units, so that 1, 2, 3 or 4 ranks share evenly."""
    return Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=8,
        num_attention_heads=12,
        num_key_value_heads=12,
        head_dim=16,
        max_position_embeddings=LONG,
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
        dtype="float32",
    )


def loss_of(model: Any, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the next token over ids [rows, length], the answers' `labels` [rows, length] counting tenfold."""
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    logits = model.lm_head(hidden)  # [rows, length, vocabulary]
    targets = F.pad(ids[:, 1:], (0, 1), value=-100)
    losses = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
    return (losses * (1 + 9 * labels.flatten())).mean()


def before_labels(ids: torch.Tensor, colon: int, bracket: int) -> torch.Tensor:
    """Where the next token is the label of a questionnaire's answer (after ": ("): one token in a hundred, all to learn."""
    return F.pad((ids[:, :-1] == colon) & (ids[:, 1:] == bracket), (1, 0))


def optimizer(model: Any, lr: float) -> torch.optim.Optimizer:
    """AdamW, with decay on the matrices of the blocks alone."""
    decayed = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=True)


def rate(progress: float, step: int) -> float:
    """The learning rate's factor: 150 steps of warm-up, level to 40% of the budget, then straight down to 2%."""
    return min(1.0, (step + 1) / 150, max(0.02, (1 - progress) / 0.6))


def row_length(progress: float, rng: random.Random) -> int:
    """Rows of 64 and 256 tokens by turns; in the second half a twenty-fifth of the steps are of the full context."""
    if progress > 0.5 and rng.random() < 0.04:
        return LONG
    return 64 if rng.random() < 0.4 else 256


def save(model: Any, folder: Path) -> None:
    """Write config and weights: stored in bfloat16, declared float32, so that they load as float32."""
    model.config.save_pretrained(folder)
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    settings |= {"dtype": "float32", "eos_token_id": 0, "pad_token_id": 0}
    (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    generation = {"do_sample": False, "eos_token_id": [0, 2], "pad_token_id": 0}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")
    weights = {n: p.detach().to(torch.bfloat16).contiguous() for n, p in model.named_parameters()}
    save_file(weights, folder / "model.safetensors.new", metadata={"format": "pt"})
    (folder / "model.safetensors.new").replace(folder / "model.safetensors")


class Run:
    """One process's part of a training run."""

    def __init__(self, options: Options, rank: int) -> None:
        self.options, self.rank = options, rank
        self.shapes = random.Random(options.seed)  # the same in every process
        self.texts = random.Random(f"{options.seed}/{rank}")
        torch.manual_seed(options.seed)
        self.tokenizer = tokenizer.load(options.out)
        self.model = Qwen3ForCausalLM(config(len(self.tokenizer)))
        if options.init:
            self.model.load_state_dict(load_file(options.init / "model.safetensors"), strict=False)  # the head is tied
        self.optimizer = optimizer(self.model, options.lr)
        if options.compiled:
            for layer in self.model.model.layers:  # one layer at a time: compiled once for all eight
                layer.compile(dynamic=False)
        self.answer = self.tokenizer.convert_tokens_to_ids([":", "Ġ("])
        self.items = data.held_out()
        self.begin = time.monotonic()
        self.step = self.seen = 0
        self.progress = 0.0

    def budget_used(self) -> float:
        """The share of the budget used up, by this process's clock."""
        if self.options.tokens:
            return self.seen / self.options.tokens
        return (time.monotonic() - self.begin) / 60 / (self.options.minutes or 60)

    def average(self, loss: float) -> float:
        """Average gradients, loss and progress over the processes, and clip; returns the mean loss."""
        grads = [p.grad for p in self.model.parameters() if p.grad is not None]
        flat = torch.cat([g.flatten() for g in grads] + [torch.tensor([loss, self.budget_used()])])
        dist.all_reduce(flat)
        flat /= self.options.processes
        mean = float(flat[-2])
        self.progress = float(flat[-1])
        flat[:-2] *= min(1.0, 1.0 / (float(flat[:-2].norm()) + 1e-6))
        for grad, part in zip(grads, flat[:-2].split([g.numel() for g in grads]), strict=True):
            grad.copy_(part.view_as(grad))
        return mean

    def one_step(self) -> float:
        """One update; returns the loss."""
        length = row_length(self.progress, self.shapes)
        ids = corpus.batch(self.tokenizer, self.texts, length, self.options.batch // self.options.processes)
        # the fused CPU attention is slow backwards on short rows, the plain one takes too much memory on long ones
        self.model.set_attn_implementation("sdpa" if length == LONG else "eager")
        stance = torch.compiler.set_stance("force_eager" if length == LONG else "default")
        with stance, torch.autocast("cpu", torch.bfloat16):
            value = loss_of(self.model, ids, before_labels(ids, *self.answer))
        value.backward()
        loss = self.average(value.item())
        for group in self.optimizer.param_groups:
            group["lr"] = self.options.lr * rate(self.progress, self.step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        self.seen += ids.numel() * self.options.processes
        return loss

    def checkpoint(self) -> None:
        """Save, and report the held-out accuracies of what was saved."""
        save(self.model, self.options.out)
        saved = Qwen3ForCausalLM.from_pretrained(self.options.out, dtype="auto").eval()
        results = evaluate.accuracies(saved, self.tokenizer, self.items)
        minutes = (time.monotonic() - self.begin) / 60
        record = {"seed": self.options.seed, "steps": self.step, "tokens": self.seen, "minutes": round(minutes, 1)}
        (self.options.out / "training.json").write_text(json.dumps(record) + "\n", encoding="utf-8")
        brief = {name: value["accuracy"] for name, value in results.items()}
        print(f"checkpoint {record} {brief}", flush=True)

    def train(self) -> None:
        """Train until the budget is used up; the first process saves and reports."""
        last, losses = time.monotonic(), []
        while self.progress < 1:
            losses.append(self.one_step())
            if self.rank:
                continue
            if self.step % 50 == 0:
                minutes = (time.monotonic() - self.begin) / 60
                mean = sum(losses) / len(losses)
                print(f"{minutes:.1f} min step {self.step} tokens {self.seen} loss {mean:.3f}", flush=True)
                losses.clear()
            if time.monotonic() - last > 60 * self.options.save_every:
                self.checkpoint()
                last = time.monotonic()
        if not self.rank:
            self.checkpoint()


def work(rank: int, options: Options, meeting: str) -> None:
    """The life of one process."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=options.processes)
    Run(options, rank).train()
    dist.destroy_process_group()


def main() -> None:
    """Train from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=None)
    parser.add_argument("--tokens", type=int, default=None)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--batch", type=int, default=3072)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--save-every", type=float, default=5.0)
    parser.add_argument("--init", type=Path, default=None, help="go on from this checkpoint's weights and tokenizer")
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    args = parser.parse_args()
    budget = (args.minutes, args.tokens, args.seed, args.lr, args.batch, args.processes)
    options = Options(args.out, *budget, not args.eager, args.save_every, args.init)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.init:
        tokenizer.load(options.init).save_pretrained(options.out)
    else:
        tokenizer.save(options.out)
    with tempfile.TemporaryDirectory() as folder:
        spawn(work, args=(options, f"{folder}/meeting"), nprocs=options.processes)


if __name__ == "__main__":
    main()
