"""Dead letters of an app: select, show, edit, retry, export and purge them."""
