"""Students that answer for places: a file each, which offers ``build_places``."""
