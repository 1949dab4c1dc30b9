"""What `devil-pipe new` writes: a project for those who have the package and no clone of its repository."""
