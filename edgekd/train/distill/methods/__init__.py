"""Ways to distil: a file each; see ``_base.py`` for what a file offers."""
