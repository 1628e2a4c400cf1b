"""The console: one look in the browser says whether apps keep up, why not, and what to do."""
