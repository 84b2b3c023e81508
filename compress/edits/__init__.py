"""Edits. To add one: write a file beside channels.py, add its class to the tuple below."""

from compress.edits.base import Edit
from compress.edits.channels import Channels
from compress.edits.placement import Quantizers

__all__ = ["EDITS", "Channels", "Edit", "Quantizers"]

EDITS: dict[str, type[Edit]] = {edit.name: edit for edit in (Channels, Quantizers)}
