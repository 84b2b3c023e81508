"""Losses. To add one: write a file beside kd.py, add its class to the tuple below."""

from compress.losses.adversarial import Adversarial
from compress.losses.attention import Attention
from compress.losses.base import Batch, Loss, Outputs
from compress.losses.cc import CC
from compress.losses.crd import CRD
from compress.losses.cross_entropy import CrossEntropy
from compress.losses.dist import DIST
from compress.losses.dkd import DKD
from compress.losses.fsp import FSP
from compress.losses.hint import Hint
from compress.losses.kd import KD
from compress.losses.l2 import L2
from compress.losses.logit_standardization import LogitStandardization
from compress.losses.multi_level import MultiLevel
from compress.losses.pkt import PKT
from compress.losses.review import Review
from compress.losses.rkd import RKD
from compress.losses.self_distillation import SelfDistillation
from compress.losses.sp import SP

__all__ = ["KD", "LOSSES", "Batch", "CrossEntropy", "Loss", "Outputs"]

LOSSES: dict[str, type[Loss]] = {
    loss.name: loss
    for loss in (
        CrossEntropy,
        KD,
        L2,
        DKD,
        DIST,
        LogitStandardization,
        MultiLevel,
        Hint,
        Attention,
        FSP,
        SP,
        CC,
        RKD,
        PKT,
        Review,
        CRD,
        Adversarial,
        SelfDistillation,
    )
}
