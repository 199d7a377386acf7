"""Running what a config describes: arms, their times and checks, and their tables."""
