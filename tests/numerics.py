"""How far apart two ways of computing the same number may be."""

from __future__ import annotations

import torch


def tolerance(terms: int, magnitude: float, dtype: torch.dtype = torch.float32) -> float:
    """The largest difference that the order of adding can make.

    A sum of n numbers errs by at most (n - 1) u Σ|x|, whatever the order, where u is half of the
    machine epsilon (Higham 2002, "Accuracy and Stability of Numerical Algorithms", section 4.2);
    two orders differ by at most twice that. Processors, numbers of threads and batch sizes add in
    different orders, and none of them is the right one.

    Args:
        terms: how many numbers are added, n.
        magnitude: Σ|x|; of a mean, the mean of |x|.
        dtype: in which they are added.
    """
    return (terms - 1) * torch.finfo(dtype).eps * magnitude
