"""What writes the generated files of the checkout: the schema of recipes, and the pages of recipes, methods, models."""
