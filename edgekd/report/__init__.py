"""Measures a bundle and shows the result.

``measure`` runs the clock, ``checks`` judges what it saw, ``record`` is the typed result with
its raw samples. ``compare`` says which differences are real; ``sections`` holds what all renderings
say, ``render`` makes the page of it (``timeline`` and ``charts`` draw, ``plot`` has the axes),
``markdown`` the text.
"""
