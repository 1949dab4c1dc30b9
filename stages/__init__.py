"""The work: one room for each stage of the pipeline, one `run(config)` in each."""
