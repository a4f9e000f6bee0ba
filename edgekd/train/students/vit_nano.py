"""ViT-Nano/16: 6 blocks, 96 wide, 3 heads of 32. For tests and first tries, not for maps.

Small enough to train and export within seconds, and built from the same parts as its larger
brothers. Features of blocks 3 and 6, the two with global attention; the ``upernet`` head makes its
two finer levels from block 3 and its two coarser ones from block 6.
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
        head: ``linear`` or ``upernet``; ``None`` takes ``linear``.
        pretrained: ``True`` is refused (there are no bundled weights).
    """
    return build_vit(
        "vit_nano",
        num_classes,
        attention="windowed" if attention is None else attention,
        head="linear" if head is None else head,
        pretrained=pretrained,
        dim=96,
        depth=6,
        heads=3,
        taps=(3, 6),
    )
