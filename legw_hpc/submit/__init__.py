"""Job scripts for SLURM and PBS: (recipe, machine, options) -> text, and handing it over."""
