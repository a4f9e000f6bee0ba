"""The workstation's side: students, tuning and evaluation, with torch.

Imports only :mod:`edgekd.contracts` and :mod:`edgekd.errors` from the rest of the package.
"""
