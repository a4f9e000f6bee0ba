"""A student at a new site: a handful of labels, minutes on a CPU, accuracy before and after."""
