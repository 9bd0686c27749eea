"""Measure how far one next-token distribution is from another, per position."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["kl_nats", "log_probabilities", "of_others"]

LEAST = 1e-12
"""The least probability that all other tokens together are given, so that its logarithm is finite."""


def log_probabilities(logits: Tensor) -> Tensor:
    """Return the log-softmax over the last axis. Half precision is raised to float32; float64 stays."""
    return torch.log_softmax(logits if logits.dtype == torch.float64 else logits.float(), dim=-1)


def kl_nats(p: Tensor, q: Tensor) -> Tensor:
    """Return KL(p || q) = sum_v p_v (log p_v - log q_v) in nats of log-probabilities (..., V), as (...). Equal
    distributions give 0.
    """
    return (p.exp() * (p - q)).sum(-1)


def of_others(logps: Tensor) -> Tensor:
    """Return the log-probability of all other tokens together, log(1 - sum exp logps): (N, k) -> (N,)."""
    return (1 - logps.exp().sum(-1)).clamp_min(LEAST).log()
