"""The teacher: guidance, its ODE, its folder, and the importers of published weights."""
