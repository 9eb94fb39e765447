"""``LensRun``: the result of a run, on rank 0, and the forms it can be converted to and saved in."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import LensError
from ..options import integers, parse_layers
from ..paths import path_of
from ..words import counted, dimensions
from . import files
from .made import how_made
from .variables import TRACKED, VARIABLES

if TYPE_CHECKING:
    import pandas as pd
    import torch
    import xarray as xr
    from matplotlib.figure import Figure

_SAME = 1e-6  # nats, up to which a distribution is taken for the output

Gather = Callable[[str, Sequence[int], Sequence[int]], "torch.Tensor | None"]


@dataclass(frozen=True, eq=False)
class LensRun:
    """A generation seen through the lens.

    Position p is the state at sequence index P − 1 + p, P being the prompt's length: p ≥ 0 predicts generated token p,
    p < 0 the prompt's token P + p.

    Attributes:
        prompt, prompt_ids: the prompt, as text and as the tokens the model read.
        output_ids: the generated tokens, including an end token; ``text`` is their text without it.
        sites, layers, positions: the axes of ``variables``.
        variables: arrays ``[site, layer, position]`` or ``[site, layer, position, k]`` (see :meth:`to_xarray`).
        token_texts: readable text of every token that occurs in the run.
        timings: seconds: ``prefill_s``, ``decode_s``, ``project_s``; and ``tokens_per_s`` = (T − 1) / ``decode_s``.
        memory: bytes on the rank with the most: ``captures``, ``peak`` (resident; of a GPU allocated); ``captures_by_rank``.
        options, provenance: how it was made: options; versions, model and fingerprint, ranks, dtype, time.
        interrupted: whether the user stopped it; it then holds what was computed by then.
        labels: for a run through a :class:`Basis`, the labels of the directions that occur; candidates are then directions,
            not tokens.
    """

    prompt: str
    prompt_ids: list[int]
    output_ids: list[int]
    text: str
    sites: list[str]
    layers: list[int]
    positions: list[int]
    variables: Mapping[str, np.ndarray]
    token_texts: Mapping[int, str]
    timings: Mapping[str, float] = field(default_factory=dict)
    memory: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    interrupted: bool = False
    labels: Mapping[int, str] = field(default_factory=dict)
    _gather: Gather | None = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        """Return what pickles and copies keep: everything but access to the ranks, and so to the states."""
        return {**self.__dict__, "_gather": None}

    @property
    def model(self) -> str:
        """Name of the model."""
        return str(self.provenance.get("model", ""))

    @property
    def depth(self) -> int:
        """Number of the model's layers; 0 if it is not known.

        Files of older versions do not tell it. Of their runs, the last layer is the model's where its ``resid_post`` is the
        output, as ``kl_final`` says.
        """
        told = self.provenance.get("model_layers")
        if isinstance(told, int):
            return told
        if "resid_post" not in self.sites or not self.layers:
            return 0
        apart = self.variables["kl_final"][self.sites.index("resid_post"), -1]
        return self.layers[-1] + 1 if 0 <= np.nanmax(apart, initial=-1.0) <= _SAME else 0

    @property
    def candidate_texts(self) -> Mapping[int, str]:
        """Texts by ``token_id``: those of tokens, or the labels of a basis."""
        return self.labels or self.token_texts

    @property
    def targets(self) -> list[int]:
        """For each position, the token that came next."""
        following = [*self.prompt_ids, *self.output_ids]
        return [int(following[len(self.prompt_ids) + position]) for position in self.positions]

    @property
    def settled(self) -> np.ndarray:
        """For each position, the first layer from which the next token stays ranked first to the model's last; −1 for none.

        Read from ``resid_post`` over the layers of the run: from this layer on, the model's choice does not change. Without the
        model's last layer among them it cannot be told, and is −1 everywhere.

        Raises:
            LensError: ``resid_post`` was not captured.
        """
        first = self._is_first()  # [layer, position]
        if self.layers[-1:] != [self.depth - 1]:
            return np.full(first.shape[1], -1, dtype=np.int64)
        stays = np.flip(np.logical_and.accumulate(np.flip(first, 0), axis=0), 0)
        return self._first_true(stays)

    @property
    def first_layer(self) -> np.ndarray:
        """For each position, the first layer at which the next token is ranked first; −1 where it never is.

        Raises:
            LensError: ``resid_post`` was not captured.
        """
        return self._first_true(self._is_first())

    def _is_first(self) -> np.ndarray:
        if "resid_post" not in self.sites:
            raise LensError(f"settled layers are read from resid_post; this run captured {', '.join(self.sites)}")
        found: np.ndarray = self.variables["target_rank"][self.sites.index("resid_post")] == 0
        return found

    def _first_true(self, flags: np.ndarray) -> np.ndarray:
        layers = np.array(self.layers, dtype=np.int64)
        found: np.ndarray = np.where(flags.any(0), layers[flags.argmax(0)], -1)
        return found

    def to_xarray(self) -> xr.Dataset:
        """Return the run as a Dataset with dimensions ``site``, ``layer``, ``position``, ``k``.

        Variables of each candidate: ``token_id``, ``logit``, ``prob`` (softmax over the whole vocabulary), ``prob_topk`` (over
        the k only). Of each cell: ``entropy`` (nats), ``target_rank``, ``target_prob``, ``kl_final`` (nats). For a state too
        large for the dtype it was kept in, they are NaN, and the rank −1. If tokens were tracked, there are ``tracked_logit``,
        ``tracked_prob`` and ``tracked_rank`` in each cell, along a dimension ``tracked``, and ``tracked_id [position,
        tracked]``, which identifies them (−1: none). Coordinates of the positions are ``target_id`` and ``target``, the token
        that came next and its text, and if ``resid_post`` was captured ``settled_layer`` (:attr:`settled`). The arrays are
        copies: changing them does not change the run.
        """
        targets, texts = self.targets, np.empty(len(self.positions), dtype=object)
        texts[:] = [self.token_texts.get(index, "") for index in targets]
        ids = np.array(targets, dtype=np.int64)
        return self._copied().assign_coords(target_id=("position", ids), target=("position", texts))

    def _copied(self) -> xr.Dataset:
        return files.to_dataset(self).copy(deep=True)

    def to_pandas(self) -> pd.DataFrame:
        """Return the Dataset as a table, one row per candidate, with the tokens' texts in column ``token``."""
        table = self._copied()[list(VARIABLES)].to_dataframe().reset_index()
        table["token"] = table["token_id"].map(lambda index: self.candidate_texts.get(int(index), ""))
        return table

    def tracked_to_pandas(self) -> pd.DataFrame:
        """Return a table, one row per tracked token and cell: ``site, layer, position, token_id, token, logit, prob, rank``.

        Raises:
            LensError: nothing was tracked.
        """
        if "tracked_id" not in self.variables:
            raise LensError("no tokens were tracked; lens.run(…, track=[' Paris']) or track=True (--track) does")
        data = self._copied()[["tracked_id", *TRACKED]].drop_vars("tracked", errors="ignore")
        table = data.to_dataframe().reset_index().rename(columns=lambda name: name.removeprefix("tracked_"))
        table = table.rename(columns={"id": "token_id"})[table["id"] >= 0]
        table["token"] = table["token_id"].map(lambda index: self.candidate_texts.get(int(index), ""))
        columns = ["site", "layer", "position", "token_id", "token", "logit", "prob", "rank"]
        return table.sort_values(["position", "token_id", "site", "layer"], ignore_index=True)[columns]

    def to_json(self, path: str | Path) -> Path:
        """Write the paper's JSON (arXiv 2604.06483): k tokens by position, layer and site, with percentages among the k.

        Unlike the paper's, percentages are floats, and the token's id is added as third element.

        Raises:
            LensError: it cannot be written there, or none of the three sites of that schema was captured.
        """
        return files.write_paper_json(self, path_of(path))

    def to_html(self, path: str | Path) -> Path:
        """Write a self-contained page: the interactive table with all data, which needs no network access.

        Raises:
            LensError: it cannot be written there.
        """
        from ..view.page import write_page

        return write_page(path, self)

    def plot(self, kind: str = "heatmap", dark: bool = False, **options: Any) -> Figure:
        """Return a matplotlib figure for a paper or slides: ``figure.savefig("run.pdf")``.

        Args:
            kind: "heatmap": tokens × layers of one ``site``, shaded by ``shade`` ("prob", "entropy", "target_rank",
                "kl_final", "target_prob"), of some ``positions``, with tokens written into the cells or not (``annotate``);
                "token": all sites of one ``position`` side by side with their candidates (the paper's Figure 2);
                "trajectories": probability and rank of ``tokens`` (texts or ids as for ``track``; 24 at most; by default six of
                the tracked, or else of those first in a layer) across layers at a ``position`` and ``site``;
                "entropy": mean and middle half of the positions, by layer.
            dark: use colours for a dark page.

        Raises:
            LensError: no such figure, an option that it does not have, or one that names what is not in this run.
        """
        from ..view.plots import plot

        return plot(self, kind, dark, **options)

    def view(self, compare: LensRun | None = None, names: tuple[str, str] | None = None) -> Any:
        """Return the interactive table; with a second run, both side by side, or what changes from this one to it.

        Args:
            compare: the second run.
            names: names of the two in the view.
        """
        from ..view import show

        return show(self, compare=compare, names=names)

    def save(self, path: str | Path) -> Path:
        """Write everything, losslessly: NetCDF, or Zarr for a path that ends in ``.zarr``. :func:`open_run` reads it.

        Raises:
            LensError: the path has another ending, a package for it is missing, or it cannot be written there.
        """
        return files.save(self, path_of(path))

    def activations(
        self, site: str, layers: str | Sequence[int] | int | None = None, positions: Sequence[int] | int | None = None
    ) -> torch.Tensor:
        """Return captured states, gathered from the ranks: ``[layer, position, d]`` on the CPU, in the dtype they were kept in.

        Args:
            layers, positions: some of the run's; all by default. Layer −1 is the last of them, −2 the one before; text such
                as "0-4" or "::4" will do too.

        Raises:
            LensError: not captured in this run, or freed: the ranks keep the states of the newest run only.
        """
        if isinstance(layers, str):
            layers = sorted(set(_chosen("layer", [*self._named(layers)], self.layers, from_the_end=True)))
        layers = _chosen("layer", layers, self.layers, from_the_end=True)
        rows = [self.positions.index(p) for p in _chosen("position", positions, self.positions)]
        if site not in self.sites:
            raise LensError(f"site {site!r} was not captured in this run; captured: {', '.join(self.sites)}")
        if self._gather is None:
            raise LensError("a run from a file, or a copy, has no states: they are no longer kept with it; run it again")
        states = self._gather(site, layers, rows)
        if states is None:
            raise LensError(
                "this run's states are no longer kept on the ranks (only those of the newest run are); run it again"
            )
        return states

    def _named(self, layers: str) -> set[int]:
        """Return the layers in a text, in which −1 is the last of the run's, as among numbers."""
        named = set[int]()
        for piece in layers.split(","):
            named.update([int(piece)] if re.fullmatch(r"\s*-\d{1,18}\s*", piece) else parse_layers(piece, self.layers[-1] + 1))
        return named

    @property
    def extent(self) -> str:
        """How many cells it has, in words."""
        return dimensions(site=len(self.sites), layer=len(self.layers), position=len(self.positions))

    def __repr__(self) -> str:
        stopped = ", interrupted" if self.interrupted else ""
        made = ", ".join(filter(None, (self.model, how_made(self.options))))
        return f"<LensRun of {made}: {counted(len(self.output_ids), 'token')}, {self.extent}{stopped}: {self.text!r}>"

    def _ipython_display_(self, **options: Any) -> None:
        self.view()._ipython_display_(**options)


def _chosen(name: str, given: Sequence[int] | int | None, known: Sequence[int], from_the_end: bool = False) -> list[int]:
    """Check and return some of the ``known`` numbers; all if nothing is given.

    Args:
        from_the_end: count negative numbers from the end.
    """
    if given is None:
        return list(known)
    wanted = integers(f"{name}s", given)
    together = len(known) > 2 and list(known) == list(range(known[0], known[-1] + 1))
    captured = f"captured: {f'{known[0]} … {known[-1]}' if together else ', '.join(map(str, known)) or 'none'}"
    if not wanted:
        raise LensError(f"no {name}s were named; {captured}")
    if from_the_end:
        wanted = [known[value] if -len(known) <= value < 0 else value for value in wanted]
    for value in wanted:
        if value not in known:
            raise LensError(f"{name} {value} was not captured in this run; {captured}")
    return wanted


def open_run(path: str | Path) -> LensRun:
    """Read a run that :meth:`LensRun.save` wrote.

    Raises:
        LensError: there is no such file, or it holds something else.
    """
    return LensRun(**files.read(path_of(path)))
