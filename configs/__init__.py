"""The configurations that come with the package; `devil-pipe new` writes them into a project."""
