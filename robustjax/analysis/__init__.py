"""Pictures and measurements of networks and their evaluations."""
