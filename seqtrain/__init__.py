"""Sequence encoders whose results never depend on what a sequence was batched with."""

__version__ = "0.1.0"
