"""What a trained translator says of pictures that were never stored: `devil-pipe explain`."""
