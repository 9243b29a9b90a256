"""What a run will cost before it runs: seconds a step, and node-hours, from a recipe and a machine's numbers.  No torch."""
