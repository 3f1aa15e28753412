"""`python -m appliance.cli`: the `hob` command, wherever its script is not on the path."""

from appliance.cli import main

main()
