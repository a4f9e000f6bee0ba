"""What the three machines agree on: formats and rules, with no torch and no onnx.

Every other package imports from here and this package imports from nobody but
:mod:`edgekd.errors`. A format that two machines exchange (recipe, manifest, labelled set,
window geometry, tensor description) is defined here once.
"""
