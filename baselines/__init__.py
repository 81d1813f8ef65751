"""The methods that are compared, MetaTuner among them: one file each, found by the registry."""
