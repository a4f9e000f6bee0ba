"""Shared helpers of the tests; import them as ``tests.helpers.<module>``."""
