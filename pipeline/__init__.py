"""What a person touches: the command line, configuration, and reports."""
