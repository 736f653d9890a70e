"""Recipes, whatever the framework: the arithmetic on arrays, and what a model and a tuning config make of them."""
