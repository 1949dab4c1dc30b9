"""Where a query is likely: heat maps of the language model's likelihood, and how well they point."""
