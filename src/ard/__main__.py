"""python -m ard: the same as the command ard."""

from ard.cli import main

main()
