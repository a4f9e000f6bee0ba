"""ViT-Small/16 (Touvron et al. 2021, DeiT-S): 12 blocks, 384 wide, 6 heads of 64.

The student of Mask-CDKD. Features of blocks 3, 6, 9 and 12, which are also the ones with global
attention when ``windowed``.
"""

from __future__ import annotations

from edgekd.train.students._base import Segmenter
from edgekd.train.students._vit import ATTENTIONS, HEADS, build_vit

__all__ = ["ATTENTIONS", "HEADS", "build"]


def build(
    num_classes: int,
    *,
    attention: str | None = None,
    head: str | None = None,
    pretrained: bool | None = None,
) -> Segmenter:
    """Build the student.

    Args:
        num_classes: output channels.
        attention: ``global`` or ``windowed``; ``None`` takes ``windowed``.
        head: ``linear`` or ``upernet``; ``None`` takes ``upernet``.
        pretrained: ``True`` is refused (there are no bundled weights).
    """
    return build_vit(
        "vit_small",
        num_classes,
        attention="windowed" if attention is None else attention,
        head="upernet" if head is None else head,
        pretrained=pretrained,
        dim=384,
        depth=12,
        heads=6,
        taps=(3, 6, 9, 12),
    )
