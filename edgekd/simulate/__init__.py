"""Scenes that are computed, not taken: for training and proof where truth must be known.

``geology`` renders a mineral district as a colour camera, an imaging spectrometer and LiDAR see
it; ``write`` puts scenes into a sensor set. Needs the extra ``sensors`` (scipy, spectral,
rasterio); imports contracts alone. Whatever leaves this package says in the file itself that it
is simulated.
"""
