"""Will this model run on that target? Rules on the graph and a compile, without the device."""
