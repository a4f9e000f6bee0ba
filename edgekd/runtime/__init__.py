"""Runs bundles on the edge device. Never imports torch.

``session`` is the front door; ``tiler`` cuts scenes and joins results; ``blend`` does the
arithmetic of overlapping windows; ``scene`` reads and writes georeferenced files; ``backends``
run one batch of tiles.
"""
