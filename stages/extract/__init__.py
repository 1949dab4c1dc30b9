"""Stage one: pictures through a frozen backbone once, into the feature store."""
