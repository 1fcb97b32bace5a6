"""The noise processes, their solvers and times."""
