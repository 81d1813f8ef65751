"""What several baselines share. Imported within a fit where it needs torch or DSPy."""
