"""What the gateway takes, and costs a month, for so many daily users: paper, on measured figures. `scripts/cost`."""
