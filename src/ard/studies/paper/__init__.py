"""The paper's tables and figures as one run, with a verdict on each of its claims."""
