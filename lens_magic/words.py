"""Numbers of things, in words."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """Return ``1 token``, ``1,500 tokens``: the number with its noun, whose plural ends in s."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def dimensions(**sizes: int) -> str:
    """Return ``3 sites × 8 layers`` for ``site=3, layer=8``."""
    return " × ".join(counted(size, name) for name, size in sizes.items())
