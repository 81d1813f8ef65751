"""The methods that MetaTuner is compared with: one file each, found by the registry, imported by nobody."""
