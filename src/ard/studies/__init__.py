"""Many students at once: stages, grids, sweeps, the demonstration and the paper's study."""
