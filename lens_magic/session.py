"""What lives as long as the user's process: the group of ranks, the model on it, and its tokenizer."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from . import options
from .errors import LensError, warn
from .model.fingerprint import of_module
from .ranks.status import Status

if TYPE_CHECKING:
    from .model.checkpoint import Checkpoint
    from .ranks.group import Group
    from .steer.vector import SteeringVector

OnEvent = Callable[[tuple[Any, ...]], None]
"""Progress: ("token", id, sequence), ("rows", begin, end, figures), or (what, done, total), with total 0 if not known yet."""


@dataclass(frozen=True)
class Model:
    """What rank 0 knows about the model on the ranks."""

    name: str
    tokenizer: Any
    stop_ids: tuple[int, ...]
    layers: int
    width: int
    vocabulary: int
    context: int
    dtype: str
    family: str  # its configuration's model_type
    checkpoint: Checkpoint | None = None  # None for a model attached from memory
    attached: Any = field(default=None, repr=False, compare=False)  # that model
    revision: str | None = None
    whole: str = ""  # what every rank keeps whole, in words; below, how many bytes that is
    whole_bytes: int = 0

    @property
    def fingerprint(self) -> str:
        """Of its weights, which of an attached model may have been trained since it was attached."""
        return self.checkpoint.fingerprint if self.checkpoint is not None else of_module(self.attached)


class Session:
    """One group of ranks and the model on it.

    Args:
        ranks: number of ranks a model is loaded on by default.
        launched: a launcher has started that many, which are only joined, once; no others can be started.
    """

    def __init__(self, ranks: int = 1, launched: bool = False) -> None:
        self.default_ranks = ranks
        self._launched, self._joined = launched, False
        self.model: Model | None = None
        self.vectors: dict[str, SteeringVector] = {}  # by the names given with %steer; they outlive a model
        # The model to load at the next restart, and on how many ranks, if it was dropped and none has replaced it.
        self._to_reload: tuple[Model, int] | None = None
        self._group: Group | None = None
        self._starting: threading.Thread | None = None
        self._making = threading.RLock()  # threads that need the first ranks at the same time get the same ones
        self._start_error: LensError | None = None
        self._misconfigured: LensError | None = None  # why the number of ranks is not known

    # -- ranks ---------------------------------------------------------------------------------------------------------

    def start_in_background(self) -> None:
        """Start the ranks, or join them, while the user types; an error is raised by the first command that needs them."""
        if self._group is not None:
            return  # code in a startup file needed them, so they are there
        if self._start_error is not None or (self.default_ranks == 1 and not self._launched):
            return  # a single rank is this process: nothing to start

        def start() -> None:
            try:
                self._group = self._new_group(self.default_ranks)
            except LensError as error:
                self._start_error = error
            except Exception as error:  # of a socket, say: in this thread nobody would see it
                remedy = "start the job again" if self._launched else "`%lens restart` tries again"
                self._start_error = LensError(f"the ranks could not be started ({type(error).__name__}: {error}); {remedy}")
                self._start_error.__cause__ = error

        self._starting = threading.Thread(target=start, name="lens-start", daemon=True)
        self._starting.start()

    def fail_with(self, error: LensError) -> None:
        """Have every command that needs ranks raise this error, until a model is loaded on a stated number of ranks."""
        self._misconfigured = error

    def _settle(self, timeout_s: float | None = None) -> None:
        """Wait for ranks that are being started."""
        if (starting := self._starting) is not None:
            starting.join(timeout_s)
            self._starting = None

    @property
    def group(self) -> Group:
        """The group of ranks, started here if it is not there yet."""
        self._settle()
        if self._misconfigured is not None:
            raise self._misconfigured
        if self._start_error is not None:
            error, self._start_error = self._start_error, None
            raise error
        with self._making:
            if self._group is None:
                self._group = self._new_group(self.default_ranks)
            return self._group

    @property
    def running_group(self) -> Group | None:
        """The group if it is there already; this never starts one or waits."""
        return self._group

    def _new_group(self, size: int) -> Group:
        from .ranks.group import Group

        if self._joined:
            raise LensError("these ranks were started by a launcher (mpiexec); start the job again")
        self._joined = self._launched
        return Group(size, joined=self._launched)

    def _group_of(self, ranks: int | None) -> Group:
        """Return a group of this many ranks, replacing one of another size (or one whose ranks were lost)."""
        wanted = ranks or self.default_ranks
        group = None
        there = self._launched or self._starting or self._start_error or self._group  # or are about to be, or failed to
        if self._misconfigured is None and (there or wanted == self.default_ranks):
            try:
                group = self.group
            except LensError:
                if wanted == self.default_ranks:
                    raise
        if group is not None and group.size == wanted and group.usable:
            return group
        if group is not None and group.joined:
            if group.size == wanted:
                group.require_all()
            raise LensError(
                f"this session was launched with {group.size} ranks and cannot have {wanted}; launch it with {wanted}"
            )
        return self._replace_group(wanted)

    def _replace_group(self, size: int) -> Group:
        # Start the new ranks first: if that fails, the old ones and their model stay.
        new = self._new_group(size)
        self._drop_group()
        self._group, self._misconfigured = new, None
        return new

    def _drop_group(self) -> None:
        """End the ranks, and the model with them."""
        old, self._group = self._group, None
        self.model = None
        if old is None:
            return
        old.close()
        old.rank.store.clear()
        if "torch" in sys.modules:
            from .ranks.collectives import disconnect
            from .ranks.memory import give_back_cached

            disconnect()
            give_back_cached()  # the next ranks may share this one's GPU

    def close(self) -> None:
        """End all ranks."""
        self._settle(timeout_s=10)
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
        """Load a model on the ranks; the previous one stays until the new one is ready, and after any error.

        The previous model is dropped first only if both do not fit (with a warning), or if the number of ranks changes,
        because it goes with the old ranks. If loading then fails, :meth:`restart` brings it back.

        Raises:
            LensError: :func:`lens_magic.model.checkpoint.find` refuses the model, it is too large for the free memory, or
                the ranks cannot be started.
            KeyboardInterrupt: stopped by the user; if the model was there already, an :class:`Interrupted` with it as result.
        """
        from .model.checkpoint import find

        trust_remote_code = options.flag("trust_remote_code", trust_remote_code)  # "False" would be true
        wanted = options.check_ranks(ranks) if ranks is not None else self._usual_ranks()
        return self._load(find(name, wanted, dtype, revision, trust_remote_code), wanted, on_event)

    def _load(self, checkpoint: Checkpoint, wanted: int, on_event: OnEvent | None) -> Model:
        from .model import load as loading
        from .model.checkpoint import stop_ids
        from .model.tokens import load_tokenizer
        from .ranks import collectives

        tokenizer = load_tokenizer(str(checkpoint.folder), checkpoint.trust_remote_code)
        ends = stop_ids(checkpoint.folder, tokenizer)
        before, its_ranks = self.model, self._group.size if self._group is not None else wanted
        if on_event is not None:  # in a fresh kernel the ranks start and import first, which takes longest
            on_event(("loading", 0, 0))
        self._require_room(checkpoint, wanted)
        group = self._group_of(wanted)
        collectives.require_free(group.rank)
        self._keep_in_mind(before, its_ranks)
        with group.exclusive() as outcome:  # what is on the ranks is the session's, whenever an interrupt comes
            facts = group.call(loading.load, checkpoint, on_event=on_event)[0]
            self.model = Model(
                name=checkpoint.name,
                tokenizer=tokenizer,
                stop_ids=ends,
                context=checkpoint.context,
                dtype=checkpoint.dtype,
                family=checkpoint.model_type,
                checkpoint=checkpoint,
                revision=checkpoint.revision,
                **facts,
            )
            self._to_reload = None
            return outcome.keep(self.model)

    def _require_room(self, checkpoint: Checkpoint, ranks: int) -> None:
        """Refuse a model that cannot fit; if it fits only without the previous one, drop that with a warning.

        What cannot be predicted (a model transformers cannot build without weights, ranks on other hosts) is tried.
        """
        from .model import load as loading
        from .needs import refuse_load
        from .ranks import followed, start
        from .rooms import room_of_rank, rooms_here

        if self.model is None:
            self._group_of(ranks)  # no model is lost by starting them, and they know best what they have free
        group = self._group
        there = group is not None and group.size == ranks and group.usable
        if not there and start.several_hosts():
            return
        rooms = []
        if group is not None and group.usable:
            group.call(followed.require_in_time)
            rooms = group.call(room_of_rank)
        if self.model is not None and self.model.checkpoint is None:
            rooms = [replace(room, model=0) for room in rooms]  # attached: the user still holds it, so nothing is freed
        if not there:
            rooms = rooms_here(ranks, rooms)
        try:
            alone = refuse_load(checkpoint, rooms)
        except LensError:
            raise
        except Exception:  # a family's own code may raise anything, and an unknown need is no reason to refuse
            return
        if alone and self.model is not None and group is not None and there:
            before, self.model = self.model, None
            self._keep_in_mind(before, group.size)
            group.call(loading.unload)
            warn(f"{before.name} was dropped first: {checkpoint.name} does not fit beside it")

    def _keep_in_mind(self, before: Model | None, ranks: int) -> None:
        """Remember a model that has been dropped already, for a restart to load until the new one is ready."""
        if self.model is None and before is not None and before.checkpoint is not None:
            self._to_reload = (before, ranks)

    def _usual_ranks(self) -> int:
        """Return the current number of ranks, or the default if there are none."""
        group = self._group
        if group is not None and not group.closed:
            return group.size
        if self._misconfigured is not None:
            raise self._misconfigured
        return self.default_ranks

    def attach(self, model: Any, tokenizer: Any) -> Model:
        """Use a transformers model that is in this process's memory, on one rank. What is refused leaves the previous one.

        Raises:
            LensError: another call is under way, :func:`lens_magic.model.load.require_attachable` refuses the model, or its
                end tokens are none.
        """
        from .model import load as loading
        from .model.anatomy import context_of
        from .model.checkpoint import end_tokens

        if self._group is not None:
            with self._group.exclusive():  # refuses while another thread's call is under way
                pass
        loading.require_attachable(model)
        stated = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
        stop_ids = end_tokens(stated, getattr(model.config, "eos_token_id", None), tokenizer)
        context = context_of(model.config.get_text_config())
        name = str(getattr(model.config, "_name_or_path", "") or type(model).__name__)
        dtype, family = str(model.dtype).removeprefix("torch."), str(model.config.model_type)
        before, its_ranks = self.model, self._group.size if self._group is not None else 1
        group = self._group_of(1)
        self._keep_in_mind(before, its_ranks)
        with group.exclusive() as outcome:  # as in load
            facts = group.call(loading.attach, model)[0]
            told = {"stop_ids": stop_ids, "context": context, "dtype": dtype, "family": family, "attached": model}
            self.model = Model(name, tokenizer, **told, **facts)
            self._to_reload = None
            return outcome.keep(self.model)

    def restart(self, on_event: OnEvent | None = None) -> Model | None:
        """Start fresh ranks and load the model again; if that fails or is stopped, the next restart tries again.

        Raises:
            LensError: another call is under way, the model was attached, its files are gone or have changed, or the ranks were
                started by a launcher (nothing is ended then); or it cannot be loaded.
        """
        from .model.checkpoint import find_again
        from .ranks.start import require_working_folder

        self._settle()
        if self._group is not None and self._group.usable:
            with self._group.exclusive():  # as in attach; a call that does not end is given up by interrupts
                pass
        before: Model | None = self.model
        if before is None and self._to_reload is not None:
            before, size = self._to_reload
        else:
            size = self._usual_ranks()
        if self._group is not None and self._group.joined:
            raise LensError("these ranks were started by a launcher (mpiexec); start the job again")
        if before is not None and before.checkpoint is None:
            raise LensError(f"{before.name} was attached from memory; nothing to restart, lens.attach(…) uses it anew")
        known = None if before is None or before.checkpoint is None else find_again(before.checkpoint, size)
        if size > 1:
            require_working_folder()  # before anything is dropped
        self._to_reload = None if before is None else (before, size)
        self._drop_group()
        self._start_error = None
        if on_event is not None:  # as in load
            on_event(("loading", 0, 0))
        self._group = self._new_group(size)
        return None if known is None else self._load(known, size, on_event)

    def require_model(self) -> Model:
        """Return the model.

        Raises:
            LensError: none is loaded. RanksLost: its ranks are gone.
        """
        if self._group is not None:
            self._group.require_all()
        if self.model is None:
            raise LensError(self.nothing_loaded())
        return self.model

    def nothing_loaded(self) -> str:
        """Return a message that no model is loaded, and what loads one."""
        if self._to_reload is not None:
            return f"no model is loaded; `%lens restart` loads {self._to_reload[0].name} again"
        return "no model is loaded; `%lens load MODEL` loads one (`%lens load demo` the embedded one)"

    def status(self) -> Status:
        """Return ranks, devices, memory, model and vectors."""
        from .rooms import describe_rank

        ranks = self.group.call(describe_rank)
        model = self.model
        details = {} if model is None else {"dtype": model.dtype, "layers": model.layers, "context": model.context}
        kept = [f"{name} (layers {','.join(map(str, vector.layers))})" for name, vector in sorted(self.vectors.items())]
        return Status(ranks, model.name if model else None, [], details, kept)


_current: list[Session] = []


def current() -> Session:
    """Return this process's session; if no Lens kernel has made one, it has one rank (or ``LENS_RANKS``)."""
    if not _current:
        _current.append(Session(options.default_ranks() if os.environ.get("LENS_RANKS") else 1))
    return _current[0]


def use(session: Session) -> None:
    """Make a session this process's session."""
    _current[:] = [session]
