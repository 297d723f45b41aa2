"""The command line: recipes, plans, money and clouds. Never imports torch."""
