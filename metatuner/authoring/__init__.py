"""For authors of methods: a file to start from, and checks that say in plain words what is wrong."""

from metatuner.authoring.template import new_method

__all__ = ["new_method"]
