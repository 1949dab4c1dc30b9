"""Units of the explained backbone: the pictures that each is most active on, what it says, and how well that fits."""
