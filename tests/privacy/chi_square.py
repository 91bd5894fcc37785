"""How surely residues are not uniform."""

from __future__ import annotations

import numpy as np
from scipy import stats


def p_value(residues: np.ndarray, modulus: int, bins: int = 256) -> float:
    """Return the probability that uniform residues mod R fill `bins` equal parts of [0, R) at least this unevenly."""
    counts = np.bincount((residues.astype(object) * bins // modulus).astype(np.int64), minlength=bins)
    return float(stats.chisquare(counts).pvalue)
