"""`python -m netagent`."""

from netagent.cli.main import main

main()
