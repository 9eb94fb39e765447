"""Coding of a run's numbers as small integers, and decoding: the codings that `data.py` names in its header."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

PROB_STEP = 1 / 2048
LEAST_PROB = np.exp(-(2**16 - 3) * PROB_STEP)  # below it `neglog` tells none apart
COARSE_PROB_STEP = 1 / 8
EXACT_RANKS = 64
OCTAVE_STEP = 1 / 15

Coded = tuple[NDArray[Any], dict[str, Any]]


def plain(values: NDArray[Any], dtype: str) -> Coded:
    """Code values as they are, in this dtype."""
    return np.ascontiguousarray(values, dtype=np.dtype(dtype).newbyteorder("<")), {"dtype": dtype, "coding": "plain"}


def neglog(prob: NDArray[Any], dtype: str = "uint16", step: float = PROB_STEP) -> Coded:
    """Code probabilities as −ln p in steps of `step` nats; the last code but one means "that or less", the last missing."""
    most = np.iinfo(dtype).max
    given = np.asarray(prob, dtype=np.float32)
    p = np.nan_to_num(given, nan=0.0)
    nats = -np.log(np.clip(p, np.float32(1e-37), np.float32(1.0)))
    code = np.rint(np.minimum(nats * np.float32(1 / step), most - 1))
    codes = np.where(np.isnan(given), most, code).astype(np.dtype(dtype).newbyteorder("<"))
    return codes, {"dtype": dtype, "coding": "neglog", "step": step}


def linear(values: NDArray[Any], dtype: str, step: float, offset: float = 0.0, missing: bool = False) -> Coded:
    """Code values in fixed point, as `offset` + code · `step`. With `missing`, the highest code stands for NaN."""
    most = np.iinfo(dtype).max
    code = np.clip(np.rint((np.nan_to_num(values, nan=offset) - offset) / step), 0, most - missing)
    codes = np.where(np.isnan(values) & missing, most, code).astype(np.dtype(dtype).newbyteorder("<"))
    return codes, {"dtype": dtype, "coding": "linear", "offset": offset, "step": step, "missing": missing}


def linear_over_range(values: NDArray[Any]) -> Coded:
    """Code values linearly, with 65,536 codes from the smallest finite value to the largest."""
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    return linear(np.nan_to_num(values, nan=low, neginf=low, posinf=high), "uint16", (high - low) / 65535 or 1.0, low)


def square(values: NDArray[Any], dtype: str) -> Coded:
    """Code values ≥ 0 as code² · `step`: finest near zero, where most of them lie. The highest code means missing."""
    most = np.iinfo(dtype).max
    high = float(values[np.isfinite(values)].max(initial=0.0))
    step = high / (most - 1) ** 2 or 1.0
    code = np.rint(np.sqrt(np.clip(np.nan_to_num(values, nan=0.0, posinf=high), 0, high) / step))
    codes = np.where(np.isnan(values), most, code).astype(np.dtype(dtype).newbyteorder("<"))
    return codes, {"dtype": dtype, "coding": "square", "step": step}


def ranks(rank: NDArray[Any], dtype: str = "") -> Coded:
    """Code ranks as they are, in `dtype` or the smaller of uint16 and uint32; missing (negative) becomes the highest code."""
    dtype = dtype or ("uint16" if int(rank.max(initial=0)) < 65535 else "uint32")
    return plain(np.where(rank < 0, np.iinfo(dtype).max, rank.astype(np.int64)), dtype)


def octaves(rank: NDArray[Any]) -> Coded:
    """Code ranks in one byte, exact below 64 and within 3 % above; missing as with `ranks`."""
    above = np.log2(np.maximum(rank, EXACT_RANKS) / EXACT_RANKS)
    code = np.minimum(EXACT_RANKS + np.rint(above / OCTAVE_STEP), 254)
    small = np.where(rank < EXACT_RANKS, rank, code)
    encoding = {"dtype": "uint8", "coding": "octaves", "exact": EXACT_RANKS, "step": OCTAVE_STEP}
    return np.where(rank < 0, 255, small).astype("u1"), encoding


def decoded(codes: NDArray[Any], encoding: dict[str, Any]) -> NDArray[Any]:
    """Decode to float64; missing values become NaN if the coding has a code for them."""
    wide = codes.astype(np.float64)
    coding, step = encoding["coding"], encoding.get("step", 1.0)
    found: NDArray[Any] = wide
    missing = coding in ("neglog", "square") or encoding.get("missing", False)
    if coding == "neglog":
        found = np.exp(-wide * step)
    elif coding == "linear":
        found = wide * step + encoding["offset"]
    elif coding == "square":
        found = wide**2 * step
    return np.where(codes == np.iinfo(codes.dtype).max, np.nan, found) if missing else found


def decoded_ranks(codes: NDArray[Any], encoding: dict[str, Any]) -> NDArray[np.int64]:
    """Decode ranks; −1 where missing."""
    wide = codes.astype(np.int64)
    if encoding["coding"] == "octaves":
        exact = encoding["exact"]
        above = np.rint(exact * 2.0 ** ((wide - exact) * encoding["step"])).astype(np.int64)
        wide = np.where(wide < exact, wide, above)
    found: NDArray[np.int64] = np.where(codes == np.iinfo(codes.dtype).max, -1, wide)
    return found
