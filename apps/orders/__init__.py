"""Orders of a shop, checked, counted and confirmed by mail: an app to look at in the console."""
