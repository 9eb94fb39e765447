"""A run compared with itself under steering, cell by cell, on the same tokens in one batch.

KL(base ‖ steered) of a cell needs both whole distributions, but each rank has only its own rows of the vocabulary. With z
the base's logits, z' the steered ones and p = softmax(z):

    KL = Σ p (z − z') − log Σ exp z + log Σ exp z'

Each of the three sums is a sum over the ranks, once all ranks' terms are relative to a common largest logit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import LensError
from ..netcdf import require_netcdf, write_netcdf
from ..options import number
from ..paths import path_of
from ..reading import read_as
from . import files
from .made import how_made
from .run import LensRun

if TYPE_CHECKING:
    import torch
    import xarray as xr

    from ..model.load import Loaded
    from ..ranks.rank import Rank
    from .pipeline import Request

PARTED = 0.1
"""KL in nats above which the two runs are said to have parted."""
FORMAT = 1


def first_beyond(kl: np.ndarray, layers: Sequence[int], threshold: float = PARTED) -> np.ndarray:
    """Return the first of the layers at which ``kl [layer, position]`` exceeds so many nats, ``[position]``; −1 for none."""
    beyond = kl > threshold
    found: np.ndarray = np.where(beyond.any(0), np.array(layers, dtype=np.int64)[beyond.argmax(0)], -1)
    return found


@dataclass(frozen=True, eq=False)
class LensDiff:
    """What steering changes in every cell, on the same tokens.

    Attributes:
        base, steered: the two runs, over the same tokens.
        kl: KL(base ‖ steered) of each cell's whole distribution, nats, ``[site, layer, position]``.
    """

    base: LensRun
    steered: LensRun
    kl: np.ndarray

    @property
    def target_rank_change(self) -> np.ndarray:
        """The next token's rank in the steered run minus that in the base: negative where steering moved it up.

        float64; NaN where the cell has no rank in one of the runs, because its numbers are not finite.
        """
        base, steered = self.base.variables["target_rank"], self.steered.variables["target_rank"]
        change: np.ndarray = np.where((base < 0) | (steered < 0), np.nan, steered.astype(np.float64) - base)
        return change

    @property
    def target_prob_change(self) -> np.ndarray:
        """The next token's probability in the steered run minus that in the base."""
        change: np.ndarray = self.steered.variables["target_prob"] - self.base.variables["target_prob"]
        return change

    @property
    def parts_at(self) -> np.ndarray:
        """:meth:`parting` at :data:`PARTED` = 0.1 nats."""
        return self.parting()

    def parting(self, threshold: float = PARTED) -> np.ndarray:
        """For each position, the first layer whose KL at ``resid_post`` exceeds ``threshold`` nats; −1 where none does.

        A KL of NaN, of a cell without numbers, does not exceed it: where there is one, −1 says that it cannot be told. The
        difference's ``repr`` counts these positions.

        Raises:
            LensError: ``resid_post`` was not captured, or the threshold is not a number.
        """
        if math.isnan(threshold := number("threshold", threshold)):
            raise LensError(f"threshold {threshold} is not a number of nats; {PARTED} is the usual one")
        if "resid_post" not in self.base.sites:
            raise LensError(f"where two runs part is read from resid_post; this one captured {', '.join(self.base.sites)}")
        return first_beyond(self.kl[self.base.sites.index("resid_post")], self.base.layers, threshold)

    def to_xarray(self) -> xr.Dataset:
        """Return ``kl``, ``target_rank_change`` and ``target_prob_change`` of every cell, with both runs' variables.

        The runs' variables have a dimension ``run``: "base", "steered". If ``resid_post`` was captured, ``parts_at`` is a
        coordinate of the positions.
        """
        import xarray as xr

        both = [run.to_xarray().drop_vars("settled_layer", errors="ignore") for run in (self.base, self.steered)]
        names = xr.DataArray(["base", "steered"], dims="run", name="run")
        data = xr.concat(both, dim=names, coords="minimal", compat="override", combine_attrs="drop_conflicts")
        cells = ("site", "layer", "position")
        data["kl"] = (cells, self.kl.copy(), {"units": "nats"})
        data["target_rank_change"] = (cells, self.target_rank_change)
        data["target_prob_change"] = (cells, self.target_prob_change)
        if "resid_post" in self.base.sites:
            data = data.assign_coords(parts_at=("position", self.parts_at))
        return data

    def view(self) -> Any:
        """Return the interactive table: both runs side by side, or what changes from one to the other, with ``kl``."""
        from ..view import Explorer

        return Explorer(self.base, **self._beside)

    @property
    def _beside(self) -> dict[str, Any]:
        """What is shown beside the base."""
        return {"compare": self.steered, "names": ("unsteered", "steered"), "apart": self.kl}

    def to_html(self, path: str | Path) -> Path:
        """Write :meth:`view` as a self-contained page, which needs no network access.

        Raises:
            LensError: it cannot be written there.
        """
        from ..view.page import write_page

        return write_page(path, self.base, **self._beside)

    def save(self, path: str | Path) -> Path:
        """Write everything, losslessly, as NetCDF; :meth:`load` reads it.

        Raises:
            LensError: the path does not end in ``.nc``, or it cannot be written there.
        """
        import xarray as xr

        kl = xr.Dataset({"kl": (("site", "layer", "position"), self.kl)}, attrs={"lens_magic_diff": FORMAT})
        runs = {"base": files.packed(self.base), "steered": files.packed(self.steered)}
        return write_netcdf(require_netcdf(path_of(path)), {"": kl, **runs})

    @classmethod
    def load(cls, path: str | Path) -> LensDiff:
        """Read what :meth:`save` wrote.

        Raises:
            LensError: there is no such file, or it holds something else.
        """
        import xarray as xr

        source = require_netcdf(path_of(path))
        if not source.is_file():
            raise LensError(f"there is no file {source}")
        with read_as("a saved difference", source, hdf5=True):
            with xr.open_dataset(source, engine="h5netcdf") as opened:
                if opened.attrs.get("lens_magic_diff") != FORMAT:
                    raise LensError(f"{source} is no difference that lens-magic saved")
                kl = opened["kl"].values
            runs = []
            for name in ("base", "steered"):
                with xr.open_dataset(source, engine="h5netcdf", group=name) as opened:
                    runs.append(LensRun(**files.unpacked(opened.load())))
            if not all(kl.shape == run.variables["entropy"].shape for run in runs):
                raise ValueError("its kl has another shape than its runs")
        return cls(runs[0], runs[1], kl)

    def __repr__(self) -> str:
        lost = np.isnan(self.kl)
        told = [f"KL at most {float(np.nanmax(self.kl, initial=0.0)):.3g} nats"] if not lost.size or not lost.all() else []
        if lost.any():
            told.append(f"{lost.sum()} of {lost.size} cells hold no numbers")
        parted = ""
        if "resid_post" in self.base.sites and self.kl.size:
            at = self.parts_at
            some = at[at >= 0]
            where = f", first at layer {some.min()}" if some.size else ""
            parted = f"; {some.size} of {at.size} positions part by more than {PARTED} nats{where}"
            if untold := int((lost[self.base.sites.index("resid_post")].any(0) & (at < 0)).sum()):
                parted += f"; {untold} cannot be told"
        made = how_made(self.steered.options)
        return f"<LensDiff of {self.base.model}, {made}: {self.base.extent}, {', '.join(told)}{parted}>"

    def _ipython_display_(self, **options: Any) -> None:
        self.view()._ipython_display_(**options)


# -- on the ranks -------------------------------------------------------------------------------------------------------


def run_difference(rank: Rank, request: Request) -> dict[str, Any]:
    """Read the same tokens unsteered and steered in one batch, project both, and compare them. Collective.

    Args:
        request: has two identical sequences, of which the second is steered.

    Returns:
        What ``run_lens`` returns, and on every rank ``kl``, ``[site, layer, position]`` or None if it was interrupted.
    """
    import torch

    from ..model.load import loaded_on
    from .capture import NEWEST
    from .pipeline import run_lens
    from .projector import projector_for

    answer = run_lens(rank, request)
    loaded = loaded_on(rank)
    made = answer.get("generation")
    stopped = rank.all_reduce(torch.tensor([int(made is not None and made.interrupted)], device=loaded.device), "max")
    if int(stopped):
        return {**answer, "kl": None}
    trajectories = rank.store[NEWEST][1]
    positions = request.before(0) + request.new(0)
    with torch.inference_mode():
        projector = projector_for(rank, loaded, request.look, trajectories)
        kl = divergences(rank, loaded, projector, trajectories, request.first_row(0), positions)
    if kl is None:
        rank.acknowledge_stop()
    return {**answer, "kl": kl}


def divergences(rank: Rank, loaded: Loaded, projector: Any, trajectories: Any, first: int, positions: int) -> np.ndarray | None:
    """Return KL(sequence 0 ‖ sequence 1), ``[site, layer, position]`` float32; None if interrupted. Collective."""
    from .decode import Rows, looking, most_cells

    plan = trajectories.plan
    room = max(1, most_cells(rank, loaded, -(-projector.size // rank.size)) // 2)
    step = max(1, min(positions, room, 64))
    found = np.zeros((len(plan.keys), positions), np.float32)
    for begin in range(0, positions, step):
        end = min(positions, begin + step)
        both = [
            looking(rank, loaded, projector, Rows(trajectories, first + begin, first + end, sequence))[0]
            for sequence in range(2)
        ]
        most = max(1, room // (end - begin))
        for at in range(0, len(plan.keys), most):
            if rank.agree_to_stop():
                return None
            keys = plan.keys[at : at + most]
            base, steered = (logits_of(keys) for logits_of in both)  # [keys, positions, rows]
            found[at : at + len(keys), begin:end] = divergence(rank, base, steered).cpu().numpy()
    ordered = found.reshape(len(plan.layers), len(plan.sites), positions)
    return np.ascontiguousarray(np.swapaxes(ordered, 0, 1))


def divergence(rank: Rank, base: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return KL(base ‖ other) in nats of logits split over the ranks, ``[…, rows]`` → ``[…]`` float64. Collective."""
    import torch

    largest, largest_other = base.amax(-1), other.amax(-1)
    weights = (base - largest[..., None]).exp()
    # Each relative to its own largest, so that the terms are small and float32 keeps them; the offset is added below.
    apart = (base - largest[..., None]) - (other - largest_other[..., None])
    share = [
        largest.double(),
        weights.sum(-1, dtype=torch.float64),
        (weights * apart).sum(-1, dtype=torch.float64),
        largest_other.double(),
        (other - largest_other[..., None]).exp().sum(-1, dtype=torch.float64),
    ]
    tops, totals, apart_sums, other_tops, other_totals = rank.all_gather(torch.stack(share)).unbind(1)  # each [ranks, …]
    normaliser = (tops + totals.log()).logsumexp(0)
    other_normaliser = (other_tops + other_totals.log()).logsumexp(0)
    crossed = ((tops - normaliser).exp() * (apart_sums + (tops - other_tops) * totals)).sum(0)
    return (crossed - normaliser + other_normaliser).clamp(min=0)
