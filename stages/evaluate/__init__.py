"""What the translator writes, how good it is, and how much of that the features contribute."""
