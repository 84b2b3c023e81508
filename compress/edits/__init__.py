"""Edits. To add one: write a file beside channels.py, add its class to the tuple below."""

from compress.edits.base import Edit
from compress.edits.channels import Channels
from compress.edits.factorized import Factorized
from compress.edits.placement import Quantizers
from compress.edits.sparse import Sparse

__all__ = ["EDITS", "Channels", "Edit", "Factorized", "Quantizers", "Sparse"]

EDITS: dict[str, type[Edit]] = {edit.name: edit for edit in (Channels, Factorized, Sparse, Quantizers)}
