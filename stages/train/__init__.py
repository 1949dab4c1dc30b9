"""Stage two: from the feature store to a trained translator; the language model stays frozen."""
