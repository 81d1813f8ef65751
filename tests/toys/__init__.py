"""Small worlds, models, labs and runs that tests share."""
