"""Strata of a cloud of points: how to find them, how far apart they are, how many, and whose rows they hold."""
