"""The audit: does a trained run's explanation owe its words and maps to the features, and to nothing else?"""
