"""The networks, each with its initialisation: part of the recipe, for large batches most of all."""
