"""Plans: programs compiled ahead for devices that are not here, and rooflines of their steps."""
