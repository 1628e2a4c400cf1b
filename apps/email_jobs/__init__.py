"""Mail as jobs: sent through SMTP with retries, limits for each domain, in order for each recipient."""
