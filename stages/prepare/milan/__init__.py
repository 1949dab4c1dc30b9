"""MILANNOTATIONS: the units of seven networks, each with its top pictures, masks and three annotations."""
