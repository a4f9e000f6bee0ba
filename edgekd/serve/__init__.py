"""The service around a bundle: what it answers by, and what it must keep across restarts.

Imports ``contracts``, ``runtime`` and ``telemetry``. The rules and their trail
(:mod:`edgekd.serve.rules`) know nothing of the web.
"""
