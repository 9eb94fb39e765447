"""What lives as long as the user's process: the group of ranks, the model on it, and its tokenizer."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from . import __version__, options
from .errors import LensError
from .status import Status

if TYPE_CHECKING:
    from .lens.run import LensRun
    from .model.checkpoint import Checkpoint
    from .model.generate import Generation
    from .ranks.group import Group

OnEvent = Callable[[tuple[Any, ...]], None]
"""Progress: ("loading", done, total), ("token", id), ("projecting", done, total)."""


class Interrupted(KeyboardInterrupt):
    """The user stopped a run; ``result`` is what there was by then."""

    def __init__(self, result: Any) -> None:
        super().__init__()
        self.result = result


@dataclass(frozen=True)
class Model:
    """What rank 0 knows of the model on the ranks."""

    name: str
    tokenizer: Any
    stop_ids: tuple[int, ...]
    layers: int
    width: int
    vocabulary: int
    context: int
    dtype: str
    fingerprint: str
    checkpoint: Checkpoint | None = None  # None for a model attached from memory
    revision: str | None = None


@dataclass(frozen=True)
class GeneratedText:
    """A generation without capture: ``text``, ``output_ids``, ``timings`` (as :class:`LensRun` has them)."""

    text: str
    output_ids: list[int]
    timings: dict[str, float]
    interrupted: bool = False


class Session:
    """One group of ranks and the model on it.

    Args:
        ranks: how many ranks a model is loaded on unless another number is asked for.
    """

    def __init__(self, ranks: int = 1) -> None:
        self.default_ranks = ranks
        self.model: Model | None = None
        self._group: Group | None = None
        self._starting: threading.Thread | None = None
        self._start_error: LensError | None = None
        self._changing = threading.Lock()

    # -- ranks ---------------------------------------------------------------------------------------------------------

    def start_in_background(self, joined: bool = False) -> None:
        """Bring the ranks up while the user types; an error is raised by what needs them first.

        Args:
            joined: a launcher has started them; only join them.
        """

        if self._start_error is not None or (self.default_ranks == 1 and not joined):
            return  # a single rank is this process: nothing to bring up

        def start() -> None:
            try:
                self._group = self._new_group(self.default_ranks, joined)
                self.default_ranks = self._group.size
            except LensError as error:
                self._start_error = error

        self._starting = threading.Thread(target=start, name="lens-start", daemon=True)
        self._starting.start()

    def fail_with(self, error: LensError) -> None:
        """Raise this from what needs the ranks first."""
        self._start_error = error

    @property
    def group(self) -> Group:
        """The group; started here where it was not yet."""
        if self._starting is not None:
            self._starting.join()
            self._starting = None
        if self._start_error is not None:
            error, self._start_error = self._start_error, None
            raise error
        if self._group is None:
            self._group = self._new_group(self.default_ranks)
        return self._group

    @property
    def running_group(self) -> Group | None:
        """The group if it is there already; never starts or waits."""
        return self._group

    def _new_group(self, size: int, joined: bool = False) -> Group:
        from .ranks.group import Group

        return Group(size, joined)

    def _group_of(self, ranks: int | None) -> Group:
        """The group with this many ranks, replacing one of another size (or one whose ranks were lost)."""
        wanted = ranks or self.default_ranks
        try:
            group = self.group
        except LensError:
            if wanted == self.default_ranks:
                raise
            group = None
        if group is not None and group.size == wanted and not group.lost and not group.closed:
            return group
        if group is not None and group.joined:
            raise LensError(
                f"this session was launched with {group.size} ranks and cannot have {wanted}; launch it with {wanted}"
            )
        return self._replace_group(wanted)

    def _replace_group(self, size: int) -> Group:
        # The new ranks first: where they cannot be had, the old ones and their model stay.
        new = self._new_group(size)
        self._drop_group()
        self._group = new
        return new

    def _drop_group(self) -> None:
        """End the ranks; with them goes the model."""
        old, self._group = self._group, None
        self.model = None
        if old is None:
            return
        old.close()
        old.rank.store.clear()
        import sys

        if "torch" in sys.modules:
            from .ranks.collectives import disconnect

            disconnect()

    def close(self) -> None:
        """End all ranks."""
        if self._starting is not None:
            self._starting.join(timeout=10)
        self._drop_group()

    # -- the model -----------------------------------------------------------------------------------------------------

    def load(
        self,
        name: str,
        dtype: str | None = None,
        revision: str | None = None,
        ranks: int | None = None,
        trust_remote_code: bool = False,
        on_event: OnEvent | None = None,
    ) -> Model:
        """Load a model on the ranks; until it stands, and after any error, the one before is still there.

        Raises:
            LensError: what :func:`lens_magic.model.checkpoint.find` refuses; ranks that cannot be started.
            KeyboardInterrupt: stopped by the user.
        """
        from .model import checkpoint as checkpoints
        from .model import load as loading
        from .model.tokens import load_tokenizer

        wanted = options.check_ranks(ranks) if ranks is not None else self._usual_ranks()
        checkpoint = checkpoints.find(name, wanted, dtype, revision, trust_remote_code)
        tokenizer = load_tokenizer(str(checkpoint.folder), trust_remote_code)
        stop_ids = checkpoints.stop_ids(checkpoint.folder, tokenizer)
        group = self._group_of(wanted)
        facts = group.call(loading.load, checkpoint, on_event=on_event)[0]
        self.model = Model(
            name=name,
            tokenizer=tokenizer,
            stop_ids=stop_ids,
            layers=facts["layers"],
            width=facts["width"],
            vocabulary=facts["vocabulary"],
            context=checkpoint.context,
            dtype=checkpoint.dtype,
            fingerprint=checkpoint.fingerprint,
            checkpoint=checkpoint,
            revision=revision,
        )
        return self.model

    def _usual_ranks(self) -> int:
        """As many ranks as there are now, else as many as there should be."""
        group = self._group
        return group.size if group is not None and not group.closed else self.default_ranks

    def attach(self, model: Any, tokenizer: Any) -> Model:
        """Use a transformers model that is in this process's memory, on one rank."""
        from .model import load as loading
        from .model.anatomy import anatomy_of
        from .model.checkpoint import end_tokens

        anatomy_of(model.config.model_type)
        group = self._group_of(1)
        facts = group.call(loading.attach, model)[0]
        generation_config = getattr(model, "generation_config", None)
        self.model = Model(
            name=str(getattr(model.config, "_name_or_path", "") or type(model).__name__),
            tokenizer=tokenizer,
            stop_ids=end_tokens(getattr(generation_config, "eos_token_id", None), model.config.eos_token_id, tokenizer),
            layers=facts["layers"],
            width=facts["width"],
            vocabulary=facts["vocabulary"],
            context=int(model.config.max_position_embeddings),
            dtype=str(model.dtype).removeprefix("torch."),
            fingerprint="",
        )
        return self.model

    def restart(self, on_event: OnEvent | None = None) -> Model | None:
        """Fresh ranks, and the model loaded again."""
        before = self.model
        size = self._usual_ranks()
        if self._group is not None and self._group.joined:
            raise LensError("these ranks were started by a launcher (mpiexec); start the job again")
        if before is not None and before.checkpoint is None:
            raise LensError(f"{before.name} was attached from memory; nothing to restart, lens.attach(…) uses it anew")
        self._drop_group()
        self._start_error = None
        self._group = self._new_group(size)
        if before is None or before.checkpoint is None:
            return None
        known = before.checkpoint
        try:
            return self.load(before.name, known.dtype, known.revision, size, known.trust_remote_code, on_event)
        except BaseException:
            self.model = None
            raise

    def require_model(self) -> Model:
        """The model.

        Raises:
            LensError: none is loaded. RanksLost: it went with its ranks.
        """
        if self._group is not None:
            self._group.require_all()
        if self.model is None:
            raise LensError("no model is loaded; `%lens load MODEL` loads one (`%lens load demo` the embedded one)")
        return self.model

    def status(self) -> Status:
        """Ranks, devices, memory, model."""
        from .ranks.memory import describe_rank

        ranks = self.group.call(describe_rank)
        model = self.model
        details = {} if model is None else {"dtype": model.dtype, "layers": model.layers, "context": model.context}
        return Status(ranks, model.name if model else None, [], details)

    # -- runs ----------------------------------------------------------------------------------------------------------

    def prompt_ids(self, prompt: str, chat: bool, model: Model) -> list[int]:
        """The prompt as tokens.

        Raises:
            LensError: empty, or longer than the model's context.
        """
        from .model.tokens import encode

        if not isinstance(prompt, str):
            raise LensError(f"the prompt should be text, not {type(prompt).__name__}")
        ids = encode(model.tokenizer, prompt, chat) if prompt else []
        if not ids:
            raise LensError("the prompt is empty; write the text to continue below the %%lens line")
        return ids

    def run(
        self,
        prompt: str,
        max_new_tokens: int = 32,
        top_k: int = 5,
        layers: str | int | Iterable[int] | None = None,
        capture: str | Sequence[str] | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        ignore_eos: bool = False,
        prompt_tokens: bool = False,
        force: str | Sequence[int] | None = None,
        chat: bool = False,
        on_event: OnEvent | None = None,
    ) -> LensRun:
        """See :func:`lens_magic.run`. Raises :class:`Interrupted`, with the partial run, where the user stops it."""
        from .lens.pipeline import Request, run_lens
        from .model.generate import Sampling

        model = self.require_model()
        options.check_sampling(temperature, top_p)
        if not 1 <= top_k <= model.vocabulary:
            raise LensError(f"top-k {top_k} is out of range; 1 to {model.vocabulary} (the vocabulary) would do")
        sites = options.parse_sites(capture)
        chosen = options.parse_layers(layers, model.layers)
        ids = self.prompt_ids(prompt, chat, model)
        forced: tuple[int, ...] | None = None
        if force is not None:
            # What follows a prompt begins no sequence: no beginning-of-sequence token of its own.
            forced = tuple(
                model.tokenizer(force, add_special_tokens=False, split_special_tokens=True)["input_ids"]
                if isinstance(force, str)
                else (int(index) for index in force)
            )
            if not forced or not all(0 <= index < model.vocabulary for index in forced):
                raise LensError(f"force should be text, or token ids from 0 to {model.vocabulary - 1}")
        new = len(forced) if forced is not None else max_new_tokens
        _check_length(len(ids), new, model.context, minimum=0 if prompt_tokens else 1)
        if new == 0 and len(ids) < 2:
            raise LensError("the lens of a text needs at least 2 tokens: each position is shown with the token that follows")
        request = Request(
            prompt_ids=ids,
            max_new_tokens=max_new_tokens,
            top_k=top_k,
            layers=chosen,
            sites=sites,
            sampling=Sampling(temperature, top_p, seed),
            stop_ids=() if ignore_eos else model.stop_ids,
            forced_ids=forced,
            prompt_tokens=prompt_tokens,
            run_id=uuid4().hex,
        )
        group = self.group
        with group.exclusive():  # an interrupt after the last token must not cost the user the result
            answers = group.call(run_lens, request, on_event=on_event)
            run = self._make_run(prompt, request, answers, model, {"chat": chat, "ignore_eos": ignore_eos})
            late = group.rank.stop_requested
        if run.interrupted or late:
            raise Interrupted(run)
        return run

    def _make_run(
        self, prompt: str, request: Any, answers: list[dict[str, Any]], model: Model, more: dict[str, Any]
    ) -> LensRun:
        from .lens.run import LensRun
        from .model.tokens import decode, token_texts

        own = answers[0]
        made, variables = own["generation"], own["variables"]
        captures = [answer["memory"]["captures"] for answer in answers]
        occurring = {*request.prompt_ids, *made.output_ids, *variables["token_id"].reshape(-1).tolist()}
        run_id = request.run_id

        def gather(site: str, layers: Sequence[int], rows: Sequence[int]) -> Any:
            from .lens.capture import gather as gather_states

            if self.model is None or self._group is None or self._group.closed or self._group.lost:
                return None
            return self._group.call(gather_states, run_id, site, list(layers), list(rows))[0]

        return LensRun(
            prompt=prompt,
            prompt_ids=list(request.prompt_ids),
            output_ids=made.output_ids,
            text=decode(model.tokenizer, made.output_ids, model.stop_ids),
            sites=list(request.sites),
            layers=list(request.layers),
            positions=own["positions"],
            variables=variables,
            token_texts=token_texts(model.tokenizer, occurring),
            timings={**_timings(made), "project_s": own["project_s"]},
            memory={
                "captures": max(captures),
                "peak": max(answer["memory"]["peak"] for answer in answers),
                "captures_by_rank": captures,
            },
            options={
                "max_new_tokens": request.max_new_tokens,
                "top_k": request.top_k,
                "temperature": request.sampling.temperature,
                "top_p": request.sampling.top_p,
                "seed": request.sampling.seed,
                "prompt_tokens": request.prompt_tokens,
                "forced": request.forced_ids is not None,
                **more,
            },
            provenance=self._provenance(model),
            interrupted=made.interrupted,
            _gather=gather,
        )

    def generate(
        self,
        prompt: str,
        max_new_tokens: int = 32,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        ignore_eos: bool = False,
        chat: bool = False,
        on_event: OnEvent | None = None,
    ) -> GeneratedText:
        """See :func:`lens_magic.generate`."""
        from .lens.pipeline import run_plain
        from .model.generate import Sampling
        from .model.tokens import decode

        model = self.require_model()
        options.check_sampling(temperature, top_p)
        ids = self.prompt_ids(prompt, chat, model)
        _check_length(len(ids), max_new_tokens, model.context)
        made = self.group.call(
            run_plain,
            ids,
            max_new_tokens,
            Sampling(temperature, top_p, seed),
            () if ignore_eos else model.stop_ids,
            on_event=on_event,
        )[0]
        text = decode(model.tokenizer, made.output_ids, model.stop_ids)
        result = GeneratedText(text, made.output_ids, _timings(made), made.interrupted)
        if result.interrupted:
            raise Interrupted(result)
        return result

    def _provenance(self, model: Model) -> dict[str, Any]:
        return {
            "lens_magic": __version__,
            **_versions(),
            "model": model.name,
            "model_fingerprint": model.fingerprint,
            "revision": model.revision,
            "ranks": self.group.size,
            "dtype": model.dtype,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }


def _check_length(prompt: int, new: int, context: int, minimum: int = 1) -> None:
    if prompt > context:
        raise LensError(f"the prompt has {prompt} tokens, more than the model's context of {context}")
    if new < minimum:
        hint = "; with --prompt-tokens 0 gives the lens of the prompt itself" if new == 0 else ""
        raise LensError(f"max-new-tokens {new} is too few; {minimum} or more would do{hint}")
    # The last generated token is never read by the model.
    if prompt + new - 1 > context:
        raise LensError(
            f"{prompt} prompt tokens and {new} new ones exceed the model's context of {context}; "
            f"at most {context - prompt + 1} new ones fit"
        )


def _timings(made: Generation) -> dict[str, float]:
    steps = len(made.output_ids) - 1
    rate = steps / made.decode_s if steps > 0 and made.decode_s > 0 else float("nan")
    return {"prefill_s": made.prefill_s, "decode_s": made.decode_s, "tokens_per_s": rate}


def _versions() -> dict[str, str]:
    found = {}
    for package in ("torch", "transformers", "deepspeed"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


_current: list[Session] = []


def current() -> Session:
    """This process's session; one rank (or ``LENS_RANKS``) where no Lens kernel has made another."""
    if not _current:
        import os

        _current.append(Session(options.default_ranks() if os.environ.get("LENS_RANKS") else 1))
    return _current[0]


def use(session: Session) -> None:
    """Make a session this process's own."""
    _current[:] = [session]
