"""The page of `devil-pipe units`: exemplars under their masks, descriptions, and how well they fit."""
