"""How folders that a recipe names become runs, one file each."""
