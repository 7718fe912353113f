"""Which tokens attention needs, measured on real keys: trials, selections, measures. Read by the benchmarks."""
