"""Looking into students and runs: numbers first, then a table and a figure."""
