"""Looking at a machine and a project: what is well, what is not, and how to mend it."""
