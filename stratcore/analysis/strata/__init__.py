"""Strata of a cloud of points: who finds them, how well they stand apart, how many there are, which domains they hold."""
