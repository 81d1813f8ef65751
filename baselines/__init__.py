"""The compared methods, including MetaTuner: one file each, found by the registry."""
