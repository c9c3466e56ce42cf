"""Any network as a graph: traced, cut into units in three regions, run over time."""
