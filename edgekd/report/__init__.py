"""Measures a bundle and shows the result.

``measure`` runs the clock, ``checks`` judges what it saw, ``record`` is the typed result with
its raw samples, ``render`` and ``plot`` turn records into a page or a Markdown text.
"""
