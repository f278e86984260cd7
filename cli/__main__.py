"""Run the command line as `python -m transom.cli`, which `torchrun` asks for."""

from . import main

main()
