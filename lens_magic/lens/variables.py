"""Names and types of the lens's variables."""

from __future__ import annotations

import numpy as np

VARIABLES = {
    "token_id": (True, np.int32),
    "logit": (True, np.float32),
    "prob": (True, np.float32),
    "prob_topk": (True, np.float32),
    "entropy": (False, np.float32),
    "target_rank": (False, np.int32),
    "target_prob": (False, np.float32),
    "kl_final": (False, np.float32),
}
"""For each variable, whether it has one value per candidate, and its type. :meth:`LensRun.to_xarray` says what they mean."""

TRACKED = {"tracked_logit": np.float32, "tracked_prob": np.float32, "tracked_rank": np.int32}
"""Variables of each followed token in every cell, ``[site, layer, position, tracked]``, and their types.

``tracked_id [position, tracked]`` identifies the token.
"""
