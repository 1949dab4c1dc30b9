"""The paper's experiments: what each row of its tables runs, what of it is done, and ours beside the paper's."""
